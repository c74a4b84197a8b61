// One pane of a picture: fields over (probability, entropy), a cursor for pointer and keyboard, axes.

import { mix, palette } from "../run/scale.js";
import { theme } from "../run/theme_colours.js";

const SVG = "http://www.w3.org/2000/svg";
const CELL = { width: 13, height: 13 };
const EDGE = { left: 30, bottom: 30, top: 4, right: 4 };
// Under these the levels of an axis are evenly spaced.
const SCALES = { logit: (value) => Math.log(value / (1 - value)), root: Math.sqrt, log: Math.log };

function node(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const PAGE = { light: "#ffffff", dark: "#262626" };
const FAINT = 0.1; // share of the hue that the smallest value not 0 gets

/** Colour of a value between the ends of the published diverging scale at -limit and limit; none for 0. */
export function colourOf(value, limit) {
  if (!value) return null;
  const share = FAINT + (1 - FAINT) * Math.min(1, Math.abs(value) / limit);
  return mix(PAGE[theme()], ends()[value > 0 ? "up8" : "down8"].background, share);
}

let known = null; // palette of the theme in force

function ends() {
  if (known?.theme !== theme()) known = { theme: theme(), colours: palette(theme()) };
  return known.colours;
}

export class Plot {
  /** `pointed(index)` is called with the field under pointer or keyboard, null when it is left. */
  constructor(svg, pointed) {
    this.svg = svg;
    this.pointed = pointed;
    this.at = null;
    svg.addEventListener("pointermove", (event) => this.point(event.target.dataset.index));
    svg.addEventListener("pointerleave", () => this.point(undefined));
    svg.addEventListener("keydown", (event) => this.key(event));
  }

  draw(picture, values, limit, name) {
    const { fields } = picture, columns = picture.across.values.length, rows = picture.up.values.length;
    const [width, height] = [EDGE.left + columns * CELL.width + EDGE.right, EDGE.top + rows * CELL.height + EDGE.bottom];
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", `${name}: ${rangeOf(values)}. Arrow keys move over the fields.`);
    this.fields = fields;
    this.rows = rows;
    const nodes = [node("rect", { class: "plot-ground", x: EDGE.left, y: EDGE.top, width: columns * CELL.width, height: rows * CELL.height })];
    fields.forEach(([column, row], index) => {
      const box = { x: EDGE.left + column * CELL.width, y: EDGE.top + (rows - 1 - row) * CELL.height, width: CELL.width, height: CELL.height };
      const fill = colourOf(values[index], limit);
      nodes.push(node("rect", { ...box, class: fill ? "field" : "field is-zero", "data-index": index, ...(fill ? { fill } : {}) }));
    });
    nodes.push(...this.axes(picture, width, height));
    this.cursor = node("rect", { class: "plot-cursor", width: CELL.width, height: CELL.height, visibility: "hidden" });
    this.svg.replaceChildren(...nodes, this.cursor);
    this.show(this.at);
  }

  axes({ across, up }, width, height) {
    const [right, bottom] = [across.values.length * CELL.width, EDGE.top + up.values.length * CELL.height];
    const middle = EDGE.top + (bottom - EDGE.top) / 2;
    return [
      ...across.ticks.map((tick) => node("text", { x: EDGE.left + placeOf(across, tick) * CELL.width, y: bottom + 12, "text-anchor": "middle" }, String(tick))),
      ...up.ticks.map((tick) => node("text", { x: EDGE.left - 4, y: bottom - placeOf(up, tick) * CELL.height + 3, "text-anchor": "end" }, String(tick))),
      node("text", { class: "plot-axis", x: EDGE.left + right / 2, y: height - 5, "text-anchor": "middle" }, across.title),
      node("text", { class: "plot-axis", x: 8, y: middle, "text-anchor": "middle", transform: `rotate(-90 8 ${middle})` }, up.title),
    ];
  }

  point(index) {
    this.pointed(index === undefined ? null : Number(index));
  }

  /** Show the cursor on a field; both panes show the same. */
  show(index) {
    this.at = index !== null && index < (this.fields?.length ?? 0) ? index : null;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", this.at === null ? "hidden" : "visible");
    if (this.at === null) return;
    const [column, row] = this.fields[this.at];
    this.cursor.setAttribute("x", EDGE.left + column * CELL.width);
    this.cursor.setAttribute("y", EDGE.top + (this.rows - 1 - row) * CELL.height);
  }

  key(event) {
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const move = moves[event.key];
    if (!move || !this.fields) return;
    event.preventDefault();
    const [column, row] = this.fields[this.at ?? Math.floor(this.fields.length / 2)];
    // The nearest field that way; gaps without a distribution are leapt over.
    const ahead = this.fields.map(([x, y], index) => ({ index, far: (x - column) * move[0] + (y - row) * move[1], off: Math.abs((x - column) * move[1]) + Math.abs((y - row) * move[0]) }));
    const next = ahead.filter(({ far }) => far > 0).sort((a, b) => a.off - b.off || a.far - b.far)[0];
    if (this.at === null || next) this.point(this.at === null ? Math.floor(this.fields.length / 2) : next.index);
  }
}

/** Place of a value along an axis, in fields: the middle of the first is 0.5. */
function placeOf({ values, scale }, value) {
  const map = SCALES[scale], first = map(values[0]), last = map(values.at(-1));
  return 0.5 + ((map(value) - first) / (last - first)) * (values.length - 1);
}

const figure = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");

/** The smallest and largest of some values in words. */
export function rangeOf(values) {
  const numbers = values.filter((value) => value !== null);
  if (!numbers.length) return "no value";
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)].map(figure);
  return low === high ? low : `${low} to ${high}`;
}
