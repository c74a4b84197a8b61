// The table of What if: the run's own objective first, then every preset; sorted and filtered here.

import { el } from "./dom.js";
import { EMPTY, number, signed } from "./format.js";

const FALLING = new Set(["mass", "touched", "masked", "clipped"]); // their first click shows the largest

export class WhatIfTable {
  /** `chosen(preset)` is called with the name of a preset, or "" for the run's own objective. */
  constructor(root, chosen) {
    Object.assign(this, { root, chosen, rows: [], sort: null, falling: false, filter: "", preset: "", edited: null });
    this.body = root.querySelector("[data-whatif-rows]");
    this.refused = root.querySelector("[data-whatif-refused]");
    root.querySelector("thead").addEventListener("click", ({ target }) => this.sortBy(target.closest("[data-sort]")?.dataset.sort));
    root.querySelector("[data-whatif-filter]").addEventListener("input", ({ target }) => { this.filter = target.value.trim().toLowerCase(); this.render(); });
    this.body.addEventListener("change", ({ target }) => this.chosen(target.value));
  }

  sortBy(key) {
    if (!key) return;
    this.falling = this.sort === key ? !this.falling : FALLING.has(key);
    this.sort = key;
    for (const button of this.root.querySelectorAll("[data-sort]")) {
      button.parentElement.setAttribute("aria-sort", button.dataset.sort !== key ? "none" : this.falling ? "descending" : "ascending");
    }
    this.render();
    this.body.closest(".whatif-scroll").scrollTop = 0;
  }

  /** Show rows; the first is the run's own. */
  show(rows) {
    this.rows = rows;
    this.render();
  }

  choose(preset) {
    if (preset !== this.preset) this.edited = null;
    this.preset = preset;
    this.render();
  }

  /** Show other figures for the chosen preset: those under settings of its own. */
  replace(row) {
    this.edited = row;
    this.render();
  }

  get shown() {
    const [own, ...others] = this.rows;
    const found = others.filter((row) => !row.refused && `${row.title} ${row.preset}`.toLowerCase().includes(this.filter));
    const value = (row) => (this.sort === "title" ? row.title.toLowerCase() : row[this.sort] ?? -Infinity);
    if (this.sort) found.sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * (this.falling ? -1 : 1));
    return own ? [{ ...own, preset: "", own: true }, ...found] : found;
  }

  render() {
    const shown = this.shown.map((row) => (this.edited && row.preset === this.preset && !row.own ? { ...this.edited, edited: true } : row));
    const largest = Math.max(1e-12, ...shown.map(({ change }) => Math.abs(change ?? 0)));
    const focused = this.body.contains(document.activeElement);
    this.body.replaceChildren(...shown.map((row) => this.line(row, largest)));
    if (focused) this.body.querySelector("input:checked")?.focus({ preventScroll: true });
    if (this.preset && this.preset !== this.seen && this.reveal()) this.seen = this.preset;
    const refused = this.rows.slice(1).filter((row) => row.refused);
    this.refused.hidden = !refused.length;
    this.refused.querySelector("summary").textContent = `${refused.length} not computable here`;
    this.refused.querySelector("dl").replaceChildren(...refused.flatMap((row) => [el("dt", {}, row.title), el("dd", {}, row.refused.replace("not computable here: ", ""))]));
  }

  /** Bring the chosen row into the table's window; false where it is not there yet. */
  reveal() {
    const line = this.body.querySelector(".is-chosen"), frame = line?.closest(".whatif-scroll");
    if (!line || !frame.clientHeight) return false;
    const head = 2 * frame.querySelector("thead").offsetHeight, top = line.offsetTop, { scrollTop, clientHeight } = frame;
    if (top < scrollTop + head || top + line.offsetHeight > scrollTop + clientHeight) frame.scrollTop = top - clientHeight / 2;
    return true;
  }

  line(row, largest) {
    const chosen = row.preset === this.preset;
    const radio = el("input", { type: "radio", name: "whatif", value: row.preset, checked: chosen });
    const tag = row.own ? "this run" : row.edited ? "edited" : "";
    const name = el("label.whatif-name", { title: row.notes.join("; ") }, radio, el("span", {}, row.title), tag ? el("small.whatif-tag", {}, tag) : null, row.notes.length ? el("small.whatif-tag", { ariaLabel: row.notes.join("; ") }, "note") : null);
    const line = el("tr", {}, el("td", {}, name), el("td", {}, massOf(row)), ...["touched", "masked", "clipped"].map((key) => el("td", {}, share(row[key]))), el("td", {}, changeOf(row, largest)));
    line.classList.toggle("is-chosen", chosen);
    line.classList.toggle("is-own", Boolean(row.own));
    line.addEventListener("click", (event) => { if (event.target.closest("label") === null) radio.click(); });
    return line;
  }
}

const share = (value) => (value === 0 ? "0" : value < 0.0005 ? "< 0.1 %" : value > 0.9995 && value < 1 ? "> 99.9 %" : `${Number((100 * value).toPrecision(3))} %`);

/** Bars of push and pull; the dotted line is GRPO's whole mass, the end twice of it, or more where there is more. */
function massOf({ mass, push, pull }) {
  if (mass === null) return EMPTY;
  const whole = Math.max(2, mass);
  const bars = el("span.whatif-bars", { title: `push ${number(push)}, pull ${number(pull)} of GRPO’s mass` }, bar("up6", 0, push / whole), bar("down6", push / whole, pull / whole));
  return el("span.whatif-mass", {}, bars, el("b", {}, `${mass.toFixed(2)}×`));
}

/** A bar to the right raises entropy, one to the left lowers it; its length is the root of the size. */
function changeOf({ change, change_policy: policy, change_entropy: entropy, exact }, largest) {
  if (change === null) return EMPTY;
  const half = Math.sqrt(Math.abs(change) / largest) / 2;
  const parts = entropy ? `${signed(policy)} through log-probs, ${signed(entropy)} through the entropy term; ` : "";
  const how = exact ? "exact to first order" : "estimated from the sampled tokens: the file lacks the moments";
  const bars = el("span.whatif-bars", {}, change >= 0 ? bar("up6", 0.5, half) : bar("down6", 0.5 - half, half));
  return el(`span.whatif-change${exact ? "" : ".whatif-rough"}`, { title: parts + how }, bars, el("b", {}, `${exact ? "" : "≈ "}${signed(change)}`));
}

function bar(name, from, width) {
  const element = el(`i.${name}`);
  element.style.left = `${100 * Math.min(1, from)}%`;
  element.style.width = `${100 * Math.min(1, width)}%`;
  return element;
}
