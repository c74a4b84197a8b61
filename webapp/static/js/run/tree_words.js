// What a node of the tree says: to the eye beside it, and whole sentences to a screen reader.

import { number } from "./format.js";
import { layout } from "./glyphs.js";
import { nameOf } from "./lineage.js";

const ENDS = { length: "cut off", pruned: "pruned" }, SHOWN = 14;

/** The visible text of tokens [from, to) of a completion. */
export function textOf(rollout, from, to) {
  rollout.laid ??= layout(rollout.completion, rollout.columns.byte_offsets ?? [], rollout.tokens);
  const { shown, starts } = rollout.laid;
  return shown.slice(starts[Math.min(from, rollout.tokens)], starts[Math.min(to, rollout.tokens)]);
}

const spaced = (text) => text.replaceAll("\n", "").replaceAll(" ", "␣");

/** The first words of a node, at most `most` signs. */
export function opening({ members, from, to }, most = SHOWN) {
  const signs = [...spaced(textOf(members[0], from, Math.min(to, from + most)))];
  return signs.length > most || to - from > most ? `${signs.slice(0, most - 1).join("")}…` : signs.join("");
}

/** How the members of a node fared: "2 of 3 right". */
export function fared({ members, graded, right, reward }) {
  if (!graded) return "no reward";
  if (members.length === 1) return `reward ${number(reward)}`;
  return `${right} of ${graded} right, mean reward ${number(reward)}`;
}

export const endOf = (rollout) => ENDS[rollout.finish_reason] ?? "";

/** What a node is, without its text. */
export function summary(node) {
  const { members, from, to, children, entropy, forks } = node, [one] = members;
  if (!children.length) {
    const names = members.map(({ sample }) => sample + 1).join(", "), end = endOf(one);
    return `${members.length > 1 ? `Completions ${names} are the same` : `Completion ${names}`}: ${fared(node)}, ${to} tokens${end ? `, ${end}` : ""}`;
  }
  const stretch = to > from ? `tokens ${from + 1} to ${to}` : "only the prompt";
  const known = Number.isNaN(entropy) ? "" : `; entropy of what comes next ${node.nats}`;
  const drawn = forks.length ? `; drawn anew from here: ${forks.map(nameOf).join(", ")}` : "";
  return `${members.length} completions share ${stretch}; ${fared(node)}; ${children.length} ${children.length > 1 ? "ways" : "way"} on${known}${drawn}`;
}

/** A node in one sentence. */
export function sentence(node) {
  const text = opening(node, 60);
  return text ? `${summary(node)}. Text: ${text}` : summary(node);
}
