// Colours of the theme in force, read once: asking for computed style while drawing would lay the page out each time.

let known = new Map();
const listeners = new Set();

/** Value of a custom property of the page. */
export function css(name) {
  if (!known.has(name)) known.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return known.get(name);
}

export const theme = () => (document.documentElement.dataset.bsTheme === "dark" ? "dark" : "light");

/** Call `listener` when the theme changed. */
export function onTheme(listener) { listeners.add(listener); }

new MutationObserver(() => {
  known = new Map();
  listeners.forEach((listener) => listener());
}).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
