// The run page: reads what the server wrote into #run-data and starts one object for each behaviour.

import { AllMetrics } from "./all_metrics.js";
import { Header } from "./header.js";
import { LiveRollouts } from "./live_rollouts.js";
import { Log } from "./log.js";
import { Overview } from "./overview.js";
import { Reader } from "./rollouts.js";
import { RunLive } from "./run_live.js";
import { Steering } from "./steer.js";
import { Tabs } from "./tabs.js";
import { WhatIf } from "./whatif.js";

const data = JSON.parse(document.getElementById("run-data").textContent);
const root = document.querySelector("[data-run-live]");
const find = (name) => root.querySelector(`[data-${name}]`);

new Header(root, data.run);
const reader = new Reader(find("reader"), { indexUrl: data.urls.rollouts, rolloutUrl: data.urls.rollout, vocabulary: data.vocabulary });
const overview = new Overview(find("overview"), { seriesUrl: data.urls.series, panels: data.panels, events: data.markers, target: data.target });
new AllMetrics(find("all-metrics"), overview, data.names, data.panels.flatMap((panel) => panel.series.map(({ name }) => name)));
const growing = new LiveRollouts(find("live"), reader.mode, data.vocabulary);
new Steering(root);
new Log(find("log"), data.urls.log);
new WhatIf(find("reader"), reader, data.urls.whatif);
const tabs = new Tabs(find("tabs"));
reader.start();

document.addEventListener("run:open-step", () => tabs.open("rollouts"));
document.body.addEventListener("run-steered", ({ detail }) => {
  if (detail.name === data.target.knob) overview.aim(detail.value);
});

// Fragments that the server draws are fetched again when one of their events arrived (hx-trigger="… from:body").
const tell = (name) => document.body.dispatchEvent(new CustomEvent(name));
const FRAGMENTS = {
  "run-checkpoints": ["checkpoint", "checkpoint_removed", "started"],
  "run-evaluation": ["evaluation", "started"],
  "run-knobs": ["started", "finished", "failed"],
  "run-timeline": ["started", "checkpoint", "evaluation", "knob", "alert", "warning", "finished", "failed"],
};
document.addEventListener("run:events", ({ detail }) => {
  const types = new Set(detail.map(({ type }) => type));
  for (const [name, wanted] of Object.entries(FRAGMENTS)) if (wanted.some((type) => types.has(type))) tell(name);
});
document.addEventListener("run:refresh", () => ["run-header", "run-knobs"].forEach(tell));

new RunLive({ url: data.urls.socket, eventsUrl: data.urls.events, last: data.run.last_seq, group: growing.group });
document.documentElement.dataset.runReady = "";
