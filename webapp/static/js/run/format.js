// Numbers as people read them.

export const EMPTY = "–";

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return EMPTY;
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size + 1))))).toString();
}

export const signed = (value) => (value > 0 ? `+${number(value)}` : number(value).replace("-", "−"));

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) { count /= 1000; at += 1; }
  return `${at ? count.toPrecision(3) : count} ${units[at]}`;
}

/** A metric's value: bytes come in GiB and are said in the unit that fits. */
export function shown(name, value, digits = 3) {
  if (!name.endsWith("_bytes") || value === null || value === undefined) return number(value, digits);
  const gib = Math.abs(value) >= 1, size = gib ? value : value * 1024;
  return `${Number(size.toPrecision(digits))} ${gib ? "GiB" : "MiB"}`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const hours = seconds / 3600;
  return hours < 48 ? `${hours.toFixed(1)} h` : `${(hours / 24).toFixed(1)} d`;
}

/** An estimate from the server: one number, or [low, high] in seconds. */
export function eta(value) {
  if (value === null || value === undefined) return "";
  const [low, high] = Array.isArray(value) ? value : [value, value];
  const text = duration(low) === duration(high) ? duration(low) : `${duration(low)} to ${duration(high)}`;
  return `about ${text} left`;
}
