// Live frames, the mirror of trainer/events.py: header "<HBBIIIIII", then the payload.

export const MAGIC = 0x1e57;
export const VERSION = 1;
export const HEADER = 28;
export const MAX_PAYLOAD = 1 << 20;
export const PROMPT = 1, TOKENS = 2, PROGRESS = 3, END = 4, GROUPS = 5, BOUNDED = 6;

const text = new TextDecoder("utf-8", { ignoreBOM: true }); // a token may well be U+FEFF
let table = null;

/** The 65,536 values of float16: one look-up is faster than arithmetic and needs no Float16Array. */
function halves() {
  if (table) return table;
  table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits += 1) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) table[bits] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[bits] = fraction ? NaN : sign * Infinity;
    else table[bits] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

/** Expand `count` little-endian float16 numbers from byte `at` of `buffer`. */
export function float16(buffer, at, count) {
  const values = halves(), view = new DataView(buffer, at, count * 2), out = new Float32Array(count);
  for (let i = 0; i < count; i += 1) out[i] = values[view.getUint16(i * 2, true)];
  return out;
}

function tokens(buffer, at, size, count, bounded) {
  const need = count * (bounded ? 14 : 10);
  if (need > size) return null;
  const view = new DataView(buffer, at, size);
  const ids = new Uint32Array(count), lengths = new Uint16Array(count);
  for (let i = 0; i < count; i += 1) ids[i] = view.getUint32(i * 4, true);
  for (let i = 0; i < count; i += 1) lengths[i] = view.getUint16(count * 4 + i * 2, true);
  return {
    ids, lengths,
    entropy: float16(buffer, at + count * 6, count),
    logprob: float16(buffer, at + count * 8, count),
    low: bounded ? float16(buffer, at + count * 10, count) : null,
    high: bounded ? float16(buffer, at + count * 12, count) : null,
    text: text.decode(new Uint8Array(buffer, at + need, size - need)),
  };
}

function json(buffer, at, size) {
  try {
    return JSON.parse(text.decode(new Uint8Array(buffer, at, size)));
  } catch {
    return null; // a damaged frame is lost without harm
  }
}

/** Return the whole frames from byte `at` on; stop at the first incomplete or foreign byte. */
export function decode(buffer, at = 0) {
  const view = new DataView(buffer), found = [];
  while (at + HEADER <= buffer.byteLength) {
    const kind = view.getUint8(at + 3), size = view.getUint32(at + 24, true), end = at + HEADER + size;
    if (view.getUint16(at, true) !== MAGIC || view.getUint8(at + 2) !== VERSION) break;
    if (size > MAX_PAYLOAD || end > buffer.byteLength) break;
    const [attempt, step, rollout, first, count] = [4, 8, 12, 16, 20].map((offset) => view.getUint32(at + offset, true));
    const bounded = kind === BOUNDED;
    const payload = kind === TOKENS || bounded ? tokens(buffer, at + HEADER, size, count, bounded) : json(buffer, at + HEADER, size);
    if (payload) found.push({ kind: bounded ? TOKENS : kind, attempt, step, rollout, first, count, payload });
    at = end;
  }
  return found;
}

/** Join payloads of neighbouring token frames into one. */
export function joined(payloads) {
  if (payloads.length === 1) return payloads[0];
  const column = (name) => payloads.flatMap((payload) => Array.from(payload[name] ?? new Float32Array(payload.ids.length).fill(NaN)));
  const bounded = payloads.some(({ low }) => low);
  return {
    ids: column("ids"), lengths: column("lengths"), entropy: column("entropy"), logprob: column("logprob"),
    low: bounded ? column("low") : null, high: bounded ? column("high") : null,
    text: payloads.map(({ text: piece }) => piece).join(""),
  };
}

/** Split a socket message: u8 length, stream id, frames. */
export function message(buffer) {
  const length = new Uint8Array(buffer, 0, 1)[0];
  return { id: text.decode(new Uint8Array(buffer, 1, length)), frames: decode(buffer, 1 + length) };
}
