// The tree of a group: completions of one prompt merged where they begin alike.
//
// A node is the stretch of tokens [from, to) that its members share. It ends where they part, where one of them ends,
// and where one forks off another, whether or not it drew the same token again.

import { natsAt } from "./entropies.js";

const MIX = 0.6; // share of a node's place that follows the order of forks; the rest follows its token position

/** Return the tree of completions of one prompt, or null where none has a token. */
export function groupTree(rollouts) {
  const members = rollouts.filter(({ tokens }) => tokens > 0);
  return members.length ? grow(members, 0) : null;
}

function grow(members, from) {
  const to = reach(members, from), next = new Map();
  for (const member of members) {
    if (member.tokens === to) continue;
    const token = member.columns.token_ids[to];
    if (!next.has(token)) next.set(token, []);
    next.get(token).push(member);
  }
  const ends = members.filter(({ tokens }) => tokens === to), parts = [...next.values()];
  const children = parts.map((part) => grow(part, to));
  if (ends.length && children.length) children.push(node(ends, to, to, []));
  children.sort((a, b) => b.members.length - a.members.length || a.members[0].sample - b.members[0].sample);
  return node(members, from, to, children);
}

/** How far members go together from token `from` on. */
function reach(members, from) {
  const [one, ...others] = members, ids = one.columns.token_ids;
  let to = Math.min(...members.map(({ tokens }) => tokens));
  for (const { parent, branch_token: at } of members) if (at > from && members.includes(parent)) to = Math.min(to, at);
  for (const { columns } of others) {
    let t = from;
    while (t < to && columns.token_ids[t] === ids[t]) t += 1;
    to = t;
  }
  return to;
}

function node(members, from, to, children) {
  const rewards = members.map(({ reward }) => reward).filter((reward) => reward !== null && reward !== undefined);
  // What was recorded of the token that follows is of the distribution behind this stretch, the same for all of them.
  const sure = members.find((member) => member.tokens > to && !(member.branch_token > to)) ?? members.find(({ tokens }) => tokens > to);
  return {
    members, from, to, children,
    forks: members.filter(({ parent, branch_token: at }) => at === to && members.includes(parent)),
    entropy: children.length ? sure?.columns.entropy?.[to] ?? NaN : NaN,
    nats: sure ? natsAt(sure.columns, to) : "",
    graded: rewards.length, right: members.filter(({ right }) => right).length,
    reward: rewards.length ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null,
  };
}

/** All nodes, parents first: [{node, parent (its place or -1), depth, row}]; leaves have rows 0, 1, …, others the middle. */
export function placed(root) {
  const all = [];
  let leaves = 0;
  const visit = (one, parent, depth) => {
    const at = all.push({ node: one, parent, depth, row: 0 }) - 1;
    const rows = one.children.map((child) => visit(child, at, depth + 1));
    all[at].row = rows.length ? (rows[0] + rows.at(-1)) / 2 : leaves++;
    return all[at].row;
  };
  visit(root, -1, 0);
  return { all, leaves };
}

/** Where token positions lie, 0 to 1: between their order among the forks and their true place, so that none crowd. */
export function positions(root) {
  const inner = new Set([0]), visit = (one) => { if (one.children.length) inner.add(one.to); one.children.forEach(visit); };
  visit(root);
  const last = Math.max(...root.members.map(({ tokens }) => tokens), 1);
  const knots = [...inner].filter((at) => at < last).sort((a, b) => a - b).concat(last);
  return {
    knots,
    at(token) {
      let k = knots.findLastIndex((knot) => knot <= token);
      k = Math.min(k, knots.length - 2);
      const order = (k + (token - knots[k]) / (knots[k + 1] - knots[k])) / (knots.length - 1);
      return MIX * order + (1 - MIX) * token / last;
    },
  };
}
