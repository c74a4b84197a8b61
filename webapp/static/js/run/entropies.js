// How entropies are said: a number where they are exact, an interval where the engine knew top-k bounds alone.

import { EMPTY, number } from "./format.js";

export const MEAN = "mean entropy, nats";
export const MEAN_BOUNDS = "mean entropy, nats: it lies between these top-k bounds";

/** Is the entropy of token t known by bounds alone? */
export const isBounded = (columns, t) => columns.entropy_low?.[t] >= 0;

/** An entropy in nats, `bounds` [low, high] or null. */
export function nats(value, bounds, digits = 3) {
  if (bounds) return `between ${number(bounds[0], digits)} and ${number(bounds[1], digits)} nats (top-k bounds)`;
  return `${number(value, digits)} nats`;
}

/** The same of token t of a completion's columns. */
export const natsAt = (columns, t) => nats(columns.entropy?.[t], isBounded(columns, t) ? [columns.entropy_low[t], columns.entropy_high[t]] : null);

/** Short, for crowded places: H 0.276, or H 0.274–0.279. */
export function short(value, bounds, decimals = 3) {
  if (value === undefined || Number.isNaN(value)) return `H ${EMPTY}`;
  return bounds ? `H ${bounds.map((bound) => bound.toFixed(decimals)).join("–")}` : `H ${value.toFixed(decimals)}`;
}

/** The mean of intervals, or null where one is missing. */
export function meanBounds(all) {
  if (!all.length || all.some((bounds) => !bounds)) return null;
  return [0, 1].map((end) => all.reduce((sum, bounds) => sum + bounds[end], 0) / all.length);
}
