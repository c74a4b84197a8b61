// The reader: recorded steps, their prompts and completions, coloured token by token.

import { decodeBundle } from "./bundle.js";
import { el } from "./dom.js";
import { legend } from "./legend.js";
import { Inspector } from "./inspector.js";
import { groupList } from "./group_list.js";
import { groupFacts, groupHead, rolloutCard } from "./rollout_card.js";
import { MODES } from "./scale.js";
import { TreeView } from "./tree_view.js";
import * as url from "./url_state.js";

const BATCH = 24, BATCH_TOKENS = 12_000, FOLLOW = 1000, FOLLOW_SHARE = 10, CACHED = 6;
const SORTS = { sample: null, reward: (r) => r.reward ?? -Infinity, entropy: (r) => r.meanEntropy, length: (r) => r.tokens };
const FILTERS = { all: () => true, right: (r) => r.right, wrong: (r) => !r.right, cut: (r) => r.finish_reason === "length" };

export class Reader {
  constructor(root, { indexUrl, rolloutUrl, vocabulary }) {
    Object.assign(this, { root, indexUrl, rolloutUrl, steps: [], step: null, bundle: null, cards: [], at: -1, cache: new Map(), fresh: 0 });
    this.part = (name) => root.querySelector(`[data-reader-${name}]`);
    this.inspector = new Inspector(root, vocabulary);
    this.mode = MODES.includes(url.get("colour")) ? url.get("colour") : "entropy";
    this.sort = url.get("sort") in SORTS ? url.get("sort") : "sample";
    this.filter = url.get("show") in FILTERS ? url.get("show") : "all";
    this.group = url.get("group") === "" ? null : url.get("group");
    this.view = url.get("view") === "tree" ? "tree" : "list";
    this.tree = new TreeView(this.part("tree"), { open: (rollout, token) => this.jump(rollout.index, token), used: () => this.follow && this.freeze(this.step) });
    this.follow = url.get("step") === "";
    this.sentinel = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.more(), { rootMargin: "600px 0px" });
    this.sentinel.observe(this.part("more"));
    this.bind();
    document.addEventListener("run:events", ({ detail }) => this.take(detail));
  }

  bind() {
    const { part } = this;
    for (const name of ["colour", "sort", "show"]) part(name).value = { colour: this.mode, sort: this.sort, show: this.filter }[name];
    part("colour").addEventListener("change", ({ target }) => this.setMode(target.value));
    part("sort").addEventListener("change", ({ target }) => { this.sort = target.value; url.set({ sort: target.value === "sample" ? null : target.value }); this.render(); });
    part("show").addEventListener("change", ({ target }) => { this.filter = target.value; url.set({ show: target.value === "all" ? null : target.value }); this.render(); });
    part("slider").addEventListener("input", ({ target }) => this.choose(Number(target.value)));
    part("frozen").addEventListener("click", () => this.setFollow(true));
    this.root.addEventListener("click", ({ target }) => this.act(target.closest("[data-reader-act]")?.dataset.readerAct));
    this.root.addEventListener("click", ({ target }) => this.goTo(target.closest("[data-go-rollout]")?.dataset));
    this.root.addEventListener("token:pinned", ({ detail }) => this.pinned(detail));
    document.addEventListener("run:open-step", ({ detail }) => this.open(detail));
    document.addEventListener("run:tab", () => this.follow && this.bundle && this.step !== this.steps.at(-1)?.step && this.followSoon());
  }

  /** Buttons of the toolbar; keys click them too. */
  act(name) {
    const actions = {
      "step-back": () => this.walk(-1), "step-forward": () => this.walk(1), follow: () => this.setFollow(!this.follow),
      next: () => this.focus(this.at + 1), previous: () => this.focus(Math.max(0, this.at - 1)),
      "next-group": () => this.walkGroup(1), "previous-group": () => this.walkGroup(-1),
      fork: () => this.fork(1), "fork-back": () => this.fork(-1),
      tree: () => this.setView(this.view === "tree" ? "list" : "tree"),
      colour: () => this.cycleMode(1), "colour-back": () => this.cycleMode(-1), link: () => copyLink(), unpin: () => this.inspector.unpin(),
    };
    if (name && this.steps.length && !this.hidden) actions[name]();
  }

  get hidden() { return this.root.offsetParent === null; }

  /** Read the list of recorded steps and show one: that of the address, else the newest. */
  async start() {
    const answer = await fetch(this.indexUrl);
    if (!answer.ok) return this.say(`The list of recorded steps could not be read (${answer.status}); reload the page.`);
    this.steps = (await answer.json()).steps;
    this.part("slider").max = Math.max(0, this.steps.length - 1);
    this.sayFollow();
    if (!this.steps.length) return this.say("No rollouts are recorded yet. They appear here when the first step is done.");
    const wanted = url.get("step");
    await (wanted === "" ? this.show(this.steps.at(-1)) : this.open(Number(wanted)));
    this.restore();
  }

  /** Show the recorded step nearest to `step`. */
  open(step) {
    if (!this.steps.length) return undefined;
    const nearest = this.steps.reduce((best, one) => (Math.abs(one.step - step) < Math.abs(best.step - step) ? one : best));
    this.freeze(nearest.step);
    return this.show(nearest);
  }

  take(events) {
    const recorded = events.filter((event) => event.type === "rollouts");
    if (!recorded.length) return;
    for (const { step, attempt, completions, tokens, bytes, seq } of recorded) {
      this.steps = [...this.steps.filter((one) => one.step !== step), { step, attempt, completions, tokens, bytes, version: seq }].sort((a, b) => a.step - b.step);
    }
    this.part("slider").max = this.steps.length - 1;
    this.fresh += recorded.length;
    if (this.follow) this.followSoon(); else this.sayFrozen();
    this.saySteps();
  }

  /** Follow at a pace that can be read, and only where somebody looks. */
  followSoon() {
    if (this.following || this.hidden || document.hidden) return;
    // Where drawing is dear, so is each step that nobody has the time to read.
    this.following = setTimeout(async () => {
      const began = performance.now();
      if (this.follow) await this.show(this.steps.at(-1));
      this.cost = performance.now() - began;
      this.following = null;
      if (this.follow && this.step !== this.steps.at(-1)?.step) this.followSoon();
    }, Math.max(FOLLOW, FOLLOW_SHARE * (this.cost ?? 0)));
  }

  setFollow(follow) {
    this.follow = follow;
    this.sayFollow();
    if (!follow) return this.freeze(this.step);
    this.fresh = 0;
    this.sayFrozen();
    url.set({ step: null, rollout: null, token: null });
    if (this.steps.length) this.show(this.steps.at(-1));
    return undefined;
  }

  freeze(step) {
    if (this.follow) this.fresh = 0;
    this.follow = false;
    this.sayFollow();
    url.set({ step });
    this.sayFrozen();
  }

  choose(index) {
    const one = this.steps[index];
    if (!one) return;
    this.freeze(one.step);
    this.step = one.step;
    this.saySteps();
    clearTimeout(this.choosing);
    this.choosing = setTimeout(() => this.show(one), 120);
  }

  walk(by) { this.choose(Math.max(0, Math.min(this.steps.length - 1, this.indexOf(this.step) + by))); }

  indexOf(step) { return this.steps.findIndex((one) => one.step === step); }

  sayFollow() { this.part("follow").setAttribute("aria-pressed", String(this.follow)); }

  sayFrozen() {
    const pill = this.part("frozen");
    pill.hidden = this.follow || !this.fresh;
    pill.textContent = `Frozen: ${this.fresh} new`;
  }

  saySteps() {
    const at = this.indexOf(this.step), one = this.steps[at];
    this.part("slider").value = at;
    this.part("step").textContent = one ? `Step ${one.step}` : "";
    this.part("count").textContent = one ? `${at + 1} of ${this.steps.length} recorded` : "";
    const old = one?.superseded ? ` · attempt ${one.attempt}, replaced later` : "";
    this.part("summary").textContent = this.bundle ? `${this.bundle.rollouts.length} completions · ${this.bundle.tokens.toLocaleString()} tokens${old}` : "";
  }

  say(text) {
    this.clear();
    this.part("list").replaceChildren(el("p.text-secondary.p-3", {}, text));
    this.part("groups").replaceChildren();
  }

  async show(one) {
    this.step = one.step;
    const turn = (this.turn = Symbol(one.step));
    this.root.ariaBusy = "true"; // no class: Tabler's rules for classes would have all of the reader styled anew
    try {
      const bundle = await this.load(one);
      if (turn !== this.turn) return; // another step was chosen meanwhile
      this.bundle = bundle;
      this.render();
      this.root.dispatchEvent(new CustomEvent("reader:shown", { detail: { ...one, bundle } }));
    } catch (error) {
      if (turn === this.turn) this.say(error.message);
    } finally {
      if (turn === this.turn) this.root.ariaBusy = null;
    }
  }

  async load({ step, version }) {
    const key = `${step}:${version}`;
    if (!this.cache.has(key)) {
      const answer = await fetch(`${this.rolloutUrl.replace("/0/", `/${step}/`)}?v=${version}`);
      if (!answer.ok) throw new Error((await answer.text()).slice(0, 300));
      const bundle = decodeBundle(await answer.arrayBuffer());
      bundle.tokens = bundle.rollouts.reduce((sum, { tokens }) => sum + tokens, 0);
      this.cache.set(key, bundle);
      if (this.cache.size > CACHED) this.cache.delete(this.cache.keys().next().value);
    }
    return this.cache.get(key);
  }

  groups() {
    const groups = new Map();
    for (const rollout of this.bundle.rollouts) {
      if (!groups.has(rollout.group)) groups.set(rollout.group, []);
      groups.get(rollout.group).push(rollout);
    }
    return groups;
  }

  clear() {
    this.inspector.unpin();
    this.inspector.hide(); // what it spoke of goes
    this.cards.forEach(({ text }) => text.destroy());
    this.cards = [];
    this.queue = [];
    this.at = -1;
  }

  /** Show the chosen group, or all: grouped as sampled, else as one sorted list. */
  render() {
    if (!this.bundle) return;
    this.clear();
    const groups = this.groups();
    if (this.group !== null && this.group !== "all" && !groups.has(Number(this.group))) this.group = null;
    this.group ??= String(groups.keys().next().value ?? "all");
    groupList(this.part("groups"), groups, { chosen: this.group, total: this.bundle.rollouts.length, choose: (id) => this.setGroup(id) });
    this.renderTree(groups);
    const chosen = this.group === "all" ? [...groups.values()] : [groups.get(Number(this.group)) ?? []];
    const key = SORTS[this.sort], keep = FILTERS[this.filter];
    const order = (rollouts) => (key ? rollouts.filter(keep).sort((a, b) => key(b) - key(a)) : rollouts.filter(keep));
    this.flat = this.group === "all" && Boolean(key);
    if (this.view === "tree") this.queue = this.group === "all" ? [] : [{ head: chosen[0] }];
    else this.queue = this.flat ? order(chosen.flat()) : chosen.flatMap((rollouts) => [{ head: rollouts }, ...order(rollouts)]);
    this.part("list").replaceChildren();
    this.more();
    this.paintLegend();
    this.saySteps();
  }

  paintLegend() {
    const texts = this.bundle?.rollouts.map(({ columns, tokens }) => ({ columns, count: tokens }));
    legend(this.part("legend"), this.mode, texts, this.bundle?.entropy_estimator === "bounds");
  }

  renderTree(groups) {
    this.part("tree").hidden = this.view !== "tree";
    this.part("tree-toggle").setAttribute("aria-pressed", String(this.view === "tree"));
    if (this.view !== "tree") return;
    const why = this.group === "all" ? "A tree is of the completions of one prompt: choose a prompt." : "";
    this.tree.show(groups.get(Number(this.group)) ?? null, why);
  }

  setView(view) {
    this.view = view;
    url.set({ view: view === "tree" ? view : null, ...(view === "tree" ? { rollout: null, token: null } : {}) });
    this.render();
  }

  more() {
    if (!this.queue?.length) return;
    const fragment = document.createDocumentFragment();
    for (let added = 0, tokens = 0; this.queue.length && added < BATCH && tokens < BATCH_TOKENS; added += 1) {
      const item = this.queue.shift();
      if (item.head) { fragment.append(groupHead(item.head[0]?.prompt ?? "", groupFacts(item.head))); continue; }
      const card = rolloutCard(item, this.mode, { withPrompt: this.flat, links: true });
      tokens += item.tokens;
      this.cards.push(card);
      fragment.append(card.element);
    }
    this.part("list").append(fragment);
    if (this.queue.length && this.part("more").getBoundingClientRect().top < innerHeight + 600) requestAnimationFrame(() => this.more());
  }

  setGroup(id) {
    this.group = id;
    url.set({ group: id, rollout: null, token: null });
    this.render();
  }

  walkGroup(by) {
    const ids = ["all", ...[...this.groups().keys()].map(String)];
    const next = ids[ids.indexOf(this.group) + by];
    if (next !== undefined) this.setGroup(next);
    this.part("groups").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
  }

  setMode(mode) {
    this.mode = this.part("colour").value = mode;
    url.set({ colour: mode === "entropy" ? null : mode });
    this.cards.forEach(({ text }) => text.recolour(mode));
    this.paintLegend();
    document.dispatchEvent(new CustomEvent("run:colour", { detail: mode }));
  }

  cycleMode(by = 1) {
    const modes = MODES.filter((mode) => !this.optionOf(mode).disabled);
    this.setMode(modes[(modes.indexOf(this.mode) + by + modes.length) % modes.length]);
  }

  optionOf(mode) { return this.part("colour").querySelector(`[value="${mode}"]`); }

  /** Offer the colours of What if, or take them away. */
  allow(modes) {
    for (const mode of ["whatif", "difference"]) {
      const option = this.optionOf(mode);
      option.hidden = option.disabled = !modes.includes(mode);
    }
  }

  /** Colour again: the columns changed. */
  repaint() {
    this.cards.forEach(({ text }) => text.recolour(this.mode));
    const { pinned } = this.inspector;
    if (pinned) this.inspector.pin(pinned.text, pinned.token);
  }

  focus(at) {
    if (at >= this.cards.length) this.more();
    const card = this.cards[at];
    if (!card) return;
    this.cards[this.at]?.element.classList.remove("is-current");
    this.at = at;
    card.element.classList.add("is-current");
    card.element.scrollIntoView({ block: "nearest" });
  }

  /** Pin the next fork token of the current completion and bring it into view. */
  fork(direction) {
    if (this.at < 0) this.focus(0);
    const text = this.cards[this.at]?.text;
    if (!text) return;
    const pinned = this.inspector.pinned, from = pinned?.text === text ? pinned.token : direction > 0 ? -1 : text.count;
    const token = text.nextFork(from, direction);
    if (token >= 0) this.reveal(text, token);
  }

  reveal(text, token) {
    this.inspector.pin(text, token);
    const box = text.rangeOf(token)?.getBoundingClientRect();
    if (box && (box.top < 80 || box.bottom > innerHeight - 80)) scrollBy({ top: box.top - innerHeight / 2 });
  }

  pinned(pin) {
    if (!pin) return url.set({ rollout: null, token: null });
    const at = this.cards.findIndex(({ text }) => text === pin.text);
    if (at < 0) return undefined;
    if (at !== this.at) this.focus(at);
    if (this.follow) this.freeze(this.step);
    return url.set({ group: this.group, rollout: pin.text.rollout.index, token: pin.token });
  }

  /** Go to the token of the address. */
  restore() {
    if (url.get("rollout") !== "") this.find(Number(url.get("rollout")), Number(url.get("token", "0")));
  }

  /** Show a token of a completion of this step, whatever the list shows now. */
  jump(index, token) {
    const rollout = this.bundle?.rollouts[index];
    if (!rollout) return;
    if (!FILTERS[this.filter](rollout)) this.filter = this.part("show").value = "all";
    if (this.group !== "all") this.group = String(rollout.group);
    this.view = "list";
    url.set({ view: null, show: this.filter === "all" ? null : this.filter });
    this.render();
    this.find(index, token);
  }

  goTo({ goRollout: index, goToken: token } = {}) { if (index !== undefined) this.jump(Number(index), Number(token)); }

  /** Bring a completion into the list as far as it goes, then its token into view. */
  find(index, token) {
    while (this.queue.length && !this.cards.some(({ rollout }) => rollout.index === index)) this.more();
    const at = this.cards.findIndex(({ rollout }) => rollout.index === index);
    if (at < 0) return;
    this.focus(at);
    if (token < this.cards[at].text.count) this.reveal(this.cards[at].text, token);
  }
}

async function copyLink() {
  await navigator.clipboard.writeText(location.href);
  window.toast("Link copied.");
}
