// Who wrote which tokens, and what forks off what, of the completions of one recorded step.

/** Give each completion its `parent` (or null) and its `children`: `branch_parent` is the parent's place in the list. */
export function link(rollouts) {
  for (const rollout of rollouts) Object.assign(rollout, { parent: null, children: [] });
  for (const rollout of rollouts) {
    if (!isFork(rollout)) continue;
    rollout.parent = rollouts[rollout.branch_parent] ?? null;
    rollout.parent?.children.push(rollout);
  }
}

export const isFork = ({ branch_token: at }) => at !== null && at !== undefined;

/** Name of a completion as the page counts them. */
export const nameOf = ({ sample }) => `completion ${sample + 1}`;

const SEEN = "the model reads it, nothing learns from it";

/** Why token t is context, for a tooltip. */
export function contextReason(rollout, t) {
  const kind = rollout.segments?.find(({ first, count }) => t >= first && t < first + count)?.kind;
  if (kind === "tool") return `said by a tool: ${SEEN}`;
  if (!isFork(rollout) || t >= rollout.branch_token) return `given to sampling: ${SEEN}`;
  return `${rollout.parent ? `taken from ${nameOf(rollout.parent)}` : "taken from a completion that is not recorded"}: ${SEEN}`;
}

/** Tokens at which something forks: {token: sentence}; the token was drawn anew there. */
export function forkPoints(rollout) {
  const points = new Map(), forks = new Map();
  for (const { branch_token: at, sample } of rollout.children) forks.set(at, [...(forks.get(at) ?? []), sample + 1]);
  for (const [at, names] of forks) {
    points.set(at, `completion${names.length > 1 ? "s" : ""} ${names.join(", ")} fork${names.length > 1 ? "" : "s"} off before this token`);
  }
  if (isFork(rollout)) {
    const own = `forks off ${rollout.parent ? nameOf(rollout.parent) : "a completion that is not recorded"}: drawn anew from here on`;
    points.set(rollout.branch_token, [own, points.get(rollout.branch_token)].filter(Boolean).join("; "));
  }
  return points;
}
