// The sweep page: curves of all members, a colour for the seeds of one row; table and counts anew while runs go on.
// `each` in the address shows every run instead of mean and range.

import { OverlayChart } from "./compare_chart.js";
import { get, set } from "./run/url_state.js";

const page = JSON.parse(document.querySelector("#sweep-data").textContent);
const REFRESH_EVERY = 4000; // ms, while a run is queued or alive
const root = document.querySelector("[data-sweep]");
const body = () => root.querySelector("#sweep-body");

/** The answer's points of one run, as the charts read a run's series. */
function seriesOf(metrics) {
  return { segments: (name) => (metrics[name]?.[0].length ? [{ attempt: 1, superseded: false, steps: metrics[name][0], values: metrics[name][1], times: [] }] : []) };
}

class Plots {
  constructor() {
    this.charts = page.plots.map(({ name, title }) => new OverlayChart(root.querySelector("[data-charts]"), name, title));
    this.each = get("each") === "1";
    this.buttons = [...root.querySelectorAll("[data-seeds]")];
    for (const button of this.buttons) {
      button.addEventListener("click", () => {
        this.each = button.dataset.seeds === "each";
        set({ each: this.each ? "1" : null });
        this.draw();
      });
    }
    this.load();
  }

  async load() {
    const answer = await fetch(page.series);
    if (!answer.ok) return;
    this.data = await answer.json();
    root.querySelector("[data-chart-note]").textContent = this.data.width > 1 ? `each point is the mean of ${this.data.width} steps` : "";
    this.draw();
  }

  draw() {
    for (const button of this.buttons) button.setAttribute("aria-pressed", String((button.dataset.seeds === "each") === this.each));
    if (!this.data) return;
    const runs = this.data.groups.flatMap((group) => group.runs.map((run) => ({ ...run, group, colour: group.colour, dash: group.dash, data: seriesOf(this.data.runs[run.id] ?? {}) })));
    for (const chart of this.charts) chart.show(runs, { axis: "steps", weight: 0, bands: !this.each });
  }
}

const plots = root.querySelector("[data-charts]") ? new Plots() : null;
setInterval(() => {
  if (document.hidden || body().dataset.alive !== "true") return;
  htmx.ajax("GET", `${location.pathname}?panel=live`, { target: "#sweep-body", swap: "outerMorph", source: "#sweep-body" });
  plots?.load();
}, REFRESH_EVERY);
