// Elements without HTML strings: text stays text.

/** el("span.badge", {title: "…"}, "text", child, …) */
export function el(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name in element && name !== "list") element[name] = value; else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export const typing = (event) => event.ctrlKey || event.metaKey || event.altKey
  || event.target.closest?.("input:not([type=range]):not([type=checkbox]), textarea, select, [contenteditable]");
