// Completions being generated right now, token by token, from live frames. Lossy: a gap is shown as one.

import { el } from "./dom.js";
import { number } from "./format.js";
import { END, PROGRESS, PROMPT, TOKENS } from "./frames.js";
import { visible } from "./glyphs.js";
import { TokenText } from "./heatmap.js";

const SHOWN = 16;

export class LiveRollouts {
  constructor(root, mode) {
    Object.assign(this, { root, mode, key: "", rows: new Map() });
    this.list = root.querySelector("[data-live-list]");
    this.note = root.querySelector("[data-live-note]");
    this.idle = root.querySelector("[data-live-idle]");
    document.addEventListener("run:frames", ({ detail }) => this.take(detail));
    document.addEventListener("run:colour", ({ detail }) => this.recolour(detail));
  }

  take(frames) {
    // What came before the newest step of this batch would be thrown away at once.
    const newest = frames.findLastIndex((frame) => frame.kind !== PROGRESS && this.keyOf(frame) !== this.keyOf(frames.at(-1)));
    for (const frame of frames.slice(newest + 1)) this.frame(frame);
  }

  keyOf({ attempt, step }) { return `${attempt}:${step}`; }

  frame(frame) {
    if (frame.kind === PROGRESS) return;
    if (this.keyOf(frame) !== this.key) this.reset(frame);
    const row = this.row(frame.rollout);
    if (!row) return;
    if (frame.kind === PROMPT) row.prompt.textContent = visible(String(frame.payload.prompt ?? ""));
    if (frame.kind === TOKENS) this.tokens(row, frame);
    if (frame.kind === END) row.element.classList.add("is-done");
  }

  reset(frame) {
    this.key = this.keyOf(frame);
    this.rows.forEach(({ text }) => text.destroy());
    this.rows.clear();
    this.list.replaceChildren();
    this.idle.hidden = true;
    this.note.textContent = `step ${frame.step}`;
  }

  row(rollout) {
    if (!this.rows.has(rollout)) {
      if (this.rows.size >= SHOWN) return null;
      const prompt = el("span.live-prompt"), body = el("span.live-text"), facts = el("span.live-facts");
      const element = el("div.live-row", {}, prompt, body, facts);
      this.list.append(element);
      this.rows.set(rollout, { element, prompt, facts, text: new TokenText(body, this.mode), next: 0 });
    }
    return this.rows.get(rollout);
  }

  tokens(row, { first, count, payload }) {
    if (first < row.next) return; // repeated after a reconnect
    if (first > row.next) row.text.element.append(el("span.live-gap", { title: `${first - row.next} tokens were not seen` }, "…"));
    row.next = first + count;
    row.text.append(payload);
    const { entropy } = row.text.columns;
    row.facts.textContent = `${row.next} tok · H ${number(entropy.reduce((sum, value) => sum + value, 0) / entropy.length, 3)}`;
  }

  recolour(mode) {
    this.mode = mode;
    this.rows.forEach(({ text }) => text.recolour(mode));
  }
}
