// Visible signs for what a reader cannot see: control, bidi and zero-width characters of hostile or broken text.

const NAMED = new Map([
  [0x00ad, "SHY"], [0x034f, "CGJ"], [0x061c, "ALM"], [0x115f, "HCF"], [0x1160, "HJF"], [0x180e, "MVS"],
  [0x200b, "ZWSP"], [0x200c, "ZWNJ"], [0x200d, "ZWJ"], [0x200e, "LRM"], [0x200f, "RLM"], [0x2028, "LS"], [0x2029, "PS"],
  [0x202a, "LRE"], [0x202b, "RLE"], [0x202c, "PDF"], [0x202d, "LRO"], [0x202e, "RLO"], [0x2060, "WJ"],
  [0x2066, "LRI"], [0x2067, "RLI"], [0x2068, "FSI"], [0x2069, "PDI"], [0x3164, "HF"], [0xfeff, "BOM"], [0xffa0, "HHF"],
]);

/** Return what stands for code point `code`, or "" where the character shows itself. */
export function glyph(code) {
  if (code === 10) return "↵\n";
  if (code === 9) return "⇥";
  if (code < 32) return String.fromCodePoint(0x2400 + code);
  if (code < 127) return "";
  if (code === 127) return "␡";
  if (code < 160) return `‹U+00${code.toString(16).toUpperCase()}›`;
  const name = NAMED.get(code);
  if (name) return `‹${name}›`;
  if (code >= 0xe0000 && code <= 0xe0fff) return `‹U+${code.toString(16).toUpperCase()}›`;
  return "";
}

const plain = /^[\x20-\x7e]*$/;

/** Return `text` with every invisible character shown. */
export function visible(text) {
  if (plain.test(text)) return text;
  let out = "";
  for (const sign of text) out += glyph(sign.codePointAt(0)) || sign;
  return out;
}

const width = (code) => (code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4);

/**
 * Lay tokens over the visible text: return {shown, starts}, where token t covers shown[starts[t], starts[t + 1]).
 *
 * `offsets[t]` is the byte at which token t starts in the UTF-8 of `text`. A character of several tokens belongs to
 * the token that completes it; those before it cover nothing and start where it does.
 */
export function layout(text, offsets, count) {
  const starts = new Uint32Array(count + 1);
  let shown = "", byte = 0, token = 0;
  for (const sign of text) {
    while (token < count && offsets[token] <= byte) starts[token++] = shown.length;
    const code = sign.codePointAt(0);
    shown += glyph(code) || sign;
    byte += width(code);
  }
  while (token <= count) starts[token++] = shown.length;
  return { shown, starts };
}
