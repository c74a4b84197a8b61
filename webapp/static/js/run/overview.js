// The charts of a run: which are near the viewport, what they share (zoom, smoothing, axis, markers), live points.

import { Chart } from "./charts.js";
import { number, shown } from "./format.js";
import { drawMarkers, drawPending, markerOf, markersNear } from "./markers.js";
import { Series } from "./series.js";
import { onTheme } from "./theme_colours.js";
import * as url from "./url_state.js";

const REFRESH = 100;

export class Overview {
  constructor(root, { seriesUrl, panels, events, target }) {
    Object.assign(this, { root, target, series: new Series(seriesUrl), markers: events.map(markerOf).filter(Boolean), charts: new Map(), stale: new Set(), wanted: new Set() });
    this.options = {
      axis: url.get("x") === "time" ? "time" : "step", weight: Number(url.get("smooth", "0")) || 0, range: null,
      drawOver: (plot, chart) => this.drawOver(plot, chart),
      onZoom: (range) => this.zoom(range), onStep: (step) => this.openStep(step), onHover: (chart) => this.hover(chart),
    };
    this.specs = new Map(panels.map((panel) => [panel.id, panel]));
    this.observer = new IntersectionObserver((entries) => entries.forEach((entry) => this.seen(entry)), { rootMargin: "200px 0px" });
    this.sizes = new ResizeObserver((entries) => entries.forEach(({ target: element }) => this.chartOf(element)?.resize()));
    this.tooltip = root.querySelector("[data-chart-tooltip]");
    this.note = root.querySelector("[data-chart-note]");
    this.controls();
    root.querySelectorAll("[data-chart]").forEach((element) => this.observer.observe(element));
    onTheme(() => this.charts.forEach((chart) => chart.restyle()));
    document.addEventListener("run:events", ({ detail }) => this.take(detail));
  }

  chartOf(body) { return this.charts.get(body.closest("[data-chart]")?.dataset.chart); }

  /** Make a chart when it first comes near; watch elements that were added later with `watch`. */
  seen({ target: element, isIntersecting }) {
    const id = element.dataset.chart;
    let chart = this.charts.get(id);
    if (!chart && isIntersecting) {
      const spec = this.specs.get(id) ?? { id, series: [{ name: id, label: id.split("/").pop(), role: "line" }] };
      chart = new Chart(element, spec, this.series, this.options);
      this.charts.set(id, chart);
      this.sizes.observe(chart.body);
      chart.names.filter((name) => !this.loaded?.has(name)).forEach((name) => this.wanted.add(name));
      this.fetchSoon();
    }
    chart?.setVisible(isIntersecting);
  }

  watch(element) { this.observer.observe(element); }

  /** Ask once for all metrics that charts near the viewport need. */
  fetchSoon() {
    clearTimeout(this.fetching);
    this.fetching = setTimeout(() => this.fetch([...this.wanted]), 30);
  }

  async fetch(names, range = null) {
    this.wanted.clear();
    this.loaded ??= new Set();
    names.forEach((name) => this.loaded.add(name));
    try {
      await this.series.load(names, 2 * (this.width() || 400), range);
      this.say();
    } catch (error) {
      names.forEach((name) => this.loaded.delete(name));
      this.note.textContent = error.message;
    }
    for (const chart of this.charts.values()) if (chart.names.some((name) => names.includes(name))) chart.refresh();
  }

  width() { return Math.round(this.root.querySelector("[data-chart-body]")?.clientWidth ?? 400); }

  say() {
    const { decimated, shown, total } = this.series;
    this.note.textContent = decimated ? `Showing ${shown.toLocaleString()} of ${total.toLocaleString()} points, peaks kept; zoom in for all.` : "";
  }

  take(events) {
    for (const event of events) {
      const marker = markerOf(event);
      if (marker) { this.markers.push(marker); this.charts.forEach((chart) => this.stale.add(chart)); }
      if (event.type === "knob" && event.name === this.target.knob) this.target.pending = null;
      const changed = new Set(this.series.add(event));
      for (const chart of this.charts.values()) if (chart.names.some((name) => changed.has(name))) this.stale.add(chart);
    }
    this.redrawSoon();
  }

  redrawSoon() {
    if (this.redrawing) return;
    this.redrawing = setTimeout(() => {
      this.redrawing = null;
      this.stale.forEach((chart) => chart.refresh());
      this.stale.clear();
    }, REFRESH);
  }

  drawOver(plot, chart) {
    if (this.showMarkers) drawMarkers(plot, this.markers, this.options.axis);
    if (chart.spec.id === this.target.chart && this.target.pending !== null) drawPending(plot, this.target.pending);
  }

  /** Show at once where people want the entropy to go. */
  aim(value) {
    this.target.pending = value;
    this.charts.get(this.target.chart)?.plot?.redraw(false);
  }

  zoom(range) {
    this.options.range = range;
    this.root.classList.toggle("is-zoomed", Boolean(range));
    this.charts.forEach((chart) => chart.refresh());
    const wasDecimated = this.series.decimated || this.zoomedData;
    if (!wasDecimated) return;
    this.zoomedData = Boolean(range);
    const steps = range && this.options.axis === "step" ? { from: Math.floor(range[0]), to: Math.ceil(range[1]) } : null;
    clearTimeout(this.zooming);
    this.zooming = setTimeout(() => this.fetch([...this.loaded], steps), 150);
  }

  openStep(step) { document.dispatchEvent(new CustomEvent("run:open-step", { detail: step })); }

  hover(chart) {
    const index = chart?.plot?.cursor.idx;
    this.tooltip.hidden = index === null || index === undefined;
    if (this.tooltip.hidden) return;
    const lines = [row("Step", number(chart.stepAt(index)))];
    chart.values(index).forEach(({ label, name, value, colour }) => value !== null && lines.push(row(label, shown(name, value, 4), colour)));
    markersNear(chart.plot, this.markers, this.options.axis).slice(0, 6).forEach(({ text }) => lines.push(note(text)));
    lines.push(note("Click: rollouts of this step", "text-secondary"));
    this.tooltip.replaceChildren(...lines);
    const box = chart.plot.over.getBoundingClientRect(), { left, top } = chart.plot.cursor;
    const flip = box.left + left > innerWidth - 260;
    this.tooltip.style.transform = `translate(${Math.round(box.left + left + (flip ? -14 : 14))}px, ${Math.round(box.top + top + 12)}px)${flip ? " translateX(-100%)" : ""}`;
  }

  controls() {
    const { root } = this, smoothing = root.querySelector("[data-smoothing]"), axis = root.querySelector("[data-axis]"), marks = root.querySelector("[data-markers]");
    smoothing.value = this.options.weight;
    const output = root.querySelector("[data-smoothing-value]");
    output.textContent = this.options.weight || "off";
    smoothing.addEventListener("input", () => {
      this.options.weight = Number(smoothing.value);
      output.textContent = this.options.weight || "off";
      url.set({ smooth: this.options.weight || null });
      this.charts.forEach((chart) => chart.refresh());
    });
    axis.value = this.options.axis;
    axis.addEventListener("change", () => {
      Object.assign(this.options, { axis: axis.value, range: null });
      url.set({ x: axis.value === "time" ? "time" : null });
      this.charts.forEach((chart) => chart.refresh());
    });
    this.showMarkers = marks.checked = url.get("marks", "1") !== "0";
    marks.addEventListener("change", () => {
      this.showMarkers = marks.checked;
      url.set({ marks: marks.checked ? null : "0" });
      this.charts.forEach((chart) => chart.plot?.redraw(false));
    });
    root.querySelector("[data-zoom-reset]").addEventListener("click", () => this.zoom(null));
  }
}

function row(label, value, colour) {
  const line = document.createElement("div");
  if (colour) { const dot = document.createElement("i"); dot.style.background = colour; line.append(dot); }
  line.append(Object.assign(document.createElement("span"), { textContent: label }), Object.assign(document.createElement("b"), { textContent: value }));
  return line;
}

function note(text, className = "") {
  return Object.assign(document.createElement("div"), { textContent: text, className: `chart-tooltip-note ${className}` });
}
