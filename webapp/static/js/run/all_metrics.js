// Every other metric, folded, grouped by prefix, with a filter; a chart is made when it comes near the viewport.

import { el } from "./dom.js";

export class AllMetrics {
  constructor(root, overview, names, shown) {
    Object.assign(this, { root, overview, names: new Set(names), shown: new Set(shown) });
    this.list = root.querySelector("[data-metrics-list]");
    this.filter = root.querySelector("[data-metrics-filter]");
    this.filter.addEventListener("input", () => this.apply());
    root.addEventListener("toggle", () => root.open && this.render());
    document.addEventListener("run:events", ({ detail }) => this.take(detail));
    this.count();
  }

  others() { return [...this.names].filter((name) => !this.shown.has(name)).sort(); }

  take(events) {
    const before = this.names.size;
    for (const { type, values } of events) {
      if (type === "metrics") Object.keys(values).forEach((name) => this.names.add(name));
      if (type === "evaluation") Object.keys(values).forEach((name) => this.names.add(`evaluation/${name}`));
    }
    if (this.names.size === before) return;
    this.count();
    if (this.root.open) this.render();
  }

  count() { this.root.querySelector("[data-metrics-count]").textContent = this.others().length; }

  render() {
    const groups = Map.groupBy ? Map.groupBy(this.others(), prefix) : grouped(this.others());
    for (const [name, metrics] of groups) {
      let section = this.list.querySelector(`[data-metrics-group="${CSS.escape(name)}"]`);
      if (!section) {
        section = el("section", {}, el("h4", {}, name), el("div.chart-grid.is-small"));
        section.dataset.metricsGroup = name;
        this.list.append(section);
      }
      for (const metric of metrics) {
        if (section.querySelector(`[data-chart="${CSS.escape(metric)}"]`)) continue;
        section.lastChild.append(this.card(metric));
      }
    }
    this.apply();
  }

  card(metric) {
    const readout = el("div.chart-readout"), body = el("div.chart-body");
    readout.dataset.chartReadout = body.dataset.chartBody = "";
    const card = el("figure.chart", {}, el("figcaption", {}, el("span.chart-title", { title: metric }, metric.slice(metric.indexOf("/") + 1)), metric.endsWith("_bytes") ? el("span.chart-unit", {}, " GiB") : "", readout), body);
    card.dataset.chart = metric;
    this.overview.watch(card);
    return card;
  }

  apply() {
    const wanted = this.filter.value.trim().toLowerCase();
    for (const card of this.list.querySelectorAll("[data-chart]")) card.hidden = !card.dataset.chart.toLowerCase().includes(wanted);
    for (const section of this.list.children) section.hidden = !section.querySelector("[data-chart]:not([hidden])");
  }
}

const prefix = (name) => (name.includes("/") ? name.slice(0, name.indexOf("/")) : "other");

function grouped(names) {
  const groups = new Map();
  for (const name of names) groups.set(prefix(name), [...(groups.get(prefix(name)) ?? []), name]);
  return groups;
}
