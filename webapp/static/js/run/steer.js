// Steering: a requested value is pending until the trainer says that it took effect.

import { number } from "./format.js";

export class Steering {
  constructor(root) {
    this.root = root;
    document.addEventListener("run:events", ({ detail }) => detail.forEach((event) => this.take(event)));
    document.addEventListener("run:state", ({ detail }) => this.values(detail));
  }

  row(name) { return this.root.querySelector(`[data-knob="${CSS.escape(name)}"]`); }

  take(event) {
    if (event.type !== "knob") return undefined;
    const row = this.row(event.name);
    if (!row) return undefined;
    this.setValue(row, event.new);
    if (event.source !== "user" || event.control_seq < Number(row.dataset.controlSeq || 0)) return undefined;
    row.querySelector("[data-knob-pending]").hidden = true;
    row.classList.remove("is-applied");
    requestAnimationFrame(() => row.classList.add("is-applied"));
    return undefined;
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
