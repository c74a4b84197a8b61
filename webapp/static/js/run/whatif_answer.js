// What a worker answers: asked for until it is there; one objective's token columns laid beside a bundle's own.

import { float16 } from "./frames.js";

const PAUSE = 350, SLOWEST = 1500;

/** A refusal of the server: one sentence, and the setting it is about. */
export class Problem extends Error {
  constructor({ problem, field }) {
    super(problem);
    this.field = field ?? "";
  }
}

/** Fetch `url` until its answer is computed; `progress` hears of the states before. Throws Problem, or an abort. */
export async function computed(url, { signal, progress = () => {} }) {
  for (let pause = PAUSE; ; pause = Math.min(SLOWEST, pause * 1.2)) {
    const response = await fetch(url, { signal });
    if (response.status === 200) return response;
    const json = response.headers.get("content-type")?.includes("json");
    if (response.status !== 202) throw new Problem(json ? await response.json() : { problem: `The server answered ${response.status}; try again.` });
    progress(await response.json());
    await new Promise((resolve) => { setTimeout(resolve, pause); });
    if (signal.aborted) throw signal.reason;
  }
}

/** Read the binary answer: {row, kinds, columns}. */
export function decode(buffer) {
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const base = Math.ceil((4 + size) / 8) * 8;
  const columns = {};
  for (const [name, { dtype, offset, length }] of Object.entries(header.columns)) {
    columns[name] = dtype === "f16" ? float16(buffer, base + offset, length) : new Uint8Array(buffer, base + offset, length);
  }
  return { ...header, columns };
}

/** Lay an answer's columns beside those of each completion of the bundle; null takes them away. */
export function attach(bundle, answer) {
  for (const { first, tokens, columns } of bundle.rollouts) {
    if (!answer) { for (const name of ["whatif", "whatif_entropy", "whatif_kind", "own_kind", "difference"]) delete columns[name]; continue; }
    const part = (name) => answer.columns[name].subarray(first, first + tokens);
    Object.assign(columns, { whatif: part("weight"), whatif_entropy: part("entropy_weight"), whatif_kind: part("kind"), own_kind: part("own_kind"), whatif_title: answer.row.title });
    columns.difference = Float32Array.from(columns.whatif, (value, t) => value - (columns.weight?.[t] ?? 0));
  }
}
