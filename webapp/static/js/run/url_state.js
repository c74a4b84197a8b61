// What the page shows lives in its address: step, group, colour, tab, zoom. Others may listen to `run:url`.

const read = () => new URLSearchParams(location.search);

export const get = (key, fallback = "") => read().get(key) ?? fallback;

/** Set some keys (null removes); `push` makes the Back button undo it. */
export function set(changes, { push = false } = {}) {
  const params = read();
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === "" || value === undefined) params.delete(key); else params.set(key, value);
  }
  const query = params.toString();
  const url = location.pathname + (query ? `?${query}` : "");
  if (url === location.pathname + location.search) return;
  history[push ? "pushState" : "replaceState"](null, "", url);
  document.dispatchEvent(new CustomEvent("run:url", { detail: changes }));
}

window.addEventListener("popstate", () => document.dispatchEvent(new CustomEvent("run:url", { detail: Object.fromEntries(read()) })));
