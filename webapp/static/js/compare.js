// The compare page: curves of several runs over each other, settings that differ, rollouts of one prompt side by side.
// What is shown lives in the address: runs or sweep, metrics, x, smooth, each (every seed by itself), key, at.

import { OverlayChart } from "./compare_chart.js";
import { PromptPanes } from "./compare_panes.js";
import { Series } from "./run/series.js";
import { get, set } from "./run/url_state.js";

const page = JSON.parse(document.querySelector("#compare-data")?.textContent ?? "{}");
const POINTS = 800;
const REFRESH_EVERY = 5000; // ms, while one of the runs is alive

class Compare {
  constructor(root) {
    this.root = root;
    this.runs = page.runs.map((run) => ({ ...run, data: new Series(run.series) }));
    const named = get("metrics").split(",").filter((name) => page.names.includes(name));
    this.metrics = new Set(named.length ? named : page.first);
    this.axis = get("x", "steps");
    this.weight = Number(get("smooth", "0"));
    this.charts = new Map();
    this.bindBar();
    this.load();
    if (page.runs.some((run) => run.alive)) setInterval(() => document.hidden || this.load(), REFRESH_EVERY);
  }

  find(selector) { return this.root.querySelector(selector); }

  bindBar() {
    for (const box of this.root.querySelectorAll("[data-metric]")) {
      box.checked = this.metrics.has(box.value);
      box.addEventListener("change", () => {
        if (box.checked) this.metrics.add(box.value); else this.metrics.delete(box.value);
        set({ metrics: [...this.metrics].join(",") });
        this.load();
      });
    }
    this.find("[data-metric-search]").addEventListener("input", (event) => {
      for (const label of this.root.querySelectorAll(".metric-list label")) label.hidden = !label.textContent.includes(event.target.value.trim());
    });
    const axis = this.find("[data-axis]");
    axis.value = this.axis;
    axis.addEventListener("change", () => {
      this.axis = axis.value;
      set({ x: this.axis === "steps" ? null : this.axis });
      this.load();
    });
    const slider = this.find("[data-smoothing]");
    slider.value = this.weight;
    const bands = this.find("[data-bands]");
    if (bands) bands.checked = get("each") !== "1";
    this.bands = bands?.checked ?? false;
    bands?.addEventListener("change", () => {
      this.bands = bands.checked;
      set({ each: this.bands ? null : "1" });
      this.draw();
    });
    slider.addEventListener("input", () => {
      this.weight = Number(slider.value);
      set({ smooth: this.weight || null });
      this.draw();
    });
  }

  async load() {
    const names = [...this.metrics, ...(this.axis === "tokens" ? ["tokens/total"] : [])];
    await Promise.all(this.runs.map((run) => run.data.load(names, POINTS)));
    const thinned = this.runs.filter((run) => run.data.decimated);
    this.find("[data-chart-note]").textContent = thinned.length ? `thinned: ${thinned.map((run) => `${run.name} shows ${run.data.shown} of ${run.data.total} points`).join("; ")}` : "";
    this.draw();
  }

  draw() {
    this.find("[data-smoothing-value]").textContent = this.weight || "off";
    this.find("[data-metric-count]").textContent = this.metrics.size;
    for (const [name, chart] of this.charts) {
      if (this.metrics.has(name)) continue;
      chart.remove();
      this.charts.delete(name);
    }
    for (const name of this.metrics) {
      if (!this.charts.has(name)) this.charts.set(name, new OverlayChart(this.find("[data-charts]"), name));
      this.charts.get(name).show(this.runs, { axis: this.axis, weight: this.weight, bands: this.bands });
    }
  }
}

// The config table: only differences unless all are asked for; a search looks through all settings.
function bindConfig(section) {
  const table = section.querySelector("[data-config-table]");
  const search = section.querySelector("[data-config-search]");
  const all = section.querySelector("[data-config-all]");
  const update = () => {
    const text = search.value.trim().toLowerCase();
    table.classList.toggle("only-differences", !all.checked && text === "");
    for (const row of table.tBodies[0].rows) row.hidden = text !== "" && !row.textContent.toLowerCase().includes(text);
  };
  search.addEventListener("input", update);
  all.addEventListener("change", update);
}

const root = document.querySelector("[data-compare]");
root.querySelector("[data-add-run] select")?.addEventListener("change", (event) => {
  set({ runs: [get("runs"), event.target.value].filter(Boolean).join(",") });
  location.reload();
});
if (page.runs?.length) {
  new Compare(root);
  if (page.runs.length > 1) new PromptPanes(root.querySelector("[data-rollouts]"), { ...page, runs: page.runs.filter((run) => run.pane) });
}
const config = root.querySelector("[data-config]");
if (config) bindConfig(config);
