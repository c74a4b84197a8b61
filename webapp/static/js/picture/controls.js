// The controls beside a picture: a slider and a number that follow each other, menus, switches.

const STOPS = 1000; // of a slider

/** Place of a value on its slider, 0 to STOPS. */
export function placeOf(value, { low, high, scale }) {
  const share = scale === "log" ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  return Number.isFinite(share) ? Math.round(STOPS * Math.min(1, Math.max(0, share))) : 0;
}

/** Value at a place of a slider, in three significant digits. */
export function valueAt(place, { low, high, scale, whole }) {
  const share = place / STOPS;
  const value = scale === "log" ? low * (high / low) ** share : low + (high - low) * share;
  return whole ? Math.round(value) : Number(value.toPrecision(3));
}

export class Controls {
  /** `changed()` is called when a person moved something. */
  constructor(host, changed) {
    this.items = [...host.querySelectorAll("[data-control]")].map((element) => this.item(element));
    this.reset = host.querySelector("[data-reset]");
    host.addEventListener("input", (event) => {
      const item = this.items.find((one) => one.element.contains(event.target));
      if (!item) return;
      if (event.target === item.slider) item.input.value = valueAt(item.slider.valueAsNumber, item.range);
      else this.follow(item);
      this.mark();
      changed();
    });
    this.reset.addEventListener("click", () => {
      for (const item of this.items) this.set(item, item.element.dataset.start);
      this.mark();
      changed();
    });
    this.mark();
  }

  item(element) {
    const slider = element.querySelector("input[type=range]");
    const item = { element, slider, input: element.querySelector("input, select"), ...element.dataset };
    if (slider) {
      const { low, high, scale } = slider.dataset;
      item.range = { low: Number(low), high: Number(high), scale, whole: "whole" in slider.dataset };
    }
    this.follow(item);
    return item;
  }

  follow(item) {
    if (item.slider) item.slider.value = placeOf(item.input.valueAsNumber, item.range);
  }

  set(item, value) {
    if (item.kind === "switch") item.input.checked = value === "1";
    else item.input.value = value;
    this.follow(item);
  }

  read(item) {
    if (item.kind === "switch") return item.input.checked;
    return item.kind === "choice" ? item.input.value : item.input.valueAsNumber;
  }

  isMoved(item) {
    const { start } = item.element.dataset;
    if (item.kind === "switch") return item.input.checked !== (start === "1");
    return item.kind === "choice" ? item.input.value !== start : item.input.valueAsNumber !== Number(start);
  }

  /** Whether a setting matters at the present values of those beside it. */
  matters({ showIf, owner }) {
    if (!showIf) return true;
    return Object.entries(JSON.parse(showIf)).every(([name, wanted]) => {
      const other = this.items.find((item) => item.owner === owner && item.name === name);
      return !other || [wanted].flat().includes(this.read(other));
    });
  }

  mark() {
    let any = false;
    for (const item of this.items) {
      item.element.hidden = !this.matters(item);
      const moved = this.isMoved(item);
      item.element.classList.toggle("is-moved", moved);
      any ||= moved;
    }
    this.reset.disabled = !any;
  }

  /** The scene, and the parts with the settings that were moved; null while a number is half typed. */
  question() {
    const scene = {}, parts = new Map();
    for (const item of this.items) {
      const value = this.read(item);
      if (Number.isNaN(value)) return null;
      if (item.owner === "scene") scene[item.name] = value;
      else if (this.isMoved(item)) parts.set(item.owner, { ...parts.get(item.owner), type: item.owner, [item.name]: value });
    }
    return { scene, parts: [...parts.values()] };
  }

  /** Show a problem beside the setting it is about; false where no control is it. */
  complain(field, problem) {
    const name = field.split(".").at(-1);
    let found = false;
    for (const item of this.items) {
      const its = problem && item.name === name && !found;
      item.element.querySelector(".control-problem").textContent = its ? problem : "";
      found ||= its;
    }
    return found;
  }
}
