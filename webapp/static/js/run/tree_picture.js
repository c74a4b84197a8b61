// The picture of a group's tree: SVG, a few shapes a branch and none a token. All text is set as text.

import { number } from "./format.js";
import { rewardColour, rewardRange } from "./reward_colours.js";
import { binName, palette } from "./scale.js";
import { theme } from "./theme_colours.js";
import { positions } from "./tree.js";
import { endOf, opening, sentence } from "./tree_words.js";

const NS = "http://www.w3.org/2000/svg";
const ROW = 24, TIGHT = 17, MANY = 40, LEFT = 14, AXIS = 26, SIGN = 6.3, BEND = 14, TICK = 44;

function shape(name, attributes = {}, text = null) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

/** Draw `tree` ({all, leaves} of tree.js) `width` pixels wide; items are groups in the order of `tree.all`. */
export function picture({ all, leaves }, width, label) {
  const root = all[0].node, place = positions(root), row = leaves > MANY ? TIGHT : ROW, narrow = width < 560;
  const right = narrow ? 74 : 118, span = Math.max(60, width - LEFT - right - 10), height = leaves * row + AXIS + 8;
  const x = (token) => LEFT + span * place.at(token), y = (at) => AXIS + row * (at + 0.5);
  const svg = shape("svg", { role: "tree", width, height, viewBox: `0 0 ${width} ${height}`, "aria-label": label, class: "tree-picture" });
  const scale = { x, y, row, right, narrow, colours: rewardRange(root.members), unit: Math.min(3, (row - 6) / Math.max(1, root.members.length)) };
  svg.append(axis(place.knots, x, height));
  const items = all.map((item, at) => branch(item, all[item.parent], at, scale));
  const fills = palette(theme()), knots = shape("g", { class: "tree-knots", "aria-hidden": "true" }); // above the lines of their children
  for (const { node, row: at } of all) if (node.children.length) knots.append(knot(node, x(node.to), y(at), fills));
  svg.append(...items, knots);
  return { svg, items };
}

function axis(knots, x, height) {
  const group = shape("g", { class: "tree-axis", "aria-hidden": "true" });
  let free = -Infinity;
  for (const token of [knots.at(-1), ...knots.slice(0, -1)]) {
    const at = x(token), isLast = token === knots.at(-1);
    group.append(shape("line", { x1: at, x2: at, y1: AXIS - 6, y2: height }));
    if (!isLast && (at < free || at > x(knots.at(-1)) - TICK)) continue;
    group.append(shape("text", { x: at, y: 12, "text-anchor": isLast ? "end" : "start" }, isLast ? `${token} tokens` : `${token}`));
    if (!isLast) free = at + TICK;
  }
  return group;
}

function branch(item, before, at, scale) {
  const { node, depth } = item, { x, y } = scale, siblings = before ? before.node.children : [node];
  const group = shape("g", {
    role: "treeitem", tabindex: "-1", "data-node": at, class: "tree-branch", "aria-level": depth + 1, "aria-label": sentence(node),
    "aria-posinset": siblings.indexOf(node) + 1, "aria-setsize": siblings.length, "aria-expanded": node.children.length ? "true" : null,
  });
  const [x0, y0, x1, y1] = [x(node.from), y((before ?? item).row), x(node.to), y(item.row)];
  const colour = rewardColour(node.reward, scale.colours, theme()), bend = Math.min(BEND, Math.max(0, x1 - x0));
  const path = `M${x0} ${y0}C${x0 + bend / 2} ${y0} ${x0 + bend / 2} ${y1} ${x0 + bend} ${y1}H${x1}`;
  group.append(shape("path", { d: path, class: "tree-hit", "stroke-width": scale.row - 2 }));
  const line = shape("path", { d: path, class: "tree-line", stroke: colour, "stroke-width": Math.max(1.5, node.members.length * scale.unit).toFixed(1) });
  if (!node.graded) line.setAttribute("stroke-dasharray", "3 3");
  group.append(line);
  words(group, node, { x0: x0 + bend, x1, y1: y1 - (node.members.length * scale.unit) / 2 });
  if (!node.children.length) group.append(end(node, x1, y1, colour, scale));
  return group;
}

/** The words a branch begins with, where they fit above it. */
function words(group, node, { x0, x1, y1 }) {
  const room = Math.floor((x1 - x0 - 12) / SIGN);
  if (room < 2 || node.to === node.from) return;
  group.append(shape("text", { x: x0 + 3, y: y1 - 2, class: "tree-words" }, opening(node, Math.min(room, 40))));
}

/** A place where ways part: filled by entropy, ringed where a strategy forked. */
function knot(node, x, y, fills) {
  const group = shape("g"), name = binName("entropy", node.entropy || 0);
  const fill = name ? fills[name].background : "var(--tblr-bg-surface)";
  if (node.forks.length) group.append(shape("circle", { cx: x, cy: y, r: 8.5, class: "tree-ring" }));
  group.append(shape("circle", { cx: x, cy: y, r: 5.5, fill, class: "tree-dot" }));
  return group;
}

function end(node, x, y, colour, { narrow, right }) {
  const group = shape("g", { class: "tree-end" }), [one] = node.members, more = node.members.length > 1 ? ` ×${node.members.length}` : "";
  const reward = node.reward === null ? "none" : number(node.reward, 2), cut = endOf(one);
  group.append(shape("circle", { cx: x, cy: y, r: 3.5, fill: colour }));
  group.append(shape("text", { x: x + 9, y: y + 4 }, `${one.sample + 1}${more} · ${reward}${cut && !narrow && right > 80 ? ` · ${cut}` : ""}`));
  return group;
}
