// One completion while it is generated: its last tokens, and, while it is shown, its line of the list.

import { el } from "./dom.js";
import { short } from "./entropies.js";
import { joined } from "./frames.js";
import { visible } from "./glyphs.js";
import { TokenText } from "./heatmap.js";

const RING = 4096; // tokens kept and shown of one completion; earlier ones give way
const PREFIX = 400; // characters shown of what a fork took over

export class LiveRow {
  /** `about` is the payload of its PROMPT frame, `parent` the row that it forks off. */
  constructor(about, parent) {
    Object.assign(this, { about, parent, pieces: [], fresh: [], waiting: 0, kept: 0, next: about.prefix_tokens ?? 0, sum: 0, bounds: null, count: 0, lost: 0, ended: null });
    this.depth = parent ? parent.depth + 1 : 0;
  }

  descendsFrom(row) { return this.parent === row || Boolean(this.parent?.descendsFrom(row)); }

  tokens(first, count, payload) {
    if (first < this.next) return; // repeated after a reconnect
    if (first > this.next) this.keep({ gap: first - this.next });
    this.next = first + count;
    this.count += count;
    for (const value of payload.entropy) this.sum += value;
    if (payload.low) this.bounds = [payload.low, payload.high].map((ends, at) => ends.reduce((sum, end) => sum + end, this.bounds?.[at] ?? 0));
    this.keep({ payload, count });
  }

  keep(piece) {
    this.pieces.push(piece);
    this.fresh.push(piece);
    this.waiting += piece.count ?? 0;
    if (this.waiting > RING) this.fresh.length = 0; // too many for one paint: the text begins anew, from the ring
    this.kept += piece.count ?? 0;
    while (this.kept > RING && this.pieces.length > 1) this.drop(this.pieces.shift());
  }

  drop({ count = 0, gap = 0 }) {
    this.kept -= count;
    this.lost += count + gap;
  }

  end(payload) {
    if (this.ended) return;
    this.ended = payload;
    this.fresh.push({ tail: String(payload.tail ?? "") });
  }

  /** Show the row's text from what is kept of it. */
  attach(mode, withPrompt) {
    const { about } = this;
    this.mode = mode;
    this.facts = document.createTextNode(""); // written anew, not replaced: an element less to lay out at each paint
    this.body = el("span.live-text");
    const label = withPrompt ? visible(String(about.prompt ?? "")) : "";
    const kind = about.auxiliary ? `${about.sample} aux` : `${about.sample}`;
    this.element = el("div.live-row", {},
      withPrompt ? el("span.live-prompt", { title: label.slice(0, 600) }, label) : el("span.live-sample", { title: `sample ${kind}` }, `#${kind}`),
      el("span.live-scroll", {}, el("span", {}, this.prefix(), this.body)), el("span.live-facts", {}, this.facts));
    this.element.classList.toggle("has-prompt", withPrompt);
    this.element.style.setProperty("--depth", this.depth);
    if (this.depth) this.element.classList.add("is-fork");
    this.begin();
  }

  prefix() {
    if (!this.about.prefix) return "";
    const { prefix, fork_at: at } = this.about, shown = prefix.length > PREFIX ? `…${prefix.slice(-PREFIX)}` : prefix;
    return el("span.live-prefix", { title: `${at} tokens shared with the completion above` }, visible(shown));
  }

  begin() {
    this.text?.destroy();
    this.body.replaceChildren();
    this.text = new TokenText(this.body, this.mode);
    this.text.first = this.lost + (this.about.prefix_tokens ?? 0);
    this.fresh = [...this.pieces, ...(this.ended ? [{ tail: String(this.ended.tail ?? "") }] : [])];
    this.waiting = this.kept;
    if (this.lost) this.gap(this.lost);
  }

  detach() {
    this.text?.destroy();
    this.element?.remove();
    [this.text, this.element] = [null, null];
  }

  /** Put what came since the last paint on the page. */
  flush() {
    if (!this.element) { [this.fresh, this.waiting] = [[], 0]; return; }
    if (!this.fresh.length && !this.waiting) return;
    if (this.waiting > RING || this.text.count > 2 * RING) this.begin();
    let run = [];
    const write = () => { if (run.length) this.text.append(joined(run)); run = []; };
    for (const { payload, gap, tail } of this.fresh) {
      if (payload) { run.push(payload); continue; }
      write();
      if (gap) this.gap(gap);
      else this.finish(tail);
    }
    write();
    [this.fresh, this.waiting] = [[], 0];
    this.say();
  }

  gap(count) {
    this.text.interrupt(el("span.live-gap", { title: `${count.toLocaleString("en")} tokens are not shown` }, "…"));
  }

  finish(tail) {
    this.text.end(tail);
    this.element.dataset.ended = ""; // a class would have the whole row styled anew
  }

  say() {
    const how = { length: " · cut off", pruned: " · pruned" }[this.ended?.finish_reason] ?? "";
    this.facts.data = `${this.next} tok · ${short(this.sum / this.count, this.bounds?.map((sum) => sum / this.count))}${how}`;
  }
}
