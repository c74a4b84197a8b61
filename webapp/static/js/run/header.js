// The head of the page: numbers move here, anything that changes buttons or sentences is fetched from the server.

import { EMPTY, eta } from "./format.js";

const CONNECTION = { live: "live", connecting: "reconnecting", polling: "polling", offline: "offline", refused: "signed out", gone: "deleted" };

export class Header {
  constructor(root, state) {
    Object.assign(this, { root, key: this.keyOf(state) });
    document.addEventListener("run:state", ({ detail }) => this.update(detail));
    document.addEventListener("run:frames", ({ detail }) => this.frames(detail));
    document.addEventListener("run:connection", ({ detail }) => this.connection(detail));
  }

  part(name) { return this.root.querySelector(`[data-run-${name}]`); }

  /** What the server draws: when it changes, the fragment is fetched again. */
  keyOf({ state, attempt, unresponsive, failure, resumable, waiting_reason: waiting, name, stop_requested: stop }) {
    return JSON.stringify([state, attempt, unresponsive, failure, resumable, waiting, name, stop]);
  }

  update(run) {
    const key = this.keyOf(run);
    if (key !== this.key) {
      this.key = key;
      document.dispatchEvent(new CustomEvent("run:refresh"));
    }
    this.phase(run.phase, run.phase_done, run.phase_total);
    this.part("step").textContent = run.total_steps ? `${run.step} / ${run.total_steps}` : EMPTY;
    this.part("progress").max = run.total_steps || 1;
    this.part("progress").value = run.step;
    this.part("eta").textContent = eta(run.eta_seconds);
  }

  phase(phase, done, total) {
    this.part("phase").textContent = phase ? `${phase}${total ? ` ${done} of ${total}` : ""}` : "";
  }

  /** Progress within a step comes with the live frames, faster than rows. */
  frames(frames) {
    const last = frames.findLast((frame) => frame.kind === 3)?.payload;
    if (last) this.phase(String(last.phase), last.done, last.total);
  }

  connection(state) {
    const badge = document.querySelector("[data-run-connection]");
    badge.dataset.state = state;
    badge.textContent = CONNECTION[state];
    if (state === "gone") window.toast("This run was deleted.", "error");
  }
}
