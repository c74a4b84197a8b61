// The legend of the scale: one swatch a bin, its edges in nats, how many tokens fall into each.

import { el } from "./dom.js";
import { number } from "./format.js";
import { histogram } from "./heatmap.js";
import { BINS, LIMITS, TITLES, edges } from "./scale.js";

/** Fill `element` for `mode`, with the histogram of `texts` ({columns, count}). */
export function legend(element, mode, texts = []) {
  element.hidden = mode === "none";
  if (element.hidden) return;
  element.replaceChildren(mode === "weight" ? diverging() : sequential(mode, texts));
}

function sequential(mode, texts) {
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
  return el("div.legend", { role: "img", "aria-label": `${TITLES[mode]}: 16 bins from 0 to ${LIMITS[mode]} nats` },
    el("span.legend-title", {}, TITLES[mode]),
    el("div", {}, el("div.legend-bins", {}, ...swatches), el("div.legend-marks", {}, ...marks, el("span", {}, `≥ ${LIMITS[mode]} nats${beyond}`))));
}

function diverging() {
  const down = Array.from({ length: 8 }, (_, at) => el("span.legend-bin", {}, el(`b.down${8 - at}`)));
  const up = Array.from({ length: 8 }, (_, at) => el("span.legend-bin", {}, el(`b.up${at + 1}`)));
  const marks = [`≤ −${LIMITS.weight}`, "0 exactly", `≥ +${LIMITS.weight}`];
  return el("div.legend", { role: "img", "aria-label": `Objective weight from minus ${LIMITS.weight} to ${LIMITS.weight}, plain at exactly 0` },
    el("span.legend-title", {}, "Weight −∂L/∂log p"),
    el("div", {}, el("div.legend-bins", {}, ...down, el("span.legend-bin", {}, el("b")), ...up), el("div.legend-marks", {}, ...marks.map((mark) => el("span", {}, mark)))));
}
