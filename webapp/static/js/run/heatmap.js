// One coloured text: plain text nodes in chunks, coloured by CSS highlights near the viewport only.
//
// No element per token, so selection, find-in-page and screen readers keep working and no model output becomes HTML.
// Cut into spans of the same class names instead are the end of a text that grows and, where CSS highlights are missing
// or do not inherit, chunks near the viewport.

import { layout, visible } from "./glyphs.js";
import { LIMITS, SIGNED, binName, isClamped, names, rules, sequentialBin } from "./scale.js";
import { onTheme, theme } from "./theme_colours.js";

export const CHUNK = 256;
export const MASKED = 1, UNGRADED = 2, AUXILIARY = 4, CONTEXT = 16; // of trainer/recorder.py
const FORK_SHARE = 0.2;
const MARKED = {
  fork: (text, t) => text.forks?.[t], masked: (text, t) => text.isMasked(t), clipped: (text, t) => text.isClipped(t),
  context: (text, t) => text.isContext(t), branch: (text, t) => text.branches?.has(t),
};
const MARKS = [...Object.keys(MARKED), "pinned"];
const KIND_MASKED = 3, KIND_CLIPPED = 4; // of trainer/whatif/effect.py

const registry = new Map();
export const highlights = typeof CSS !== "undefined" && Boolean(CSS.highlights) && typeof Highlight === "function" && inherit();

/** Do elements inherit highlights from the root, where the scale's rules are (scale.js)? */
function inherit() {
  const sheet = new CSSStyleSheet(), before = document.adoptedStyleSheets;
  sheet.replaceSync(":root::highlight(inherited){color:rgb(1, 2, 3)}");
  document.adoptedStyleSheets = [...before, sheet];
  const found = getComputedStyle(document.body, "::highlight(inherited)").color === "rgb(1, 2, 3)";
  document.adoptedStyleSheets = before;
  return found;
}

/** Install the scale's style sheet and the shared highlights; marks lie over colours. Safe to call again. */
export function install() {
  if (registry.size) return;
  const sheet = new CSSStyleSheet(), fill = () => sheet.replaceSync(rules(theme()));
  fill();
  onTheme(fill);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  for (const name of [...names(), ...MARKS]) {
    if (!highlights) { registry.set(name, null); continue; }
    const highlight = new Highlight();
    highlight.priority = MARKS.includes(name) ? 1 + MARKS.indexOf(name) : 0;
    registry.set(name, highlight);
    CSS.highlights.set(name, highlight);
  }
}

const near = new IntersectionObserver(
  (entries) => entries.forEach(({ target, isIntersecting }) => target.heatmapChunk?.show(isIntersecting)),
  { rootMargin: "800px 0px" },
);

/** The value that colours token `t` under `mode`. */
export function valueOf(columns, mode, t) {
  if (mode === "surprisal") return columns.logprob ? -columns.logprob[t] : 0;
  return columns[mode]?.[t] ?? 0;
}

class Chunk {
  /** An `open` chunk grows: it is made of spans, for any change of a highlight paints every highlighted text anew. */
  constructor(owner, from, to, open) {
    Object.assign(this, { owner, from, to, open, near: false, ranges: [] });
    this.element = document.createElement("span");
    this.element.className = "tokens-chunk";
    this.element.heatmapChunk = this;
    this.node = document.createTextNode("");
    this.element.append(this.node);
  }

  get base() { return this.owner.starts[this.from]; }

  /** Write the text of the chunk's tokens; needed again only when tokens were appended. */
  write() {
    this.node.data = this.owner.shown.slice(this.base, this.owner.starts[this.to]);
  }

  show(isNear) {
    this.near = isNear;
    if (isNear) this.paint(); else this.clear();
  }

  /** Take tokens up to `to` in; a chunk that is full is open no more. */
  extend(to) {
    const from = this.to;
    this.to = to;
    this.open &&= to - this.from < CHUNK;
    if (this.open) this.element.append(...this.pieces(from)); else this.settle();
  }

  /** Show a chunk that grows no more: coloured when it comes near the viewport. */
  settle() {
    this.write();
    this.clear();
    near.observe(this.element);
  }

  clear() {
    for (const [name, range] of this.ranges) registry.get(name)?.delete(range);
    this.ranges = [];
    if (this.element.firstChild !== this.node) this.element.replaceChildren(this.node);
  }

  paint() {
    this.clear();
    if (this.open || (this.near && !highlights)) this.element.replaceChildren(...this.pieces(this.from));
    else if (this.near) this.runs((name, a, b) => this.range(name, a, b));
  }

  range(name, a, b) {
    const range = new StaticRange({ startContainer: this.node, startOffset: a, endContainer: this.node, endOffset: b });
    registry.get(name).add(range);
    this.ranges.push([name, range]);
  }

  /** Call `emit(name, start, end)` for every stretch of neighbours with the same colour, fork mark or mask mark. */
  runs(emit) {
    const { owner, base } = this;
    const marks = Object.entries(MARKED).map(([name, is]) => (t) => (is(owner, t) ? name : ""));
    for (const nameOf of [(t) => owner.colourOf(t), ...marks]) {
      let name = "", start = 0;
      for (let t = this.from; t <= this.to; t += 1) {
        const next = t < this.to ? nameOf(t) : "";
        if (next === name) continue;
        const at = owner.starts[t] - base;
        if (name && at > start) emit(name, start, at);
        [name, start] = [next, at];
      }
    }
  }

  /** Spans of the chunk's tokens from `from` on. */
  pieces(from) {
    const { owner } = this, parts = [];
    for (let t = from; t < this.to; t += 1) {
      const piece = owner.textOf(t);
      if (!piece) continue;
      const span = document.createElement("span");
      span.className = [owner.colourOf(t), ...Object.keys(MARKED).filter((name) => MARKED[name](owner, t))].filter(Boolean).join(" ");
      span.textContent = piece;
      parts.push(span);
    }
    return parts;
  }
}

/** A completion's text in `element`; `columns` are typed arrays, or arrays that grow while it is generated. */
export class TokenText {
  constructor(element, mode) {
    install();
    Object.assign(this, { element, mode, chunks: [], shown: "", starts: [0], columns: {}, count: 0, forks: null });
    element.classList.add("tokens");
    element.tokenText = this;
  }

  /** Show a whole completion. */
  load(text, columns, count) {
    const { shown, starts } = layout(text, columns.byte_offsets ?? [], count);
    Object.assign(this, { shown, starts, columns, count, forks: forkTokens(columns.entropy, count, columns.flags) });
    this.grow(0, false);
    this.element.replaceChildren(...this.chunks.map((chunk) => chunk.element));
    if (!count) this.element.textContent = visible(text);
  }

  /** Append live tokens: `lengths` are UTF-8 bytes of each within `text`. */
  append({ ids, lengths, entropy, logprob, low, high, text }) {
    const offsets = new Uint32Array(ids.length);
    for (let t = 1; t < ids.length; t += 1) offsets[t] = offsets[t - 1] + lengths[t - 1];
    const { shown, starts } = layout(text, offsets, ids.length), before = this.shown.length, from = this.count;
    this.shown += shown;
    for (let t = 1; t <= ids.length; t += 1) this.starts.push(before + starts[t]);
    for (const [name, values] of Object.entries({ token_ids: ids, entropy, logprob, entropy_low: low, entropy_high: high })) {
      if (values) (this.columns[name] ??= new Array(from).fill(NaN)).push(...values);
    }
    this.count += ids.length;
    this.grow(from, true);
  }

  /** Put an element behind the tokens so far; what is appended next comes behind it. */
  interrupt(element) {
    this.element.append(element);
    this.broken = true;
  }

  /** Show what the last token's bytes come to, now that nothing follows. */
  end(text) {
    if (!text || !this.count) return;
    this.shown += visible(text);
    this.starts[this.count] = this.shown.length;
    this.chunks.at(-1).write();
    this.chunks.at(-1).paint();
  }

  grow(from, open) {
    const last = this.broken ? null : this.chunks.at(-1);
    this.broken = false;
    if (last && last.to - last.from < CHUNK && last.to === from) {
      from = Math.min(this.count, last.from + CHUNK);
      last.extend(from);
    }
    for (; from < this.count; from += CHUNK) {
      const to = Math.min(this.count, from + CHUNK), chunk = new Chunk(this, from, to, open && to - from < CHUNK);
      this.chunks.push(chunk);
      this.element.append(chunk.element);
      if (chunk.open) chunk.paint(); else chunk.settle();
    }
  }

  /** Mark where completions fork: {token: sentence} (lineage.js). */
  mark(branches) { this.branches = branches; }

  /** Was token t read by the model only? */
  isContext(t) { return Boolean(this.columns.flags?.[t] & CONTEXT); }

  colourOf(t) {
    if (this.isContext(t)) return "";
    const name = binName(this.mode, valueOf(this.columns, this.mode, t));
    return name && this.mode !== "difference" && this.isMasked(t) ? `faded-${name}` : name;
  }

  /** What the objective in view did to token t: the run's own, or the one of What if. */
  kindOf(t) {
    const { columns, mode } = this;
    if (mode === "whatif") return columns.whatif_kind?.[t];
    if (mode !== "difference") return columns.own_kind?.[t];
    return columns.whatif_kind?.[t] === columns.own_kind?.[t] ? undefined : columns.whatif_kind?.[t];
  }

  isMasked(t) {
    if (this.mode === "whatif" || this.mode === "difference") return this.kindOf(t) === KIND_MASKED;
    return Boolean(this.columns.flags?.[t] & (MASKED | UNGRADED));
  }

  isClipped(t) { return SIGNED.has(this.mode) && this.kindOf(t) === KIND_CLIPPED; }

  recolour(mode) {
    this.mode = mode;
    for (const chunk of this.chunks) chunk.paint();
  }

  destroy() {
    for (const chunk of this.chunks) { near.unobserve(chunk.element); chunk.clear(); }
    this.unpin();
    this.chunks = [];
  }

  /** Return the token that covers position `at` of the shown text. */
  tokenAt(at) {
    let low = 0, high = this.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= at) low = middle; else high = middle - 1;
    }
    return low;
  }

  /** How many tokens make up token t's text: those before it that cover nothing began its character. */
  sharing(t) {
    let first = t;
    while (first > 0 && this.starts[first - 1] === this.starts[t]) first -= 1;
    return t - first + 1;
  }

  textOf(t) { return this.shown.slice(this.starts[t], this.starts[t + 1]); }

  chunkOf(t) { return this.chunks.find(({ to }) => t < to); }

  /** Return a Range over token t, or null where it covers nothing. */
  rangeOf(t) {
    const chunk = this.chunkOf(t);
    if (!chunk) return null;
    const range = document.createRange();
    const [a, b] = [this.starts[t] - chunk.base, this.starts[t + 1] - chunk.base];
    const [startNode, startAt] = place(chunk.element, a), [endNode, endAt] = place(chunk.element, b, true);
    range.setStart(startNode, startAt);
    range.setEnd(endNode, endAt);
    return range;
  }

  pin(t) {
    this.unpin();
    const range = this.rangeOf(t);
    if (!range) return;
    this.pinned = range;
    registry.get("pinned")?.add(range);
  }

  unpin() {
    if (this.pinned) registry.get("pinned")?.delete(this.pinned);
    this.pinned = null;
  }

  /** Next fork token behind (direction 1) or before (-1) token t, or -1. */
  nextFork(t, direction) {
    for (let at = t + direction; at >= 0 && at < this.count; at += direction) if (this.forks?.[at]) return at;
    return -1;
  }
}

/** Text node and offset of character `at` within a chunk, whether it is one text node or many spans. */
function place(element, at, end = false) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  let node = walker.nextNode(), last = node;
  while (node) {
    if (at < node.length || (end && at <= node.length)) return [node, at];
    at -= node.length;
    last = node;
    node = walker.nextNode();
  }
  return [last, last.length];
}

/** Mark the top fifth of a completion's tokens by entropy (arXiv 2506.01939); tokens without entropy never fork, nor does context. */
export function forkTokens(entropy, count, flags) {
  if (!entropy || !count) return null;
  const own = (_, t) => !(flags?.[t] & CONTEXT), sorted = Float32Array.from(entropy).filter(own).sort();
  if (!sorted.length) return null;
  const floor = sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * (1 - FORK_SHARE)))];
  return Uint8Array.from(entropy, (value, t) => (value > 0 && value >= floor && own(value, t) ? 1 : 0));
}

/** Find the token under a point of the page: {text, token} or null. */
export function hit(x, y) {
  const [node, offset] = caret(x, y);
  const chunk = node?.parentElement?.closest(".tokens-chunk")?.heatmapChunk;
  if (!chunk || node.nodeType !== Node.TEXT_NODE) return null;
  let at = offset;
  const range = document.createRange();
  range.setStart(node, Math.max(0, at - 1));
  range.setEnd(node, at);
  // A caret lies between characters: over the right half of one it is behind it.
  if (at > 0 && [...range.getClientRects()].some((box) => x >= box.left && x < box.right && y >= box.top && y < box.bottom)) at -= 1;
  for (let span = node.parentElement === chunk.element ? null : node.parentElement.previousSibling; span; span = span.previousSibling) {
    at += span.textContent.length;
  }
  if (at >= chunk.owner.starts[chunk.to] - chunk.base) return null;
  return { text: chunk.owner, token: chunk.owner.tokenAt(chunk.base + at) };
}

function caret(x, y) {
  if (document.caretPositionFromPoint) {
    const position = document.caretPositionFromPoint(x, y);
    return position ? [position.offsetNode, position.offset] : [null, 0];
  }
  const range = document.caretRangeFromPoint?.(x, y);
  return range ? [range.startContainer, range.startOffset] : [null, 0];
}

/** Count tokens in each of the 16 sequential bins, and those beyond the limit. */
export function histogram(texts, mode) {
  const bins = new Array(16).fill(0);
  let clamped = 0;
  for (const { columns, count } of texts) {
    for (let t = 0; t < count; t += 1) {
      if (columns.flags?.[t] & CONTEXT) continue;
      const value = Math.abs(valueOf(columns, mode, t));
      bins[sequentialBin(value, LIMITS[mode])] += 1;
      if (isClamped(mode, value)) clamped += 1;
    }
  }
  return { bins, clamped };
}
