// The live picture of an objective: controls ask, a worker answers, two panes draw.

import { el } from "../run/dom.js";
import { onTheme } from "../run/theme_colours.js";
import { Controls } from "./controls.js";
import { colourOf, Plot, rangeOf } from "./plot.js";

const REST = 120; // ms after the last touch before asking
const AGAIN = 200; // ms between looks for an answer
const PATIENCE = 30_000; // ms; a worker that has yet to load torch takes some seconds
const NAMES = { weight: "Weight", entropy_weight: "Entropy weight", entropy_change: "Entropy change" };
const ROUND = [1, 1.5, 2, 3, 5, 7.5, 10];

const card = document.querySelector("[data-picture]");
const part = (name) => card.querySelector(`[data-${name}]`);
const plots = [...card.querySelectorAll(".picture-plot")].map((svg) => new Plot(svg, point));
let picture = null, view = "weight", asked = 0, timer = 0;

const controls = new Controls(card.querySelector(".picture-controls"), () => {
  clearTimeout(timer);
  timer = setTimeout(ask, REST);
});

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function ask() {
  const question = controls.question();
  if (!question) return;
  const mine = ++asked, until = Date.now() + PATIENCE;
  card.classList.add("is-busy");
  if (!picture) part("readout").textContent = "A worker computes it…";
  while (mine === asked) {
    const answer = await post(question);
    if (mine !== asked) return; // a newer question is under way
    if (answer.status !== 202) return settle(answer);
    if (Date.now() > until) return settle({ status: 503, body: { problem: "No worker answered; start one and move a control.", field: "" } });
    await sleep(AGAIN);
  }
}

async function post(question) {
  const headers = { "Content-Type": "application/json", "X-CSRFToken": document.querySelector("meta[name=csrf-token]").content };
  try {
    const response = await fetch(card.dataset.url, { method: "POST", headers, body: JSON.stringify(question) });
    return { status: response.status, body: response.headers.get("Content-Type")?.includes("json") ? await response.json() : {} };
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // only a network that is away
    return { status: 503, body: { problem: "The server did not answer.", field: "" } };
  }
}

function settle({ status, body }) {
  card.classList.remove("is-busy");
  const problem = status === 200 ? "" : body.problem ?? "The server could not answer.";
  const placed = controls.complain(body.field ?? "", problem);
  part("problem").hidden = !problem || placed;
  part("problem").textContent = problem;
  if (status !== 200) return;
  const first = !picture;
  picture = body.picture;
  if (first) {
    part("readout").textContent = "Point at a field.";
    view = Object.keys(picture.views).find(varies) ?? "weight";
  }
  for (const button of card.querySelectorAll("[data-view]")) button.hidden = !(button.dataset.view in picture.views);
  if (!(view in picture.views)) view = "weight";
  draw();
}

/** Whether a view tells fields of one pane apart; a flat weight is no picture to begin with. */
function varies(name) {
  return Object.values(picture.views[name]).some((values) => Math.max(...values) - Math.min(...values) > 1e-3 * Math.max(...values.map(Math.abs)));
}

/** Limit of the colours: the next round number above everything shown. */
function limitOf(sides) {
  const most = Math.max(1e-6, ...[...sides.right, ...sides.wrong].map((value) => Math.abs(value ?? 0)));
  const decade = 10 ** Math.floor(Math.log10(most));
  return Number((ROUND.find((step) => most <= step * decade * 1.001) * decade).toPrecision(2));
}

function draw() {
  if (!picture) return;
  const sides = picture.views[view], limit = limitOf(sides);
  for (const plot of plots) {
    const { side } = plot.svg.dataset;
    plot.draw(picture, sides[side], limit, `${NAMES[view]}, ${side} answer`);
    card.querySelector(`[data-advantage="${side}"]`).textContent = `A ${signed(picture.advantage[side])}`;
    card.querySelector(`[data-range="${side}"]`).textContent = rangeOf(sides[side]);
  }
  for (const button of card.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  const held = picture.stand_ins.map((name) => name.replaceAll("_", " ")).join(", ");
  part("stand-ins").textContent = held ? ` Made up here: ${held}.` : "";
  legend(limit);
}

function legend(limit) {
  const steps = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1].map((share) => share * limit);
  const swatch = (value) => {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    box.setAttribute("class", "legend-swatch");
    box.setAttribute("viewBox", "0 0 18 13");
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const fill = colourOf(value, limit);
    for (const [key, word] of Object.entries({ width: 18, height: 13, class: fill ? "" : "is-zero", ...(fill ? { fill } : {}) })) rect.setAttribute(key, word);
    box.append(rect);
    return box;
  };
  part("legend").replaceChildren(el("span.number", {}, signed(-limit)), ...steps.map(swatch), el("span.number", {}, signed(limit)));
}

function point(index) {
  for (const plot of plots) plot.show(index);
  const readout = part("readout");
  if (index === null || !picture) return void (readout.textContent = "Point at a field.");
  const [column, row] = picture.fields[index], sides = picture.views[view];
  const { across, up } = picture;
  readout.textContent = `${name(across)} ${figure(across.values[column])}, ${name(up)} ${figure(up.values[row])}: right ${signed(sides.right[index])}, wrong ${signed(sides.wrong[index])}`;
}

const name = (axis) => axis.title.split(/,| of /)[0];
const figure = (value) => Number(value.toPrecision(2)).toString();
const signed = (value) => (value === null ? "–" : value === 0 ? "0" : `${value > 0 ? "+" : "−"}${Math.abs(Number(value.toPrecision(3)))}`);

card.querySelector(".picture-views").addEventListener("click", (event) => {
  const button = event.target.closest("[data-view]");
  if (!button) return;
  view = button.dataset.view;
  draw();
});
onTheme(draw);
ask();
