// Steering: a requested value is pending until the trainer says that it took effect.

import { number } from "./format.js";

export class Steering {
  constructor(root) {
    Object.assign(this, { root, taken: new Map() });
    // The trainer can be faster than the answer to the request, which then still draws it as pending.
    document.addEventListener("htmx:after:swap", () => this.taken.forEach((event) => this.settle(event)));
    document.addEventListener("run:events", ({ detail }) => detail.forEach((event) => this.take(event)));
    document.addEventListener("run:state", ({ detail }) => this.values(detail));
  }

  row(name) { return this.root.querySelector(`[data-knob="${CSS.escape(name)}"]`); }

  take(event) {
    if (event.type !== "knob") return;
    const row = this.row(event.name);
    if (row) this.setValue(row, event.new);
    if (event.source !== "user") return;
    this.taken.set(event.name, event);
    if (!this.settle(event)) return;
    row.classList.remove("is-applied");
    requestAnimationFrame(() => row.classList.add("is-applied"));
  }

  /** Nothing is pending any more if this event answers the newest request; tell whether it does. */
  settle({ name, control_seq: seq }) {
    const row = this.row(name), answered = row !== null && seq >= Number(row.dataset.controlSeq || 0);
    if (answered) row.querySelector("[data-knob-pending]").hidden = true;
    return answered;
  }

  setValue(row, value) {
    row.querySelector("[data-knob-value]").textContent = number(value);
  }

  /** Controllers move knobs too: show the values in force. */
  values({ knobs }) {
    for (const [name, spec] of Object.entries(knobs ?? {})) {
      const row = this.row(name);
      if (row) this.setValue(row, spec.value);
    }
  }
}
