// One wrapper around uPlot: segments of metrics in, a themed chart with band, target, stack and event markers out.

import { number, shown } from "./format.js";
import { smooth } from "./smoothing.js";
import { css } from "./theme_colours.js";

const uPlot = window.uPlot;
const HEIGHT = 168;
const SAID = new Set(["line", "stack", "target", "least", "most"]);
const UPPER = { high: "low", most: "least" }; // a band lies between a line of the one role and of the other
const CURSOR = uPlot.sync("run");

const colour = (index) => css(`--chart-${1 + (index % 8)}`);
const alpha = (value, share) => `color-mix(in srgb, ${value} ${share}%, transparent)`;

/** Align segments to one x axis: [xs, ...columns]. */
function align(lines, axis) {
  const keys = [...new Set(lines.flatMap((line) => line[axis]))].sort((a, b) => a - b);
  const at = new Map(keys.map((key, index) => [key, index]));
  const columns = lines.map((line) => {
    const column = new Array(keys.length).fill(null);
    line[axis].forEach((key, index) => { column[at.get(key)] = line.values[index]; });
    return column;
  });
  return [keys, ...columns];
}

/** One chart. `spec` is {id, title, unit, kind, series: [{name, label, role}]}; roles: line, low, high (a
 * band), least, most (the interval in which the truth lies), target, stack. */
export class Chart {
  constructor(element, spec, series, options) {
    Object.assign(this, { element, spec, series, options, plot: null, visible: false, dirty: true, shape: "" });
    this.body = element.querySelector("[data-chart-body]");
    this.readout = element.querySelector("[data-chart-readout]");
  }

  get names() { return this.spec.series.map((one) => one.name); }

  setVisible(visible) {
    this.visible = visible;
    if (visible && this.dirty) this.draw();
  }

  refresh() {
    this.dirty = true;
    if (this.visible) this.draw();
  }

  /** Every line to draw: a metric's current branch over all attempts, the superseded ones, smoothed twins in front. */
  lines() {
    const { weight } = this.options, out = [];
    this.spec.series.forEach((one, index) => {
      const segments = inUnits(one.name, this.series.segments(one.name)), current = joined(segments.filter((segment) => !segment.superseded));
      const old = one.role === "line" ? segments.filter((segment) => segment.superseded).map((segment) => fromFork(segment, segments)) : [];
      for (const segment of [...old, current]) {
        if (!segment.steps.length) continue;
        const smoothed = weight > 0 && one.role === "line" && segment.values.length > 2;
        out.push({ ...segment, ...one, index, faint: smoothed });
        if (smoothed) out.push({ ...segment, ...one, index, values: smooth(segment.values, weight), smoothed });
      }
    });
    return this.spec.kind === "stack" ? stack(out) : out;
  }

  draw() {
    this.dirty = false;
    const lines = this.lines(), axis = this.options.axis === "time" ? "times" : "steps";
    this.empty(lines.length === 0 || lines.every((line) => line.values.length === 0));
    if (this.isEmpty) return;
    const data = align(lines, axis);
    const shape = JSON.stringify([axis, this.options.target ?? null, lines.map(({ name, attempt, superseded, faint, smoothed }) => [name, attempt, superseded, faint, smoothed])]);
    if (this.plot && shape === this.shape) this.plot.setData(data, false);
    else this.create(lines, data, axis, shape);
    this.drawn = lines;
    this.plot.batch(() => this.scale(data[0]));
    this.showReadout(null);
  }

  empty(isEmpty) {
    this.isEmpty = isEmpty;
    this.element.classList.toggle("is-empty", isEmpty);
    if (isEmpty) { this.plot?.destroy(); this.plot = null; this.shape = ""; }
  }

  scale(xs) {
    const { range } = this.options;
    const [min, max] = range ?? [xs[0], xs.at(-1)];
    this.plot.setScale("x", { min, max: max > min ? max : min + 1 });
  }

  create(lines, data, axis, shape) {
    this.plot?.destroy();
    this.shape = shape;
    const bands = [];
    lines.forEach((line, at) => {
      const low = lines.findIndex((other) => other.role === UPPER[line.role]);
      if (low >= 0) bands.push({ series: [at + 1, low + 1], fill: () => alpha(colour(0), 15) });
      if (line.role === "stack" && line.below !== undefined) bands.push({ series: [at + 1, line.below + 1], fill: () => alpha(colour(line.index), 45) });
    });
    const grid = { stroke: () => css("--chart-grid"), width: 1 }, ticks = { ...grid, size: 4 };
    const axes = { stroke: () => css("--chart-text"), font: "11px system-ui", grid, ticks };
    this.plot = new uPlot({
      width: this.body.clientWidth || 320, height: HEIGHT, padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: CURSOR.key, setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { size: 6 }, bind: { dblclick: () => () => this.options.onZoom(null) } },
      scales: { x: { time: axis === "times" }, y: { range: yRange } },
      axes: [{ ...axes, size: 28 }, { ...axes, size: 48, values: (_, ticksAt) => ticksAt.map((value) => number(value)) }],
      series: [{}, ...lines.map((line) => seriesOptions(line))],
      bands,
      hooks: {
        draw: [(plot) => this.options.drawOver(plot, this)],
        setCursor: [(plot) => this.showReadout(plot.cursor.idx)],
        setSelect: [(plot) => this.select(plot)],
      },
    }, data, this.body);
    this.plot.over.addEventListener("click", () => this.click());
    this.plot.over.addEventListener("mousemove", () => this.options.onHover(this));
    this.plot.over.addEventListener("mouseleave", () => this.options.onHover(null));
  }

  select(plot) {
    if (plot.select.width < 4) return;
    const range = [plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x")];
    plot.setSelect({ width: 0, height: 0 }, false);
    this.selectedAt = performance.now();
    this.options.onZoom(range);
  }

  click() {
    const { idx } = this.plot.cursor;
    if (idx === null || idx === undefined || performance.now() - (this.selectedAt ?? -1e9) < 300) return;
    const step = this.stepAt(idx);
    if (step !== null) this.options.onStep(step);
  }

  stepAt(index) {
    const x = this.plot.data[0][index];
    if (this.options.axis !== "time") return x;
    for (const line of this.drawn) {
      const at = line.times.indexOf(x);
      if (at >= 0) return line.steps[at];
    }
    return null;
  }

  /** Values at index of the x axis, or the latest ones: [{label, value, colour}]. */
  values(index) {
    return this.spec.series.flatMap((one, at) => {
      const line = this.drawn.findLast((drawn) => drawn.name === one.name && !drawn.superseded && !drawn.smoothed);
      if (!line) return [];
      const where = index === null ? line.values.length - 1 : line[this.options.axis === "time" ? "times" : "steps"].indexOf(this.plot.data[0][index]);
      const value = where < 0 ? null : (line.own ?? line.values)[where];
      return [{ label: one.label, name: one.name, role: one.role, value, colour: lineColour({ ...one, index: at }) }];
    });
  }

  showReadout(index) {
    const items = this.values(index ?? null).filter(({ role, value }, at, all) => SAID.has(role) && !(role === "target" && all[at - 1]?.role === role && all[at - 1].value === value));
    this.readout.replaceChildren(...items.map(({ label, name, value, colour: swatch, role }) => {
      const item = document.createElement("span");
      const dot = document.createElement("i");
      dot.style.background = swatch;
      if (role === "target") dot.className = "is-target";
      item.append(dot, ` ${label} `, Object.assign(document.createElement("b"), { textContent: shown(name, value) }));
      return item;
    }));
  }

  resize() {
    if (this.plot && this.body.clientWidth) this.plot.setSize({ width: this.body.clientWidth, height: HEIGHT });
  }

  restyle() { this.plot?.redraw(false, true); if (this.drawn && this.plot) this.showReadout(null); }
}

/** Bytes are drawn in GiB. */
function inUnits(name, segments) {
  if (!name.endsWith("_bytes")) return segments;
  return segments.map((segment) => ({ ...segment, values: segment.values.map((value) => value / 2 ** 30) }));
}

/** The points that count, of all attempts, as one line. */
function joined(segments) {
  const all = (key) => segments.flatMap((segment) => segment[key]);
  return { superseded: false, steps: all("steps"), values: all("values"), times: all("times") };
}

/** A superseded branch begins at the last point it shares with the branch that counts. */
function fromFork(segment, segments) {
  const stem = segments.find((one) => one.attempt === segment.attempt && !one.superseded);
  if (!stem) return segment;
  const longer = (key) => [stem[key].at(-1), ...segment[key]];
  return { ...segment, steps: longer("steps"), values: longer("values"), times: longer("times") };
}

const lineColour = ({ role, index }) => (role === "target" ? css("--chart-target") : colour(role === "least" || role === "most" ? 0 : index));

function seriesOptions(line) {
  const share = line.superseded ? 45 : line.faint ? 28 : line.role === "low" || line.role === "high" ? 0 : 100;
  return {
    label: line.label,
    stroke: () => (share ? alpha(lineColour(line), share) : "transparent"),
    width: line.superseded || line.faint || UPPER[line.role] || line.role === "least" ? 1 : 1.75,
    dash: line.role === "target" ? [6, 4] : line.superseded ? [3, 2] : undefined,
    spanGaps: true,
    // Asked at every draw: a line that began with one point grows.
    points: { show: (plot, at) => isSparse(plot.data[at], line.name), size: 5 },
  };
}

/** A single point needs a dot to be seen; of evaluations each one counts. */
function isSparse(values, name) {
  const count = values.reduce((sum, value) => sum + (value !== null), 0);
  return count === 1 || (name.startsWith("evaluation/") && count < 60);
}

/** Keep a flat line readable and never cut the extremes. */
function yRange(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * 0.08;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

/** Lay the parts of a stack on each other; `own` keeps what each part is by itself. */
function stack(lines) {
  const sums = new Map();
  return lines.map((line, at) => {
    const values = line.values.map((value, index) => {
      const sum = (sums.get(line.steps[index]) ?? 0) + (value ?? 0);
      sums.set(line.steps[index], sum);
      return sum;
    });
    return { ...line, own: line.values, values, below: at ? at - 1 : undefined };
  });
}
