// What if another objective had been applied to this step? The table over all presets, and one of them on the tokens.

import { Controls } from "../picture/controls.js";
import { el } from "./dom.js";
import { attach, computed, decode } from "./whatif_answer.js";
import { WhatIfTable } from "./whatif_table.js";
import * as url from "./url_state.js";

const PAINTS = ["weight", "whatif", "difference"], SETTLE = 350;

export class WhatIf {
  constructor(root, reader, urls) {
    Object.assign(this, { root, reader, urls, preset: url.get("whatif"), parts: [], bundle: null, tableFor: null });
    this.panel = root.querySelector("[data-whatif]");
    this.toggle = root.querySelector("[data-whatif-toggle]");
    this.part = (name) => this.panel.querySelector(`[data-whatif-${name}]`);
    this.table = new WhatIfTable(this.panel, (preset) => this.choose(preset));
    this.toggle.addEventListener("click", () => this.open(this.panel.hidden));
    this.part("close").addEventListener("click", () => { this.open(false); this.toggle.focus(); });
    this.part("cycle").addEventListener("click", () => this.cycle());
    this.panel.addEventListener("click", ({ target }) => this.paint(target.closest("[data-paint]")?.dataset.paint));
    this.panel.querySelector("[role=radiogroup]").addEventListener("keydown", (event) => this.arrows(event));
    root.addEventListener("reader:shown", ({ detail }) => this.shown(detail));
    document.addEventListener("run:colour", () => this.mark());
    if (url.get("whatif") !== "" || url.get("panel") === "whatif") this.open(true);
    this.mark();
  }

  open(open) {
    this.panel.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
    url.set({ panel: open ? "whatif" : null, whatif: open ? this.preset : null });
    if (open) { this.load(); return; }
    this.stop();
    if (this.bundle) attach(this.bundle, null);
    if (this.isPainting) this.reader.setMode("entropy");
    this.ready = null;
    this.mark();
  }

  get isPainting() { return ["whatif", "difference"].includes(this.reader.mode); }

  /** The reader shows a step: what was chosen is asked of it again. */
  shown({ step, version, bundle }) {
    if (this.bundle === bundle) return;
    Object.assign(this, { step, version, bundle });
    if (this.panel.hidden) return;
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.load(), this.tableFor ? SETTLE : 0); // a slider passes many steps
  }

  load() {
    if (!this.bundle) return;
    this.loadTable();
    this.loadTokens();
    if (this.preset) this.loadSettings();
  }

  stop() {
    this.tableTurn?.abort();
    this.tokensTurn?.abort();
    this.root.classList.remove("is-computing");
  }

  address(name) { return this.urls[name].replace("/0/", `/${this.step}/`); }

  async loadTable() {
    const key = `${this.step}:${this.version}`;
    if (this.tableFor === key) return;
    this.tableTurn?.abort();
    const { signal } = (this.tableTurn = new AbortController());
    this.tableFor = key;
    this.say("");
    this.progress("asking …");
    try {
      const response = await computed(this.address("whatif"), { signal, progress: (state) => this.heard(state) });
      const { rows, facts } = await response.json();
      this.progress("");
      this.facts(facts);
      this.table.show(rows);
    } catch (error) {
      if (signal.aborted) return;
      this.tableFor = null;
      this.progress("");
      this.table.show([]);
      this.say(error.message, true);
    }
  }

  heard({ state, done, total, rows, silent }) {
    if (silent) this.say("No worker has taken it up yet. Is one running? celery -A workers.analysis worker -Q analysis", true);
    else if (state === "waiting") this.progress("waiting for a worker …");
    else { this.say(""); this.progress(total > 1 ? `${done} of ${total}` : "computing …"); }
    if (rows?.length) this.table.show(rows);
  }

  facts({ completions, of, tokens, minibatches, moments, described }) {
    const some = of > completions ? `${completions} of ${of} completions recorded` : `${completions} completions`;
    const parts = [`Step ${this.step}`, some, `${tokens.toLocaleString()} tokens`];
    if (minibatches > 1) parts.push(`${minibatches} updates`);
    if (!described) parts.push("an older file: knobs at their starting values");
    if (!moments) parts.push("no moments recorded: entropy change estimated");
    this.part("facts").textContent = parts.join(" · ");
  }

  progress(text) { this.part("progress").textContent = text; }

  say(text, problem = false) {
    this.part("empty").textContent = text;
    this.part("empty").classList.toggle("is-problem", problem);
  }

  choose(preset) {
    if (preset === this.preset) return;
    Object.assign(this, { preset, parts: [], ready: null });
    url.set({ whatif: preset });
    this.table.choose(preset);
    if (!preset) {
      this.stop();
      this.part("settings").replaceChildren();
      this.reader.setMode("weight");
      return this.mark();
    }
    if (!this.isPainting) this.reader.setMode("whatif");
    this.loadTokens();
    return this.loadSettings();
  }

  async loadTokens() {
    this.tokensTurn?.abort();
    this.table.choose(this.preset);
    if (!this.preset) return this.mark();
    const { signal } = (this.tokensTurn = new AbortController());
    const { bundle, preset } = this, objective = JSON.stringify({ preset, parts: this.parts });
    this.root.classList.add("is-computing");
    this.complain(null);
    this.mark("computing …");
    try {
      const response = await computed(`${this.address("tokens")}?objective=${encodeURIComponent(objective)}`, { signal });
      const answer = decode(await response.arrayBuffer());
      if (signal.aborted) return undefined;
      attach(bundle, answer);
      this.ready = answer.row;
      if (this.parts.length) this.table.replace(answer.row); else this.table.choose(preset);
      this.reader.repaint();
      return this.mark();
    } catch (error) {
      if (signal.aborted) return undefined;
      this.complain(error);
      return undefined;
    } finally {
      if (!signal.aborted) this.root.classList.remove("is-computing");
    }
  }

  async loadSettings() {
    const host = this.part("settings"), { preset } = this;
    if (host.dataset.preset === preset && host.children.length) return;
    const response = await fetch(`${this.urls.settings}?preset=${encodeURIComponent(preset)}`);
    if (!response.ok || preset !== this.preset) return;
    // Our own template, escaped by the server.
    host.replaceChildren(document.createRange().createContextualFragment(await response.text()));
    host.dataset.preset = preset;
    this.controls = new Controls(host, () => {
      clearTimeout(this.changing);
      this.changing = setTimeout(() => this.changed(), SETTLE);
    });
  }

  changed() {
    const asked = this.controls.question();
    if (!asked) return;
    this.parts = asked.parts;
    if (!this.parts.length) this.table.edited = null;
    this.loadTokens();
  }

  complain(error) {
    if (!error) { this.controls?.complain("", ""); return; }
    if (!this.controls?.complain(error.field ?? "", error.message)) this.mark(error.message, true);
    else this.mark();
  }

  /** Say what is chosen, and which colours can be had. */
  mark(text = "", problem = false) {
    const row = this.table.rows.find(({ preset, refused }, at) => (this.preset ? at > 0 && preset === this.preset && !refused : at === 0));
    const chosen = this.ready ?? row;
    const title = chosen ? [el("b", {}, this.preset ? chosen.title : `This run: ${chosen.title}`)] : [el("span.text-secondary", {}, "Choose an objective to see what it would do to each token.")];
    const notes = (chosen?.notes ?? []).map((note) => el("p", {}, `${note[0].toUpperCase()}${note.slice(1)}.`));
    this.part("chosen").replaceChildren(...title, ...notes, ...(text ? [el(`p${problem ? ".is-problem" : ""}`, {}, text)] : []));
    for (const button of this.panel.querySelectorAll("[data-paint]")) {
      const { paint } = button.dataset;
      button.disabled = paint !== "weight" && !this.preset;
      button.setAttribute("aria-checked", String(this.reader.mode === paint));
      button.tabIndex = this.reader.mode === paint || (!PAINTS.includes(this.reader.mode) && paint === "weight") ? 0 : -1;
    }
    this.reader.allow(this.preset ? ["whatif", "difference"] : []);
  }

  paint(name) { if (name) this.reader.setMode(name); }

  get paints() { return this.preset ? PAINTS : PAINTS.slice(0, 1); }

  cycle(by = 1) {
    if (this.panel.hidden) return;
    const { paints } = this;
    this.reader.setMode(paints[(paints.indexOf(this.reader.mode) + by + paints.length) % paints.length]);
  }

  arrows(event) {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.cycle(by);
    this.panel.querySelector(`[data-paint="${this.reader.mode}"]`)?.focus();
  }
}
