// Every page: theme switch, keyboard, toasts, and what htmx must know.

const csrfToken = () => document.querySelector("meta[name=csrf-token]").content;

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-theme-choice]");
  if (!button) return;
  const choice = button.dataset.themeChoice;
  window.setTheme(choice);
  markTheme();
  fetch(button.dataset.themeUrl, {
    method: "POST",
    headers: { "X-CSRFToken": csrfToken() },
    body: new URLSearchParams({ theme: choice }),
  });
});

function markTheme() {
  const choice = document.documentElement.dataset.theme;
  for (const button of document.querySelectorAll("[data-theme-choice]")) {
    button.setAttribute("aria-pressed", String(button.dataset.themeChoice === choice));
  }
}

// A form may ask first: <form data-confirm="Delete this run and free 3 GB?">
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

// <button data-copy="#link"> copies the text of that element.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.querySelector(button.dataset.copy);
  await navigator.clipboard.writeText(source.value ?? source.textContent.trim());
  toast("Copied.");
});

// --- Toasts ---------------------------------------------------------------------------------------------------------

// Shows one line for a few seconds; errors stay until closed. The text is never read as HTML.
function toast(text, level = "info") {
  const item = document.querySelector("#toast-template").content.firstElementChild.cloneNode(true);
  item.querySelector(".toast-body").textContent = text;
  item.classList.add(`toast-${level}`);
  document.querySelector("#toasts").append(item);
  item.querySelector("button").addEventListener("click", () => item.remove());
  if (level !== "error") setTimeout(() => item.remove(), 6000);
}
window.toast = toast;

for (const message of document.querySelectorAll("#messages li")) toast(message.textContent, message.dataset.level);

// --- Keyboard -------------------------------------------------------------------------------------------------------

const typing = (target) => target.closest("input:not([type=radio]), textarea, select, [contenteditable]") !== null;
let lead = "";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const keys = lead ? `${lead} ${event.key}` : event.key;
  lead = event.key === "g" && !lead ? "g" : "";
  if (lead) {
    setTimeout(() => (lead = ""), 1200);
    return;
  }
  const target = document.querySelector(`[data-key="${CSS.escape(keys)}"]`);
  if (!target) return;
  event.preventDefault();
  if (target.matches("input, textarea, select")) target.focus();
  else target.click();
});

// The help lists what this very page offers.
function listKeys() {
  const list = document.querySelector("#keyboard-help dl");
  list.replaceChildren();
  for (const element of document.querySelectorAll("[data-key]")) {
    const term = document.createElement("dt");
    const key = document.createElement("kbd");
    const text = document.createElement("dd");
    key.textContent = element.dataset.key;
    term.append(key);
    text.textContent = element.dataset.keyHelp || element.getAttribute("aria-label") || element.textContent.trim();
    list.append(term, text);
  }
}

document.querySelector("#keyboard-help-open")?.addEventListener("click", () => {
  listKeys();
  document.querySelector("#keyboard-help").showModal();
});

// --- htmx -----------------------------------------------------------------------------------------------------------

document.addEventListener("htmx:config:request", (event) => {
  const { request } = event.detail.ctx;
  if (request.method.toUpperCase() !== "GET") request.headers["X-CSRFToken"] = csrfToken();
});
document.addEventListener("htmx:error", () => toast("The server did not answer. Reload the page to try again.", "error"));

markTheme();
