// The tree of a group: its picture, what one branch of it says, and the same as a list.

import { el } from "./dom.js";
import { number } from "./format.js";
import { install } from "./heatmap.js";
import { rewardRange } from "./reward_colours.js";
import { onTheme } from "./theme_colours.js";
import { groupTree, placed } from "./tree.js";
import { picture } from "./tree_picture.js";
import { opening, sentence, summary, textOf } from "./tree_words.js";

const LAST = 400; // signs of a branch's text in the panel

export class TreeView {
  /** `open(rollout, token)` shows a token in the list of completions; `used()` hears that somebody reads the tree. */
  constructor(element, { open, used }) {
    Object.assign(this, { element, open, used, at: 0, tree: null });
    install(); // the colours of the scale
    this.part = (name) => element.querySelector(`[data-tree-${name}]`);
    this.part("picture").addEventListener("keydown", (event) => this.key(event));
    for (const type of ["click", "focusin"]) this.part("picture").addEventListener(type, ({ target }) => this.pointed(target));
    element.addEventListener("click", ({ target }) => this.act(target.closest("[data-tree-go], [data-tree-open]")?.dataset));
    this.part("as-list").addEventListener("toggle", () => this.list());
    new ResizeObserver(() => this.draw()).observe(this.part("picture"));
    onTheme(() => this.draw(true));
  }

  /** Show the tree of completions of one prompt, or say why there is none. */
  show(rollouts, why = "") {
    const root = rollouts && groupTree(rollouts);
    this.tree = root && root.members.length > 1 ? placed(root) : null;
    this.at = 0;
    this.part("empty").textContent = this.tree ? "" : why || "One completion has no tree: there is nothing to compare it with.";
    this.part("empty").hidden = Boolean(this.tree);
    this.part("body").hidden = !this.tree;
    if (!this.tree) return;
    const [low, high] = rewardRange(root.members);
    this.part("low").textContent = number(low);
    this.part("high").textContent = number(high);
    this.draw(true);
    this.list();
    this.say();
  }

  draw(again = false) {
    const width = Math.floor(this.part("picture").clientWidth);
    if (!this.tree || !width || (!again && width === this.width)) return;
    this.width = width;
    const focused = this.part("picture").contains(document.activeElement);
    const { svg, items } = picture(this.tree, width, `Tree of ${this.tree.all[0].node.members.length} completions`);
    this.items = items;
    this.part("picture").replaceChildren(svg);
    this.mark();
    if (focused) this.items[this.at].focus({ preventScroll: true });
  }

  mark() {
    this.items?.forEach((item, at) => {
      item.setAttribute("tabindex", at === this.at ? "0" : "-1");
      item.setAttribute("aria-selected", String(at === this.at));
    });
  }

  pointed(target) {
    const item = target.closest?.("[data-node]");
    if (item) this.choose(Number(item.dataset.node), { focus: false });
  }

  choose(at, { focus = true } = {}) {
    if (at === this.at && !focus) return;
    this.at = at;
    this.used();
    this.mark();
    if (focus) this.items[at].focus();
    this.say();
  }

  /** Arrows walk the tree as in any tree: up and down through all, left to what came before, right into it. */
  key(event) {
    const { all } = this.tree, item = all[this.at];
    const moves = {
      ArrowDown: Math.min(all.length - 1, this.at + 1), ArrowUp: Math.max(0, this.at - 1),
      ArrowLeft: Math.max(0, item.parent), ArrowRight: item.node.children.length ? this.at + 1 : this.at, Home: 0, End: all.length - 1,
    };
    if (event.key === "Enter" || event.key === " ") this.open(item.node.members[0], this.readingAt(item.node));
    else if (event.key in moves) this.choose(moves[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** The token to read a branch at: where ways part, else where it leaves the others. */
  readingAt({ children, from, to, members }) { return Math.min(children.length ? to : from, members[0].tokens - 1); }

  act({ treeGo: go, treeOpen: open } = {}) {
    if (go !== undefined) this.choose(Number(go));
    if (open === undefined) return;
    const { node } = this.tree.all[this.at];
    this.open(node.members[Number(open)], this.readingAt(node));
  }

  /** Tell of the chosen branch: its text, how it fared, the ways on. */
  say() {
    const { all } = this.tree, { node } = all[this.at], [one] = node.members;
    const text = textOf(one, node.from, node.to), cut = text.length > LAST ? `…${text.slice(-LAST)}` : text;
    const ways = all.map(({ parent, node: child }, at) => ({ at, parent, child })).filter(({ parent }) => parent === this.at);
    const heads = ["Way on", "completions", "right", "mean reward"].map((name, at) => el("th", { scope: "col", className: at ? "text-end" : "" }, name));
    const rows = ways.map(({ at, child }) => el("tr", {},
      el("th", { scope: "row" }, el("button.tree-way", { type: "button", "data-tree-go": at }, opening(child, 24) || "(ends)")),
      ...[child.members.length, `${child.right} of ${child.graded}`, number(child.reward)].map((value) => el("td.text-end", {}, String(value)))));
    this.part("facts").replaceChildren(
      el("p", {}, `${summary(node)}.`),
      cut ? el("div.tree-text", {}, cut) : "",
      ways.length ? el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows)) : "",
      el("div.tree-open", {}, "Read ", ...node.members.slice(0, 12).map(({ sample }, at) => el("button.btn.btn-sm", { type: "button", "data-tree-open": at }, `${sample + 1}`))));
  }

  /** The same as nested lists, made only where somebody unfolds them. */
  list() {
    const box = this.part("as-list"), place = this.part("items");
    if (!this.tree || !box.open) return place.replaceChildren();
    const { all } = this.tree, lists = [];
    all.forEach(({ node, parent }, at) => {
      const children = el("ul"), entry = el("li", {}, el("button", { type: "button", "data-tree-go": at }, sentence(node)));
      lists[at] = { entry, children };
      if (parent < 0) return;
      lists[parent].children.append(entry);
      if (!lists[parent].children.parentElement) lists[parent].entry.append(lists[parent].children);
    });
    return place.replaceChildren(el("ul", {}, lists[0].entry));
  }
}
