// A log's tail, the trainer's or the rollout server's: follows while its end is in view, searches in what is loaded.
// Text only, cleaned by the server.

import * as url from "./url_state.js";

const EVERY = 2000, KEPT = 2_000_000;
const EMPTY = "The log is empty.";

export class Log {
  constructor(root, address) {
    Object.assign(this, { root, address });
    this.part = (name) => root.querySelector(`[data-log-${name}]`);
    this.body = this.part("body");
    this.follow = this.part("follow");
    this.search = this.part("search");
    this.of = this.part("of"); // only where a run has several logs
    this.node = document.createTextNode("");
    this.body.replaceChildren(this.node);
    this.search.addEventListener("input", () => this.show());
    this.follow.addEventListener("change", () => this.scroll());
    this.body.addEventListener("scroll", () => {
      const atEnd = this.body.scrollTop + this.body.clientHeight > this.body.scrollHeight - 40;
      if (this.follow.checked !== atEnd) this.follow.checked = atEnd;
    });
    this.choose();
    document.addEventListener("run:tab", ({ detail }) => (detail === "log" ? this.start() : this.stop()));
  }

  /** Let the reader choose a log; the address remembers it. */
  choose() {
    this.begin();
    if (!this.of) return;
    const wanted = () => (url.get("log") === "server" ? "server" : "trainer");
    const turn = () => { this.begin(); this.follow.checked = true; this.show(); this.read(); };
    this.of.value = wanted();
    this.of.addEventListener("change", () => { url.set({ log: this.of.value === "server" ? "server" : null }); turn(); });
    document.addEventListener("run:url", () => {
      if (this.of.value === wanted()) return;
      this.of.value = wanted();
      turn();
    });
  }

  /** Forget what was read; an answer that is still on its way belongs to another log and is dropped. */
  begin() { this.current = { offset: null, text: "", reading: false, known: false }; }

  start() {
    this.stop();
    this.timer = setInterval(() => document.hidden || this.read(), EVERY);
    this.read();
  }

  stop() { clearInterval(this.timer); }

  query(offset) {
    const query = new URLSearchParams();
    if (offset !== null) query.set("offset", offset);
    if (this.of) query.set("of", this.of.value);
    return `${this.address}?${query}`;
  }

  async read() {
    const log = this.current;
    if (log.reading) return;
    log.reading = true;
    try {
      const answer = await fetch(this.query(log.offset));
      if (!answer.ok) return;
      const start = Number(answer.headers.get("X-Log-Start")), more = await answer.text();
      if (log !== this.current) return;
      if (log.offset !== null && start < log.offset) log.text = ""; // the file was replaced
      log.offset = Number(answer.headers.get("X-Log-Next"));
      if (!more && log.known) return;
      log.known = true;
      log.text = (log.text + more).slice(-KEPT);
      this.show();
      if (answer.headers.get("X-Log-More") === "1") setTimeout(() => this.read());
    } finally {
      log.reading = false;
    }
  }

  show() {
    const wanted = this.search.value.trim().toLowerCase(), { text, known } = this.current, found = this.part("found");
    if (!wanted) {
      found.textContent = "";
      this.node.data = text || (known ? this.of?.selectedOptions[0].dataset.empty ?? EMPTY : "");
    } else {
      const lines = text.split("\n"), hits = lines.filter((line) => line.toLowerCase().includes(wanted));
      found.textContent = `${hits.length} of ${lines.length} lines`;
      this.node.data = hits.join("\n");
    }
    this.scroll();
  }

  scroll() { if (this.follow.checked) this.body.scrollTop = this.body.scrollHeight; }
}
