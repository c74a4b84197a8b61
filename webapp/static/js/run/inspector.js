// What is known of one token: the hover tooltip, the pinned card and what a screen reader hears.

import { el } from "./dom.js";
import { isBounded, natsAt } from "./entropies.js";
import { EMPTY, number, signed } from "./format.js";
import { AUXILIARY, MASKED, UNGRADED, hit } from "./heatmap.js";
import { contextReason } from "./lineage.js";
import { LIMITS, isClamped } from "./scale.js";

const FLAGS = [[MASKED, "masked by the objective"], [UNGRADED, "completion without a reward"], [AUXILIARY, "auxiliary sample"]];

/** Facts of token t as [label, value, key] rows. */
export function facts(text, t, vocabulary) {
  const { columns, first = 0 } = text, at = (name) => columns[name]?.[t];
  const rows = [["Position", `${first + t + 1} of ${first + text.count}`], ["Token id", at("token_ids") ?? EMPTY]];
  const entropy = at("entropy");
  if (entropy !== undefined && !Number.isNaN(entropy)) {
    const bounded = isBounded(columns, t), share = vocabulary > 1 && !bounded ? ` · ${(100 * entropy / Math.log(vocabulary)).toFixed(1)} % of ln V` : "";
    const clamped = isClamped("entropy", entropy) ? ` · beyond the scale (${LIMITS.entropy})` : "";
    rows.push(["Entropy", `${natsAt(columns, t)}${bounded ? "" : ` · ${number(entropy / Math.LN2)} bits`}${share}${clamped}`]);
    if (bounded) rows.push(["Coloured as", `${number(entropy)} nats, the middle of the bounds: the engine knew no more`]);
  }
  const logprob = at("logprob");
  if (logprob !== undefined && !Number.isNaN(logprob)) rows.push(["Log-prob", signed(logprob)], ["Probability", percent(Math.exp(logprob))]);
  const engine = at("engine_logprob");
  if (Math.abs(engine - logprob) > 1e-3) rows.push(["Sampler’s log-prob", `${signed(engine)} (differs by ${number(Math.abs(engine - logprob))})`]);
  if (at("weight") !== undefined) rows.push(["Objective weight", withKind(signed(at("weight")), at("own_kind"))]);
  if (at("entropy_weight") !== undefined) rows.push(["Entropy weight", signed(at("entropy_weight"))]);
  if (at("whatif") !== undefined) {
    rows.push([`What if: ${columns.whatif_title}`, withKind(signed(at("whatif")), at("whatif_kind"))], ["Difference", signed(at("difference"))]);
    if (at("whatif_entropy") || at("entropy_weight")) rows.push(["Its entropy weight", signed(at("whatif_entropy"))]);
  }
  const flags = FLAGS.filter(([bit]) => at("flags") & bit).map(([, name]) => name);
  if (text.forks?.[t]) flags.push(isBounded(columns, t) ? "top 20 % by the middle of the bounds" : "top 20 % by entropy");
  if (flags.length) rows.push(["Flags", flags.join(", ")]);
  if (text.isContext(t)) rows.push(["Context", contextReason(text.rollout, t)]);
  if (text.branches?.has(t)) rows.push(["Fork", text.branches.get(t)]);
  const parts = text.sharing(t);
  if (parts > 1) rows.push(["Shared", `this text is made of ${parts} tokens`]);
  return rows;
}

const KINDS = ["no gradient", "pushed up", "pulled down", "masked", "clipped"]; // of trainer/whatif/effect.py
const withKind = (text, kind) => (kind === undefined ? text : `${text} · ${KINDS[kind]}`);

const percent = (share) => (share >= 0.9995 ? "> 99.9 %" : share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

/** The token's text with spaces shown; tokens without text say so. */
export function tokenLabel(text, t) {
  const shown = text.textOf(t).replaceAll("\n", "").replaceAll(" ", "␣");
  return shown || "(no text of its own)";
}

function fill(element, text, t, vocabulary) {
  element.replaceChildren(
    el("div.token-name", {}, tokenLabel(text, t)),
    el("dl", {}, ...facts(text, t, vocabulary).flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, String(value))])),
  );
}

/** Sentence for the screen reader. */
function announcement(text, t) {
  const entropy = text.columns.entropy?.[t];
  let rank = 1;
  for (const value of text.columns.entropy ?? []) if (value > entropy) rank += 1;
  return `Token ${tokenLabel(text, t)}, entropy ${natsAt(text.columns, t)}, rank ${rank} of ${text.count}`;
}

/** One shared tooltip and one pinned card for all texts below `root`. */
export class Inspector {
  constructor(root, vocabulary) {
    Object.assign(this, { root, vocabulary, pinned: null });
    this.tooltip = root.querySelector("[data-token-tooltip]") ?? document.querySelector("[data-token-tooltip]");
    this.card = root.querySelector("[data-token-card]");
    this.live = root.querySelector("[data-token-announce]") ?? document.querySelector("[data-token-announce]");
    root.addEventListener("mousemove", (event) => this.moved(event));
    root.addEventListener("mouseleave", () => this.hide());
    root.addEventListener("scroll", () => this.hide(), { capture: true, passive: true });
    root.addEventListener("click", (event) => this.clicked(event));
    this.card?.querySelector("[data-unpin]")?.addEventListener("click", () => this.unpin());
  }

  moved({ target, clientX, clientY }) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      const found = target.closest?.(".tokens") ? hit(clientX, clientY) : null;
      if (!found) return this.hide();
      if (found.text !== this.text || found.token !== this.token) fill(this.tooltip, found.text, found.token, this.vocabulary);
      Object.assign(this, found);
      this.place(clientX, clientY);
    });
  }

  place(x, y) {
    const { tooltip } = this;
    tooltip.hidden = false;
    const { width, height } = tooltip.getBoundingClientRect();
    const left = Math.max(8, Math.min(x + 14, innerWidth - width - 8)), below = y + 18 + height < innerHeight;
    tooltip.style.transform = `translate(${Math.round(left)}px, ${Math.round(below ? y + 18 : y - height - 12)}px)`;
  }

  hide() {
    this.text = null;
    this.tooltip.hidden = true;
  }

  clicked({ target, clientX, clientY }) {
    if (!target.closest?.(".tokens") || !getSelection().isCollapsed) return;
    const found = hit(clientX, clientY);
    if (found) this.pin(found.text, found.token);
  }

  pin(text, token) {
    this.pinned?.text.unpin();
    this.pinned = { text, token };
    text.pin(token);
    if (this.card) {
      fill(this.card.querySelector("[data-token-facts]"), text, token, this.vocabulary);
      this.card.hidden = false;
    }
    this.live.textContent = announcement(text, token);
    this.root.dispatchEvent(new CustomEvent("token:pinned", { detail: this.pinned }));
  }

  unpin() {
    if (!this.pinned) return;
    this.pinned.text.unpin();
    this.pinned = null;
    if (this.card) this.card.hidden = true;
    this.root.dispatchEvent(new CustomEvent("token:pinned", { detail: null }));
  }
}
