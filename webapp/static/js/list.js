// The run list: selection that survives refreshes and pages, the keyboard, tags in place, and fresh rows every few seconds.

const table = document.querySelector("[data-run-table]");
const filters = document.querySelector("#filters");
const REFRESH_EVERY = 4000; // ms
const MOST_OPEN = 20;
const KEPT = "isentrope.selected-runs";
const selected = new Set(JSON.parse(sessionStorage.getItem(KEPT) ?? "[]"));
let current = null; // id of the row the keyboard is on
let anchor = null; // where a shift-click started

const boxes = () => [...table.querySelectorAll('input[name="runs"]')];
const rows = () => [...table.querySelectorAll("tr[data-run]")];

function keep() {
  sessionStorage.setItem(KEPT, JSON.stringify([...selected]));
}

// Makes the page show what is selected and where the keyboard is.
function show() {
  for (const box of boxes()) {
    box.checked = selected.has(box.value);
    box.closest("tr").classList.toggle("is-selected", box.checked);
  }
  for (const row of rows()) row.classList.toggle("is-current", row.dataset.run === current);
  const bar = table.querySelector("[data-bulk-bar]");
  if (!bar) return;
  bar.hidden = selected.size === 0;
  bar.querySelector("[data-selected-count]").textContent = selected.size;
  const all = table.querySelector("[data-select-all]");
  all.checked = boxes().length > 0 && boxes().every((box) => box.checked);
  all.indeterminate = !all.checked && boxes().some((box) => box.checked);
}

function select(id, on) {
  if (on) selected.add(id);
  else selected.delete(id);
}

table.addEventListener("click", (event) => {
  const box = event.target.closest('input[name="runs"]');
  if (box) {
    const all = boxes();
    const from = all.findIndex((other) => other.value === anchor);
    const to = all.indexOf(box);
    const range = event.shiftKey && from >= 0 ? all.slice(Math.min(from, to), Math.max(from, to) + 1) : [box];
    for (const one of range) select(one.value, box.checked);
    anchor = current = box.value;
  } else if (event.target.closest("[data-select-all]")) {
    for (const one of boxes()) select(one.value, event.target.checked);
  } else if (event.target.closest("[data-select-none]")) selected.clear();
  else if (event.target.closest("[data-row-step]")) step(Number(event.target.closest("[data-row-step]").dataset.rowStep));
  else if (event.target.closest("[data-row-toggle]")) toggle();
  else if (event.target.closest("[data-row-open]")) rowOf(current)?.querySelector(".run-link").click();
  else if (event.target.closest("[data-fold]")) return fold(event.target.closest("[data-fold]"));
  else if (event.target.closest("[data-row-fold]")) return fold(rowOf(current)?.querySelector("[data-fold]"));
  else if (event.target.closest("[data-edit-tags]")) return editTags(event.target.closest("[data-edit-tags]"));
  else return;
  keep();
  show();
});

const rowOf = (id) => (id ? table.querySelector(`tr[data-run="${CSS.escape(id)}"]`) : null);

function step(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.dataset.run === current);
  const next = at < 0 ? 0 : Math.min(all.length - 1, Math.max(0, at + by));
  current = all[next].dataset.run;
  all[next].scrollIntoView({ block: "nearest" });
}

function toggle() {
  if (!current) step(1);
  if (current) select(current, !selected.has(current));
  anchor = current;
}

// A sweep folds open in place. Which ones are open stands in a cookie, so that the server draws them open again.
function fold(button) {
  if (!button) return;
  const { fold: id, foldUrl: url } = button.dataset;
  const row = document.getElementById(`fold-${id}`);
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", String(open));
  row.hidden = !open;
  const kept = (document.cookie.match(/(?:^|; )isentrope_open_sweeps=([^;]*)/)?.[1] ?? "").split(".").filter((one) => one && one !== id);
  const wanted = (open ? [id, ...kept] : kept).slice(0, MOST_OPEN);
  document.cookie = `isentrope_open_sweeps=${wanted.join(".")}; path=/; max-age=31536000; samesite=lax`;
  if (open) htmx.ajax("GET", url, { target: row.cells[0], swap: "innerHTML", source: "#run-table" });
}

// Deleting asks first; runs chosen on other pages travel along.
table.addEventListener("submit", (event) => {
  const ask = event.submitter?.dataset.ask;
  if (ask && !window.confirm(`${ask} (${selected.size})`)) return event.preventDefault();
  const here = new Set(boxes().map((box) => box.value));
  for (const id of selected) {
    if (here.has(id)) continue;
    const input = document.createElement("input");
    Object.assign(input, { type: "hidden", name: "runs", value: id });
    event.target.append(input);
  }
  if (event.submitter?.value !== "compare") selected.clear();
  keep();
});

// Turns a row's tags into a line of text until it is sent or left.
function editTags(button) {
  const place = button.closest(".tags");
  const input = document.createElement("input");
  Object.assign(input, { className: "form-control form-control-sm tag-input", value: button.dataset.tags, maxLength: 400, ariaLabel: "Tags, separated by commas" });
  const before = [...place.childNodes];
  place.replaceChildren(input);
  input.focus();
  const undo = () => place.isConnected && place.replaceChildren(...before);
  input.addEventListener("blur", undo);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") undo();
    if (event.key !== "Enter") return;
    event.preventDefault();
    input.removeEventListener("blur", undo);
    htmx.ajax("POST", button.dataset.editTags, { target: `#${place.id}`, swap: "outerHTML", values: { tags: input.value } });
  });
}

// Fresh rows, unless somebody is looking elsewhere, editing, or just about to click.
const busy = () => document.hidden || table.querySelector(".tag-input, .bulk-tag input:focus") !== null;
setInterval(() => {
  if (!busy()) htmx.ajax("GET", location.href, { target: "#run-table", swap: "innerMorph", source: "#run-table" });
}, REFRESH_EVERY);

document.addEventListener("htmx:after:swap", show);
filters.addEventListener("submit", (event) => event.preventDefault());
show();
