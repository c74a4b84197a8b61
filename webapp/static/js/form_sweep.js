// The sweep's part of the new-run form: rows of settings come and go, objectives are searched and ticked, the launch
// button says how many runs it makes. The server lists the runs after each change (form.js asks it).

const sweepForm = document.querySelector("#run-form");
const section = document.querySelector("#step-sweep");
const list = section.querySelector("[data-sweep-objectives]");
const sweepRows = section.querySelector("[data-sweep-rows]");
const template = section.querySelector("template[data-sweep-row]");
const shown = () => [...list.querySelectorAll("[data-sweep-words]:not([hidden])")];

// Tells form.js that something was typed, as an input of one's own would.
const changed = () => section.dispatchEvent(new Event("input", { bubbles: true }));

function nextIndex() {
  const used = [...sweepRows.querySelectorAll("input[name$='.path']")].map((input) => Number(input.name.split(".")[2]));
  return Math.max(-1, ...used) + 1;
}

function add() {
  const index = nextIndex();
  const row = template.content.firstElementChild.cloneNode(true);
  for (const element of [row, ...row.querySelectorAll("*")]) {
    for (const { name, value } of [...element.attributes]) {
      if (value.includes("INDEX")) element.setAttribute(name, value.replaceAll("INDEX", index));
    }
  }
  sweepRows.append(row);
  row.querySelector("input").focus();
}

function remove(row) {
  if (sweepRows.children.length > 1) row.remove();
  else for (const input of row.querySelectorAll("input")) input.value = "";
  changed();
}

function search(text) {
  const words = text.trim().toLowerCase().split(/\s+/);
  for (const label of list.querySelectorAll("[data-sweep-words]")) label.hidden = !words.every((word) => label.dataset.sweepWords.includes(word));
  list.querySelector("[data-sweep-none]").hidden = shown().length > 0;
}

function count() {
  const ticked = list.querySelectorAll("input[type=checkbox]:checked:not(:disabled)").length;
  list.querySelector("[data-sweep-ticked]").textContent = ticked ? `${ticked} ticked` : "";
}

// The objective above is in the sweep already: its own entry is ticked and cannot be taken out.
function markPresent() {
  const present = section.querySelector("[data-sweep-present]")?.dataset.sweepPresent;
  if (present === undefined) return;
  for (const box of list.querySelectorAll("input[type=checkbox]:not([data-untrainable])")) {
    const own = box.name === `sweep.preset.${present}`;
    if (own === box.disabled) continue;
    box.disabled = own;
    if (own) box.dataset.ticked = String(box.checked);
    box.checked = own || box.dataset.ticked === "true";
  }
}

function label() {
  const on = sweepForm.elements["sweep.on"].checked;
  const runs = Number(section.querySelector("[data-sweep-runs]")?.dataset.sweepRuns ?? 0);
  sweepForm.dataset.launchText = on && runs ? `Launch ${runs} run${runs === 1 ? "" : "s"}` : "Launch";
  if (!sweepForm.classList.contains("is-launching")) sweepForm.querySelector("[data-launch-label]").textContent = sweepForm.dataset.launchText;
}

function update() {
  markPresent();
  count();
  label();
}

section.addEventListener("click", (event) => {
  if (event.target.closest("[data-sweep-add]")) add();
  else if (event.target.closest("[data-sweep-remove]")) remove(event.target.closest(".sweep-row-edit"));
  else if (event.target.closest("[data-sweep-tick]")) {
    const on = event.target.closest("[data-sweep-tick]").dataset.sweepTick === "on";
    for (const one of on ? shown() : list.querySelectorAll("[data-sweep-words]")) {
      const box = one.querySelector("input");
      if (!box.disabled) box.checked = on;
    }
    changed();
  }
});
section.addEventListener("input", (event) => {
  if (event.target.matches("[data-sweep-search]")) {
    event.stopPropagation();
    return search(event.target.value);
  }
  count();
  label();
});
// Enter looks for the next row, not for the launch button.
section.addEventListener("keydown", (event) => event.key === "Enter" && event.target.matches("input:not([type=checkbox])") && event.preventDefault());
document.addEventListener("htmx:after:swap", update);
update();
