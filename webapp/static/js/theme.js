// Runs before the first paint, in the head, so that no page flashes in the wrong theme.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const choice = root.dataset.theme;
    root.dataset.bsTheme = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
    document.dispatchEvent(new CustomEvent("themechange", { detail: root.dataset.bsTheme }));
  };
  dark.addEventListener("change", apply);
  window.setTheme = (choice) => {
    root.dataset.theme = choice;
    apply();
  };
  apply();
})();
