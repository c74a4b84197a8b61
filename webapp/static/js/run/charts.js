// One wrapper around uPlot: segments of metrics in, a themed chart with band, target, stack and event markers out.

import { number } from "./format.js";
import { smooth } from "./smoothing.js";

const uPlot = window.uPlot;
const HEIGHT = 168;
const CURSOR = uPlot.sync("run");

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
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

/** One chart. `spec` is {id, title, unit, kind, series: [{name, label, role}]}; roles: line, low, high, target, stack. */
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

  /** Every line to draw: one for each metric and segment, smoothed twins behind their raw selves. */
  lines() {
    const { weight } = this.options, out = [];
    this.spec.series.forEach((one, index) => {
      for (const segment of this.series.segments(one.name)) {
        if (segment.superseded && one.role !== "line") continue;
        out.push({ ...segment, ...one, index });
        const smoothed = weight && one.role === "line" && segment.values.length > 2;
        if (smoothed) out.push({ ...segment, ...one, index, values: smooth(segment.values, weight), smoothed: true });
      }
    });
    const drawn = out.map((line) => ({ ...line, faint: !line.smoothed && weight > 0 && line.role === "line" && line.values.length > 2 }));
    return this.spec.kind === "stack" ? stack(drawn) : drawn;
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
      const low = lines.findIndex((other) => other.role === "low" && other.attempt === line.attempt && other.superseded === line.superseded);
      if (line.role === "high" && low >= 0) bands.push({ series: [at + 1, low + 1], fill: () => alpha(colour(line.index), 16) });
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
      return [{ label: one.label, role: one.role, value, colour: lineColour({ ...one, index: at }) }];
    });
  }

  showReadout(index) {
    const items = this.values(index ?? null).filter(({ role }) => role === "line" || role === "stack" || role === "target");
    this.readout.replaceChildren(...items.map(({ label, value, colour: swatch, role }) => {
      const item = document.createElement("span");
      const dot = document.createElement("i");
      dot.style.background = swatch;
      if (role === "target") dot.className = "is-target";
      item.append(dot, ` ${label} `, Object.assign(document.createElement("b"), { textContent: number(value) }));
      return item;
    }));
  }

  resize() {
    if (this.plot && this.body.clientWidth) this.plot.setSize({ width: this.body.clientWidth, height: HEIGHT });
  }

  restyle() { this.plot?.redraw(false, true); if (this.drawn && this.plot) this.showReadout(null); }
}

const lineColour = (line) => (line.role === "target" ? css("--chart-target") : colour(line.index));

function seriesOptions(line) {
  const share = line.superseded ? 30 : line.faint ? 28 : line.role === "low" || line.role === "high" ? 0 : 100;
  return {
    label: line.label,
    stroke: () => (share ? alpha(lineColour(line), share) : "transparent"),
    width: line.superseded || line.faint ? 1 : 1.75,
    dash: line.role === "target" ? [6, 4] : line.superseded ? [2, 3] : undefined,
    spanGaps: true,
    points: { show: line.values.length === 1 || (line.name.startsWith("evaluation/") && line.values.length < 60), size: 5 },
  };
}

/** Keep a flat line readable and never cut the extremes. */
function yRange(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * 0.08;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

/** Cumulate the current attempt's parts; `own` keeps what each part is by itself. */
function stack(lines) {
  const attempts = [...new Set(lines.map((line) => line.attempt))], out = [];
  for (const attempt of attempts) {
    const sums = new Map();
    let below;
    for (const line of lines.filter((one) => one.attempt === attempt)) {
      const values = line.values.map((value, at) => {
        const sum = (sums.get(line.steps[at]) ?? 0) + (value ?? 0);
        sums.set(line.steps[at], sum);
        return sum;
      });
      out.push({ ...line, own: line.values, values, below });
      below = out.length - 1;
    }
  }
  return out;
}
