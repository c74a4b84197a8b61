// The new-run form: asks the server what it thinks after each change, writes its messages beside the fields, marks
// what differs from the default, shows fields only where they matter. What people type is never replaced.

const form = document.querySelector("#run-form");
const CHECK_AFTER = 350; // ms of rest
let timer = 0;

const fieldOf = (path) => form.querySelector(`[data-field="${CSS.escape(path)}"]`);
const inputOf = (field) => field.querySelector("input:not([type=hidden]), select, textarea");
const textOf = (input) => (input.type === "checkbox" ? (input.checked ? "on" : "off") : input.value);

function checkSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => htmx.trigger(form, "run:check"), CHECK_AFTER);
}

function same(a, b) {
  if (a.trim() === b.trim() || a.trim() === "") return true;
  return a.trim() !== "" && b !== "" && Number(a) === Number(b);
}

// Marks fields that differ from their default, and parts that hold such a field.
function markChanged() {
  for (const field of form.querySelectorAll("[data-default]")) {
    const input = inputOf(field);
    if (input) field.classList.toggle("is-changed", !same(textOf(input), field.dataset.default));
  }
  for (const part of form.querySelectorAll(".part")) part.classList.toggle("is-changed", part.querySelector(".is-changed") !== null);
}

// Shows fields whose sibling has the value at which they matter.
function showWhatMatters() {
  for (const field of form.querySelectorAll("[data-show-if]")) {
    const wanted = Object.entries(JSON.parse(field.dataset.showIf));
    field.hidden = wanted.some(([path, texts]) => {
      const sibling = fieldOf(path);
      return sibling !== null && !texts.includes(textOf(inputOf(sibling)));
    });
  }
}

function writeErrors() {
  const state = form.querySelector("[data-form-state]");
  const errors = JSON.parse(state.dataset.errors || "{}");
  for (const place of form.querySelectorAll("[data-error-for]")) {
    const text = errors[place.dataset.errorFor] ?? "";
    if (place.textContent !== text) place.textContent = text;
    const field = place.closest("[data-field]");
    if (field?.classList.contains("field")) inputOf(field)?.classList.toggle("is-invalid", text !== "");
    if (text) for (let fold = place.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  }
}

// An answer replaces the whole panel: what was unfolded there stays unfolded.
const unfolded = new Set();

function rememberFold(summary) {
  if (summary.parentElement.open) unfolded.delete(summary.textContent);
  else unfolded.add(summary.textContent);
}

function unfold() {
  for (const summary of form.querySelectorAll("#panel summary")) summary.parentElement.open ||= unfolded.has(summary.textContent);
}

function refresh() {
  unfold();
  writeErrors();
  showWhatMatters();
  markChanged();
}

form.addEventListener("input", (event) => {
  if (event.target.name === "model.source_other") form.querySelector('[name="model.source"][value="other:"]').checked = true;
  showWhatMatters();
  markChanged();
  if (!event.target.closest("[hx-trigger=change]")) checkSoon();
});

form.addEventListener("click", (event) => {
  const summary = event.target.closest("#panel summary");
  if (summary) rememberFold(summary);
  const reset = event.target.closest("[data-reset]");
  if (reset) {
    const field = fieldOf(reset.dataset.reset);
    const input = inputOf(field);
    if (input.type === "checkbox") input.checked = field.dataset.default === "on";
    else input.value = field.dataset.default;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.focus();
  }
  const link = event.target.closest("[data-go]");
  if (link) {
    event.preventDefault();
    goTo(link.dataset.go);
  }
});

function goTo(id) {
  const target = document.getElementById(id);
  if (!target) return;
  for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target.scrollIntoView({ block: "center" });
  (target.matches("input, select, textarea") ? target : target.querySelector("input, select, textarea"))?.focus({ preventScroll: true });
}

// Choosing an uploaded dataset fills in its file and its columns.
form.addEventListener("change", (event) => {
  const pick = event.target.closest("[data-dataset-pick]");
  if (!pick || !pick.value) return;
  const { prompt, answer } = pick.selectedOptions[0].dataset;
  for (const [name, value] of [["path", pick.value], ["prompt_column", prompt], ["answer_column", answer]]) {
    const input = form.elements[`task.${name}`];
    if (input) input.value = value;
  }
  pick.dispatchEvent(new Event("input", { bubbles: true }));
});

// Many objectives are searched in place; the chosen one stays in sight.
const pickList = form.querySelector("[data-pick-list]");
const chosenPick = () => pickList.querySelector("input:checked")?.closest(".pick");
const showChosenPick = () => (pickList.scrollTop = (chosenPick()?.offsetTop ?? 0) - pickList.offsetTop - 8);

function searchPicks(text) {
  const words = text.trim().toLowerCase().split(/\s+/);
  const picks = [...pickList.querySelectorAll("[data-pick-words]")];
  for (const pick of picks) pick.hidden = pick !== chosenPick() && !words.every((word) => pick.dataset.pickWords.includes(word));
  form.querySelector("[data-pick-none]").hidden = picks.some((pick) => !pick.hidden && pick !== chosenPick()) || text.trim() === "";
  if (text.trim() === "") showChosenPick();
}

form.querySelector("[data-pick-search]").addEventListener("input", (event) => {
  event.stopPropagation();
  searchPicks(event.target.value);
});
form.querySelector("[data-pick-search]").addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());

// Launching tries model, data and reward first, which takes seconds.
form.addEventListener("submit", (event) => {
  if (event.submitter?.value !== "launch") return;
  const label = form.querySelector("[data-launch-label]");
  label.textContent = "Checking…";
  form.classList.add("is-launching");
});
window.addEventListener("pageshow", () => {
  form.classList.remove("is-launching");
  form.querySelector("[data-launch-label]").textContent = form.dataset.launchText ?? "Launch";
});

document.addEventListener("htmx:after:swap", refresh);
refresh();
showChosenPick();
