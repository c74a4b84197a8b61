// Rollouts of one prompt, a pane for each run, coloured by the published entropy scale.

import { decodeBundle } from "./run/bundle.js";
import { el } from "./run/dom.js";
import { short } from "./run/entropies.js";
import { visible } from "./run/glyphs.js";
import { install } from "./run/heatmap.js";
import { legend } from "./run/legend.js";
import { groupFacts, rolloutCard } from "./run/rollout_card.js";
import { get, set } from "./run/url_state.js";

const MODE = "entropy";
const KEPT = 24; // bundles kept in memory

export class PromptPanes {
  constructor(section, page) {
    Object.assign(this, { section, page, bundles: new Map(), prompts: [] });
    this.pick = section.querySelector("[data-prompt]");
    this.slider = section.querySelector("[data-progress-at]");
    this.panes = section.querySelector("[data-panes]");
    this.slider.value = get("at", "1");
    this.pick.addEventListener("change", () => { set({ key: this.pick.value }); this.show(); });
    this.slider.addEventListener("input", () => { set({ at: this.slider.value === "1" ? null : this.slider.value }); this.show(); });
    install();
    this.load();
  }

  async load() {
    const answer = await fetch(`${this.page.prompts}?runs=${this.page.runs.map((run) => run.id).join(",")}`);
    this.prompts = answer.ok ? (await answer.json()).prompts : [];
    const options = this.prompts.map(({ key, prompt, steps }) => el("option", { value: key }, `${visible(prompt).slice(0, 90)} · ${Object.keys(steps).length} runs`));
    this.pick.replaceChildren(...options);
    if (!options.length) {
      this.pick.replaceChildren(el("option", {}, "No prompt in common"));
      this.panes.replaceChildren(el("p.text-secondary", {}, "These runs have recorded no prompt in common yet."));
      return;
    }
    const wanted = get("key");
    this.pick.value = this.prompts.some(({ key }) => key === wanted) ? wanted : this.prompts[0].key;
    await this.show();
  }

  async show() {
    const prompt = this.prompts.find(({ key }) => key === this.pick.value);
    if (!prompt) return;
    const ticket = (this.ticket = Symbol("show"));
    const runs = this.page.runs.filter((run) => prompt.steps[run.id]);
    const bundles = await Promise.all(runs.map((run) => this.bundle(run, this.stepAt(prompt.steps[run.id]))));
    if (ticket !== this.ticket) return;
    const texts = [];
    this.panes.replaceChildren(...runs.map((run, index) => this.pane(run, bundles[index], prompt, texts)));
    legend(this.section.querySelector("[data-legend]"), MODE, texts.map((text) => ({ columns: text.columns, count: text.count })), bundles.some((bundle) => bundle?.entropy_estimator === "bounds"));
  }

  /** The step of these nearest to the chosen share of the way from the first to the last. */
  stepAt(steps) {
    const wanted = steps[0] + Number(this.slider.value) * (steps.at(-1) - steps[0]);
    return steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best));
  }

  async bundle(run, step) {
    const url = run.rollout.replace(/\/0\/$/, `/${step}/`);
    if (!this.bundles.has(url)) {
      if (this.bundles.size >= KEPT) this.bundles.delete(this.bundles.keys().next().value);
      this.bundles.set(url, fetch(url).then(async (answer) => (answer.ok ? decodeBundle(await answer.arrayBuffer()) : null)));
    }
    return this.bundles.get(url);
  }

  pane(run, bundle, { key, prompt }, texts) {
    const head = el("header.pane-head", {}, el(`i.swatch.swatch-${run.colour}`), el("b", {}, run.name));
    if (!bundle) return el("section.pane", {}, head, el("p.text-secondary", {}, "This step could not be read."));
    const rollouts = bundle.rollouts.filter((rollout) => rollout.row_key === key);
    const facts = groupFacts(rollouts);
    // Runs of older trainers did not record which answers are right.
    const right = rollouts.some((rollout) => rollout.right !== undefined && rollout.right !== null) ? ` · ${facts.right} of ${facts.graded} right` : "";
    head.append(el("span.text-secondary", {}, `step ${bundle.step}${right} · ${short(facts.entropy, facts.bounds)}`));
    const cards = rollouts.map((rollout) => rolloutCard(rollout, MODE));
    texts.push(...cards.map(({ text }) => text));
    return el("section.pane", { ariaLabel: run.name }, head, el("div.group-prompt", {}, visible(prompt)), ...cards.map(({ element }) => element));
  }
}
