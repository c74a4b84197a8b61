// The rollout bundle of one step: a JSON header, then aligned columns read in place.

import { float16 } from "./frames.js";
import { CONTEXT } from "./heatmap.js";
import { link } from "./lineage.js";

const KINDS = { u32: Uint32Array, f32: Float32Array, u8: Uint8Array };

function column(buffer, base, { dtype, offset, length }) {
  if (dtype === "f16") return float16(buffer, base + offset, length);
  return new KINDS[dtype](buffer, base + offset, length);
}

/** Return {step, rollouts, ...}; each rollout gets `columns` of its own tokens, and in nats, context left out, `meanEntropy`
 * and, where that is only the middle of it, `entropyBounds` [low, high]. */
export function decodeBundle(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const base = Math.ceil((4 + size) / 8) * 8;
  const all = Object.entries(header.columns).map(([name, spec]) => [name, column(buffer, base, spec)]);
  for (const rollout of header.rollouts) {
    const end = rollout.first + rollout.tokens;
    rollout.columns = Object.fromEntries(all.map(([name, values]) => [name, values.subarray(rollout.first, end)]));
    const { entropy, entropy_low: low, entropy_high: high, flags } = rollout.columns;
    rollout.meanEntropy = mean(entropy, flags);
    rollout.entropyBounds = low && high && rollout.tokens ? [mean(low, flags), mean(high, flags)] : null;
  }
  link(header.rollouts);
  return header;
}

function mean(values, flags) {
  let sum = 0, count = 0;
  for (let t = 0; t < (values?.length ?? 0); t += 1) {
    if (flags?.[t] & CONTEXT) continue;
    sum += values[t];
    count += 1;
  }
  return count ? sum / count : NaN;
}
