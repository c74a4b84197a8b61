// One completion: what it earned, how it ended, and its coloured text.

import { el } from "./dom.js";
import { MEAN, MEAN_BOUNDS, meanBounds, short } from "./entropies.js";
import { number, signed } from "./format.js";
import { visible } from "./glyphs.js";
import { TokenText } from "./heatmap.js";
import { forkPoints, isFork, nameOf } from "./lineage.js";

const ENDS = { stop: "ended", eos: "ended", length: "cut off", pruned: "pruned", live: "writing" };

const LONG = 160, SIGNS_PER_LINE = 110, LINE = 1.25;

/** Return {element, text, rollout}; `text` is the TokenText. Lists over several prompts say `withPrompt`, readers `links`. */
export function rolloutCard(rollout, mode, { withPrompt = false, links = false } = {}) {
  const { reward, advantage, reward_parts: parts, finish_reason: finish, tokens, meanEntropy, entropyBounds: bounds } = rollout;
  const title = parts && Object.entries(parts).map(([name, value]) => `${name}: ${number(value)}`).join("\n");
  const tone = reward === null || reward === undefined ? "none" : rollout.right ? "good" : "bad";
  const side = advantage > 0 ? "up" : advantage < 0 ? "down" : "zero";
  const body = el("div.rollout-text", { tabIndex: -1, role: "textbox", ariaReadOnly: "true", ariaMultiLine: "true", ariaLabel: `Completion ${rollout.sample + 1}` });
  const cut = finish === "length";
  const element = el("article.rollout", { id: `rollout-${rollout.index}` },
    el("div.rollout-head", {},
      el("span.rollout-number", {}, `${rollout.sample + 1}`),
      el(`span.rollout-reward.is-${tone}`, { title: title || "reward" }, reward === null || reward === undefined ? "no reward" : number(reward)),
      el(`span.rollout-advantage.is-${side}`, { title: "advantage" }, `A ${signed(advantage)}`),
      el("span", { title: "response length" }, `${tokens} tok`),
      el("span", { title: bounds ? MEAN_BOUNDS : MEAN }, short(meanEntropy, bounds)),
      finish ? el(`span${cut ? ".rollout-cut" : ".text-secondary"}`, { title: `finish reason: ${visible(finish)}` }, ENDS[finish] ?? visible(finish)) : null,
      origin(rollout, links)),
    el("div", {}, withPrompt ? el("span.rollout-prompt", {}, visible(rollout.prompt)) : null, body));
  // What is far from the viewport is not laid out; a fair guess of its height keeps the scroll bar honest.
  element.style.containIntrinsicBlockSize = `auto ${(2 + LINE * Math.floor(rollout.completion.length / SIGNS_PER_LINE)).toFixed(1)}rem`;
  element.classList.toggle("is-long", tokens > LONG);
  const text = new TokenText(body, mode);
  text.load(rollout.completion, rollout.columns, tokens);
  text.rollout = rollout;
  text.mark(forkPoints(rollout));
  return { element, text, rollout };
}

/** Where a fork comes from; in a reader a button that goes to the token that was drawn anew. */
function origin(rollout, links) {
  const { parent, branch_token: at } = rollout;
  if (!isFork(rollout)) return null;
  const shared = `${at} token${at === 1 ? "" : "s"}`;
  if (!parent) return el("span.rollout-origin", {}, `fork after ${shared} of a completion that is not recorded`);
  const words = `fork of ${parent.sample + 1} after ${shared}`;
  if (!links) return el("span.rollout-origin", {}, words);
  return el("button.rollout-origin", { type: "button", "data-go-rollout": parent.index, "data-go-token": at, title: `Go to ${nameOf(parent)}, where this one forks off` }, words);
}

/** What a group of completions of one prompt says: pass rate, and whether it teaches anything. */
export function groupFacts(rollouts) {
  const rewards = rollouts.map(({ reward }) => reward).filter((reward) => reward !== null && reward !== undefined);
  const right = rollouts.filter((rollout) => rollout.right).length;
  const flat = rewards.length > 1 && rewards.every((reward) => reward === rewards[0]);
  const sure = rollouts.filter(({ meanEntropy }) => !Number.isNaN(meanEntropy));
  return {
    right, graded: rewards.length,
    badge: !flat ? "" : right ? "all right" : "all wrong",
    entropy: sure.length ? sure.reduce((sum, { meanEntropy }) => sum + meanEntropy, 0) / sure.length : NaN,
    bounds: meanBounds(sure.map(({ entropyBounds }) => entropyBounds)),
  };
}

export function groupHead(prompt, facts) {
  return el("header.group-head", {},
    el("div.group-prompt", { title: "prompt" }, visible(prompt)),
    el("div.group-facts", {},
      el("span", {}, `${facts.right} of ${facts.graded} right`),
      el("span", { title: facts.bounds ? MEAN_BOUNDS : MEAN }, short(facts.entropy, facts.bounds)),
      facts.badge ? el("span.badge.zero-variance", { title: "Every completion earned the same: this group moves nothing." }, `no variance, ${facts.badge}`) : null));
}
