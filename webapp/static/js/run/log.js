// The log's tail: follows while its end is in view, searches in what is loaded. Text only, cleaned by the server.

const EVERY = 2000, KEPT = 2_000_000;

export class Log {
  constructor(root, url) {
    Object.assign(this, { root, url, offset: null, text: "" });
    this.body = root.querySelector("[data-log-body]");
    this.follow = root.querySelector("[data-log-follow]");
    this.search = root.querySelector("[data-log-search]");
    this.found = root.querySelector("[data-log-found]");
    this.node = document.createTextNode("");
    this.body.replaceChildren(this.node);
    this.search.addEventListener("input", () => this.show());
    this.follow.addEventListener("change", () => this.scroll());
    this.body.addEventListener("scroll", () => {
      const atEnd = this.body.scrollTop + this.body.clientHeight > this.body.scrollHeight - 40;
      if (this.follow.checked !== atEnd) this.follow.checked = atEnd;
    });
    document.addEventListener("run:tab", ({ detail }) => (detail === "log" ? this.start() : this.stop()));
  }

  start() {
    this.stop();
    this.timer = setInterval(() => document.hidden || this.read(), EVERY);
    this.read();
  }

  stop() { clearInterval(this.timer); }

  async read() {
    if (this.reading) return;
    this.reading = true;
    try {
      const answer = await fetch(this.offset === null ? this.url : `${this.url}?offset=${this.offset}`);
      if (!answer.ok) return;
      const start = Number(answer.headers.get("X-Log-Start")), more = await answer.text();
      if (this.offset !== null && start < this.offset) this.text = ""; // the file was replaced
      this.offset = Number(answer.headers.get("X-Log-Next"));
      if (!more && this.text) return;
      this.text = (this.text + more).slice(-KEPT);
      this.show();
      if (answer.headers.get("X-Log-More") === "1") setTimeout(() => this.read());
    } finally {
      this.reading = false;
    }
  }

  show() {
    const wanted = this.search.value.trim().toLowerCase();
    if (!wanted) {
      this.found.textContent = "";
      this.node.data = this.text || "The log is empty.";
    } else {
      const lines = this.text.split("\n"), hits = lines.filter((line) => line.toLowerCase().includes(wanted));
      this.found.textContent = `${hits.length} of ${lines.length} lines`;
      this.node.data = hits.join("\n");
    }
    this.scroll();
  }

  scroll() { if (this.follow.checked) this.body.scrollTop = this.body.scrollHeight; }
}
