// Seeds of one group as one curve: the mean of its runs, and a band from the lowest to the highest.

/** Value of a polyline at x, null outside of it. */
function at(xs, values, x) {
  if (!xs.length || x < xs[0] || x > xs.at(-1)) return null;
  let low = 0;
  let high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  const width = xs[high] - xs[low];
  return width > 0 ? values[low] + ((x - xs[low]) / width) * (values[high] - values[low]) : values[high];
}

/** The current points of each run in one polyline: an attempt goes on where the one before it was resumed. */
function polylines(lines) {
  const runs = new Map();
  for (const line of lines) {
    if (line.superseded || line.raw) continue;
    const whole = runs.get(line.run.id) ?? { run: line.run, xs: [], values: [] };
    line.xs.forEach((x, index) => {
      if (whole.xs.length && x <= whole.xs.at(-1)) return;
      whole.xs.push(x);
      whole.values.push(line.values[index]);
    });
    runs.set(line.run.id, whole);
  }
  return [...runs.values()];
}

/** Turn lines of runs into [low edge, high edge, mean] for each `run.group`, over the runs that got as far as x. */
export function bandLines(lines) {
  const groups = new Map();
  for (const one of polylines(lines)) groups.set(one.run.group.label, [...(groups.get(one.run.group.label) ?? []), one]);
  return [...groups.values()].flatMap((members) => {
    const { group } = members[0].run;
    const run = { id: group.label, name: `${group.label} (${members.length})`, colour: group.colour, dash: group.dash };
    const xs = [...new Set(members.flatMap((one) => one.xs))].sort((a, b) => a - b);
    const columns = xs.map((x) => members.map((one) => at(one.xs, one.values, x)).filter((value) => value !== null));
    const line = (of, more) => ({ run, superseded: false, xs, values: columns.map(of), ...more });
    const mean = line((values) => values.reduce((sum, value) => sum + value, 0) / values.length, {});
    if (members.length < 2) return [mean];
    return [line((values) => Math.min(...values), { edge: "low" }), line((values) => Math.max(...values), { edge: "high" }), mean];
  });
}
