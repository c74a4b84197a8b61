// The list of methods: rows under the keyboard, and filters that submit as they are touched.

const list = document.querySelector("#methods");
let current = null; // name of the method the keyboard is on

const rows = () => [...list.querySelectorAll("[data-row]")];

function show() {
  for (const row of rows()) row.classList.toggle("is-current", row.dataset.row === current);
}

function step(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.dataset.row === current);
  const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + by));
  current = all[next].dataset.row;
  all[next].scrollIntoView({ block: "nearest" });
  show();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-row-step]");
  if (button) step(Number(button.dataset.rowStep));
  else if (event.target.closest("[data-row-open]")) rows().find((row) => row.dataset.row === current)?.querySelector("a").click();
});

// From the search field straight into the list.
document.querySelector("#q").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") {
    event.preventDefault();
    event.target.blur();
    step(1);
  } else if (event.key === "Enter") event.preventDefault();
});

document.addEventListener("htmx:after:swap", () => {
  if (!rows().some((row) => row.dataset.row === current)) current = null;
  show();
});
