// The published colour scales: fixed for ever, in nats, the same on every page, step and run.
//
// Sequential (entropy, surprisal): 16 bins, edge b = limit * (b / 16)^2; the square spends bins where calm text lives.
// Diverging (objective weight): 8 bins each way around an exact 0, edge b = limit * (b / 8)^2.

export const BINS = 16;
export const LIMITS = { entropy: 3, surprisal: 6, weight: 3, whatif: 3, difference: 3 };
export const MODES = ["entropy", "surprisal", "weight", "whatif", "difference", "none"];
export const SIGNED = new Set(["weight", "whatif", "difference"]);
export const TITLES = {
  entropy: "Entropy", surprisal: "Surprisal (−log p)", weight: "Objective weight", whatif: "What-if weight", difference: "What if minus this run", none: "No colour",
};

const RAMPS = {
  light: { low: "#fff8e6", middle: "#ffc35c", high: "#e8590c", negative: "#2f7fd6", page: "#ffffff" },
  dark: { low: "#362c14", middle: "#8f5f0a", high: "#ffb42e", negative: "#6db3ff", page: "#262626" },
};

export const edges = (mode) => Array.from({ length: BINS }, (_, b) => LIMITS[mode] * (b / BINS) ** 2);

/** Bin of a non-negative value: 0 (calm) to 15; values at or above the limit are clamped into 15. */
export function sequentialBin(value, limit) {
  if (!(value > 0)) return 0;
  return Math.min(BINS - 1, Math.floor(BINS * Math.sqrt(value / limit)));
}

/** Bin of a signed value: 0 only for exactly 0 (or not a number), 1..8 above, -1..-8 below. */
export function divergingBin(value, limit) {
  if (!value) return 0;
  return Math.sign(value) * Math.min(8, 1 + Math.floor(8 * Math.sqrt(Math.abs(value) / limit)));
}

/** Name of the highlight of a token under `mode`, or "" for plain text. */
export function binName(mode, value) {
  if (SIGNED.has(mode)) {
    const bin = divergingBin(value, LIMITS[mode]);
    return bin === 0 ? "" : bin > 0 ? `up${bin}` : `down${-bin}`;
  }
  if (mode === "none") return "";
  const bin = sequentialBin(value, LIMITS[mode]);
  return bin ? `heat${bin}` : "";
}

export const isClamped = (mode, value) => mode !== "none" && Math.abs(value) >= LIMITS[mode];

const channel = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const gamma = (c) => Math.round(255 * (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055));
const linear = (hex) => [1, 3, 5].map((at) => channel(parseInt(hex.slice(at, at + 2), 16) / 255));
const hex = (rgb) => "#" + rgb.map((c) => gamma(Math.min(1, Math.max(0, c))).toString(16).padStart(2, "0")).join("");

/** Mix two colours in linear light. */
export function mix(from, to, share) {
  const [a, b] = [linear(from), linear(to)];
  return hex(a.map((value, at) => value + (b[at] - value) * share));
}

export function luminance(colour) {
  const [r, g, b] = linear(colour);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** WCAG contrast ratio of two colours. */
export function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

const ink = (background) => (contrast(background, "#000000") >= contrast(background, "#ffffff") ? "#000000" : "#ffffff");

function ramp(theme, share, high) {
  const { low, middle } = RAMPS[theme];
  return share < 0.5 ? mix(low, middle, share * 2) : mix(middle, high, share * 2 - 1);
}

/** All bins of a theme: {name: {background, colour}}; `faded` twins are for tokens that the objective masked. */
export function palette(theme) {
  const { page, high, negative } = RAMPS[theme];
  const table = {};
  const add = (name, background) => {
    table[name] = { background, colour: ink(background) };
    const faded = mix(page, background, 0.5);
    table[`faded-${name}`] = { background: faded, colour: ink(faded) };
  };
  for (let bin = 1; bin < BINS; bin += 1) add(`heat${bin}`, ramp(theme, (bin - 1) / (BINS - 2), high));
  for (let bin = 1; bin <= 8; bin += 1) {
    add(`up${bin}`, mix(page, high, 0.08 + 0.92 * (bin / 8) ** 1.5));
    add(`down${bin}`, mix(page, negative, 0.08 + 0.92 * (bin / 8) ** 1.5));
  }
  return table;
}

export const names = () => Object.keys(palette("light"));

/** CSS of a theme: highlights inside texts, and classes of the same names for swatches and the span fallback. */
export function rules(theme) {
  // Highlights inherit, so the root alone originates them. Whatever else does is computed with every bin, each time it
  // comes or changes; for texts that grow that was most of a paint.
  return Object.entries(palette(theme)).map(([name, { background, colour }]) => {
    const body = `{background-color:${background};color:${colour}}`;
    return `:root::highlight(${name})${body}.${name}${body}`;
  }).join("\n");
}
