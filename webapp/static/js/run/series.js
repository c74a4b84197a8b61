// The points the page knows: per metric its segments, one per attempt and per fate (current or superseded).

/** Points of a run, loaded from `runs:series` and extended by live events. */
export class Series {
  constructor(url) {
    Object.assign(this, { url, metrics: new Map(), decimated: false, shown: 0, total: 0 });
  }

  /** Fetch metrics (again); `range` is {from, to} in steps or null, `points` the most wanted for each metric. */
  async load(names, points, range = null) {
    if (!names.length) return;
    const query = new URLSearchParams({ names: names.join(","), points, ...(range ?? {}) });
    const answer = await fetch(`${this.url}?${query}`);
    if (!answer.ok) throw new Error(`The server answered ${answer.status} for the charts; reload the page.`);
    const data = await answer.json();
    for (const name of names) {
      const segments = (data.series[name] ?? []).map(([attempt, superseded, steps, values, times]) => ({ attempt, superseded, steps, values, times }));
      this.metrics.set(name, this.#withLiveTail(name, segments, range));
    }
    Object.assign(this, { decimated: data.decimated, shown: data.shown, total: data.total });
  }

  /** Points that arrived while the answer was on its way stay. */
  #withLiveTail(name, segments, range) {
    if (range) return segments;
    for (const old of this.metrics.get(name) ?? []) {
      if (old.superseded) continue;
      const fresh = segments.find((segment) => segment.attempt === old.attempt && !segment.superseded);
      if (!fresh) continue;
      const last = fresh.steps.at(-1) ?? -1;
      old.steps.forEach((step, at) => step > last && push(fresh, step, old.values[at], old.times[at]));
    }
    return segments;
  }

  segments(name) { return this.metrics.get(name) ?? []; }

  current(name) { return this.segments(name).filter((segment) => !segment.superseded); }

  latest(name) { return this.current(name).at(-1)?.values.at(-1) ?? null; }

  /** Take a live event; return the names of the metrics that changed. */
  add(event) {
    if (event.type === "started" && event.attempt > 1) return this.#rewind(event);
    const prefix = event.type === "evaluation" ? "evaluation/" : "";
    if (event.type !== "metrics" && !prefix) return [];
    const changed = Object.keys(event.values).map((name) => prefix + name);
    changed.forEach((name) => this.#append(name, event, event.values[name.slice(prefix.length)]));
    return changed;
  }

  #append(name, { attempt, step, time }, value) {
    if (!this.metrics.has(name)) this.metrics.set(name, []);
    const segments = this.metrics.get(name);
    let segment = segments.find((one) => one.attempt === attempt && !one.superseded);
    if (!segment) segments.push((segment = { attempt, superseded: false, steps: [], values: [], times: [] }));
    if (step > (segment.steps.at(-1) ?? -1)) push(segment, step, value, time);
  }

  /** A new attempt began: points behind its resume step leave the current curve and stay, dimmed. */
  #rewind({ attempt, resume_step: resume }) {
    for (const [name, segments] of this.metrics) {
      this.metrics.set(name, segments.flatMap((segment) => (segment.superseded || segment.attempt >= attempt ? [segment] : cut(segment, resume))));
    }
    return [...this.metrics.keys()];
  }
}

function push(segment, step, value, time) {
  segment.steps.push(step);
  segment.values.push(value);
  segment.times.push(time);
}

function cut(segment, resume) {
  let at = segment.steps.findIndex((step) => step > resume);
  if (at < 0) return [segment];
  const part = (superseded, from, to) => ({
    attempt: segment.attempt, superseded,
    steps: segment.steps.slice(from, to), values: segment.values.slice(from, to), times: segment.times.slice(from, to),
  });
  return [part(false, 0, at), part(true, at)].filter((one) => one.steps.length);
}
