// The legend of the scale: one swatch a bin, its edges in nats, how many tokens fall into each.

import { el } from "./dom.js";
import { number } from "./format.js";
import { histogram } from "./heatmap.js";
import { BINS, LIMITS, SIGNED, TITLES, edges } from "./scale.js";

/** Fill `element` for `mode`, with the histogram of `texts` ({columns, count}); `bounds`: entropies are no more than that. */
export function legend(element, mode, texts = [], bounds = false) {
  element.hidden = mode === "none";
  if (element.hidden) return;
  element.replaceChildren(SIGNED.has(mode) ? diverging(mode) : sequential(mode, texts, bounds && mode === "entropy"));
}

function sequential(mode, texts, bounds) {
  const title = bounds ? "Entropy, middle of its top-k bounds" : TITLES[mode];
  const limits = edges(mode), { bins, clamped } = histogram(texts, mode), most = Math.max(1, ...bins);
  const total = bins.reduce((sum, count) => sum + count, 0);
  const swatches = limits.map((edge, bin) => {
    const upper = bin + 1 < BINS ? number(limits[bin + 1]) : `${LIMITS[mode]} and more`;
    const share = total ? ` · ${(100 * bins[bin] / total).toFixed(1)} % of tokens` : "";
    const bar = el("i");
    bar.style.height = `${Math.round(18 * Math.sqrt(bins[bin] / most))}px`;
    return el("span.legend-bin", { title: `${number(edge)} to ${upper} nats${share}` }, bar, el(`b${bin ? `.heat${bin}` : ""}`));
  });
  const marks = [0, 4, 8, 12].map((bin) => el("span", {}, number(limits[bin])));
  const beyond = clamped ? `, ${clamped.toLocaleString()} tokens beyond` : "";
  return el("div.legend", { role: "img", "aria-label": `${title}: 16 bins from 0 to ${LIMITS[mode]} nats` },
    el("span.legend-title", {}, title),
    el("div", {}, el("div.legend-bins", {}, ...swatches), el("div.legend-marks", {}, ...marks, el("span", {}, `≥ ${LIMITS[mode]} nats${beyond}`))));
}

const ENDS = { weight: ["pulled down", "pushed up"], whatif: ["pulled down", "pushed up"], difference: ["less than this run", "more"] };
const HEADS = { weight: "Weight −∂L/∂log p", whatif: "What-if weight", difference: "What if − this run" };

function diverging(mode) {
  const down = Array.from({ length: 8 }, (_, at) => el("span.legend-bin", {}, el(`b.down${8 - at}`)));
  const up = Array.from({ length: 8 }, (_, at) => el("span.legend-bin", {}, el(`b.up${at + 1}`)));
  const marks = [`≤ −${LIMITS[mode]}`, ENDS[mode][0], "0", ENDS[mode][1], `≥ +${LIMITS[mode]}`];
  return el("div.legend", { role: "img", "aria-label": `${TITLES[mode]} from minus ${LIMITS[mode]} to ${LIMITS[mode]}, plain at exactly 0` },
    el("span.legend-title", {}, HEADS[mode]),
    el("div", {}, el("div.legend-bins", {}, ...down, el("span.legend-bin", {}, el("b")), ...up), el("div.legend-marks", {}, ...marks.map((mark) => el("span", {}, mark)))),
    el("span.kind-key", {}, el("span.masked", {}, "masked"), el("span.clipped", {}, "clipped")));
}
