// The prompts of the step being sampled, to choose one from: text, how many completions ended, remembered in the address.

import { el } from "./dom.js";
import { visible } from "./glyphs.js";
import * as url from "./url_state.js";

const SEARCHED = 12; // prompts from which a search is worth its place
const TOLD = 300; // milliseconds in which all processes begin a step

const parse = (text) => (/^\d{1,9}$/.test(text) ? Number(text) : null);

export class LiveGroups {
  constructor(root, onChoice) {
    Object.assign(this, { onChoice, known: new Map(), entries: new Map() });
    this.nav = root.querySelector("[data-live-groups]");
    this.list = root.querySelector("[data-live-group-list]");
    this.search = root.querySelector("[data-live-search]");
    this.refused = root.querySelector("[data-live-refused]");
    this.chosen = parse(url.get("watch"));
    this.all = this.entry(null, "Several prompts");
    this.list.append(this.all.element);
    this.search.addEventListener("input", () => this.filter());
    this.nav.addEventListener("keydown", (event) => this.move(event));
    document.addEventListener("run:url", () => this.choose(parse(url.get("watch")), { quietly: true }));
    this.mark();
  }

  entry(group, label) {
    const text = el("span.group-label", {}, label), note = document.createTextNode(group === null ? "the first few of each" : ""), fill = el("i");
    const element = el("button.group-entry", { type: "button" }, text, el("span.group-note", {}, note), group === null ? "" : el("i.group-bar", {}, fill));
    element.addEventListener("click", () => this.choose(group));
    return { element, text, note, fill };
  }

  /** A step begins: its prompts are others. Buttons stay where they are, so that one can be hit. */
  reset() {
    this.known.clear();
    this.stale = true;
  }

  take(groups) {
    for (const { group, ...news } of groups) {
      this.known.set(group, { size: 0, done: 0, ...this.known.get(group), ...news });
      if (!this.entries.has(group)) this.add(group);
      this.draw(group);
    }
    if (this.stale) this.tidy();
  }

  add(group) {
    const entry = this.entry(group, "");
    const behind = [...this.entries.keys()].filter((other) => other > group).sort((a, b) => a - b)[0];
    this.list.insertBefore(entry.element, behind === undefined ? null : this.entries.get(behind).element);
    this.entries.set(group, entry);
    this.mark();
  }

  draw(group) {
    const { prompt, size, done } = this.known.get(group), { text, note, fill, element } = this.entries.get(group);
    if (prompt !== undefined) {
      text.textContent = `${group} · ${visible(prompt.replaceAll("\n", " "))}`;
      element.title = prompt;
    }
    note.data = `${done} of ${size} ended`;
    fill.style.width = `${size ? 100 * done / size : 0}%`;
    this.filter(group);
  }

  /** Take away what the step before had more, once every process has told its part of the list. */
  tidy() {
    this.stale = false;
    clearTimeout(this.tidying);
    this.tidying = setTimeout(() => {
      if (this.stale) return; // the next step has begun
      for (const [group, { element }] of this.entries) {
        if (this.known.has(group)) continue;
        element.remove();
        this.entries.delete(group);
      }
      this.search.hidden = this.known.size < SEARCHED;
      this.mark();
    }, TOLD);
  }

  filter(only) {
    const wanted = this.search.hidden ? "" : this.search.value.trim().toLowerCase();
    for (const [group, { element, text }] of only === undefined ? this.entries : [[only, this.entries.get(only)]]) {
      element.hidden = wanted !== "" && !text.textContent.toLowerCase().includes(wanted);
    }
  }

  /** Choose a group; null shows what comes unasked. */
  choose(group, { quietly = false } = {}) {
    if (group === this.chosen) return;
    this.chosen = group;
    this.refused.hidden = true;
    if (!quietly) url.set({ watch: group === null ? null : String(group) });
    document.dispatchEvent(new CustomEvent("run:watch", { detail: group }));
    this.mark();
    this.onChoice();
  }

  walk(by) {
    const order = [null, ...[...this.entries].filter(([, { element }]) => !element.hidden).map(([group]) => group).sort((a, b) => a - b)];
    const next = order[order.indexOf(this.chosen) + by];
    if (next !== undefined) this.choose(next);
  }

  /** Arrow keys move within the list. */
  move(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    const buttons = [...this.list.querySelectorAll("button:not([hidden])")];
    event.preventDefault();
    buttons[Math.max(0, Math.min(buttons.length - 1, buttons.indexOf(document.activeElement) + by))]?.focus();
  }

  answered({ group, refused }) {
    if (group !== this.chosen) return;
    this.refused.textContent = refused;
    this.refused.hidden = !refused;
  }

  mark() {
    for (const [group, { element }] of [[null, this.all], ...this.entries]) {
      element.ariaCurrent = String(group === this.chosen);
      if (group === this.chosen && group !== null) this.scrollTo(element);
    }
  }

  /** Only within the list: the page stays where it is. */
  scrollTo(element) {
    const { list } = this, top = element.offsetTop - list.offsetTop;
    if (top < list.scrollTop || top + element.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 3;
  }

  has(group) { return this.known.has(group); }

  label(group) { return this.known.get(group)?.prompt; }

  /** How far what is shown is. */
  note(shown) {
    const one = this.known.get(this.chosen);
    if (!one) return "";
    const part = shown < one.size ? `, ${shown} of them shown` : "";
    return `prompt ${this.chosen} · ${one.done} of ${one.size} ended${part}`;
  }
}
