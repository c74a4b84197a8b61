// Tabs are links with ?tab=…; with scripts they switch without a reload and the Back button undoes it.

import * as url from "./url_state.js";

export class Tabs {
  constructor(nav) {
    this.nav = nav;
    this.links = [...nav.querySelectorAll("[data-tab]")];
    nav.addEventListener("click", (event) => {
      const link = event.target.closest("[data-tab]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.open(link.dataset.tab);
    });
    window.addEventListener("popstate", () => this.show(url.get("tab", "overview")));
    this.show(url.get("tab", "overview"));
  }

  open(name) {
    if (name === this.current) return;
    url.set({ tab: name === "overview" ? null : name }, { push: true });
    this.show(name);
  }

  show(name) {
    this.current = this.links.some((link) => link.dataset.tab === name) ? name : "overview";
    for (const link of this.links) {
      const active = link.dataset.tab === this.current;
      link.classList.toggle("active", active);
      if (active) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
      document.getElementById(`tab-${link.dataset.tab}`).hidden = !active;
    }
    // The overview ends with the newest rollouts: the same reader, below the charts.
    if (this.current === "overview") document.getElementById("tab-rollouts").hidden = false;
    document.dispatchEvent(new CustomEvent("run:tab", { detail: this.current }));
  }
}
