// The prompts of a step: how many answers are right, how sure they are, and which one the reader shows.

import { el } from "./dom.js";
import { short } from "./entropies.js";
import { visible } from "./glyphs.js";
import { groupFacts } from "./rollout_card.js";

/** Fill `element` with "All prompts" and an entry for each group; `choose(id)` hears of a click. */
export function groupList(element, groups, { chosen, total, choose }) {
  const entry = (id, label, note, facts) => {
    const button = el("button.group-entry", { type: "button", ariaCurrent: id === chosen ? "true" : "false" },
      el("span.group-label", {}, label), el("span.group-note", {}, note));
    if (facts) {
      const bar = el("i.group-bar"), fill = el("i");
      fill.style.width = `${facts.graded ? 100 * facts.right / facts.graded : 0}%`;
      bar.append(fill);
      button.append(bar);
      button.classList.toggle("is-flat", Boolean(facts.badge));
    }
    button.addEventListener("click", () => choose(id));
    return button;
  };
  const entries = [...groups].map(([group, rollouts]) => {
    const facts = groupFacts(rollouts);
    return entry(String(group), visible(rollouts[0].prompt).slice(0, 160), `${facts.right}/${facts.graded} · ${short(facts.entropy, facts.bounds, 2)}`, facts);
  });
  const top = element.scrollTop;
  element.replaceChildren(entry("all", "All prompts", `${total} completions`), ...entries);
  element.scrollTop = top;
}
