// The socket of one run: everything missed on (re)connect, everything new after, as DOM events on `document`.
//
// run:state {run} · run:events [event, …] in order, each seq once · run:frames [frame, …] · run:connection "live" | …
// run:watching {group, refused} answers run:watch, which says the group that the viewer wants to see growing.

import { message } from "./frames.js";

const FIRST_DELAY = 500, LAST_DELAY = 20_000, PAINT = 100, POLL = 4000, FAILURES_BEFORE_POLLING = 3;

const emit = (name, detail) => document.dispatchEvent(new CustomEvent(name, { detail }));

export class RunLive {
  /** `last` is the highest event seq the page already shows; `eventsUrl` the polling fallback. */
  constructor({ url, eventsUrl, last, group = null }) {
    Object.assign(this, { url, eventsUrl, last, group, live: "", failures: 0, events: [], frames: [], state: null, flushing: false, missed: false });
    document.addEventListener("run:watch", ({ detail }) => this.watch(detail));
    document.addEventListener("visibilitychange", () => document.hidden || this.wake());
    window.addEventListener("online", () => this.wake());
    window.addEventListener("pagehide", () => this.close());
    window.addEventListener("pageshow", (event) => event.persisted && this.open());
    this.open();
  }

  open() {
    clearTimeout(this.retry);
    this.closed = false;
    const socket = new WebSocket(new URL(this.url, location.href.replace(/^http/, "ws")));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { this.hello(); if (this.group !== null) this.watch(this.group); };
    socket.onmessage = ({ data }) => this.receive(data);
    socket.onclose = ({ code }) => socket === this.socket && this.lost(code);
    this.socket = socket;
  }

  close() {
    this.closed = true;
    clearTimeout(this.retry);
    this.stopPolling();
    this.socket?.close();
  }

  /** Say which group to stream, or with null that what comes unasked will do; said again on every new socket. */
  watch(group) {
    this.group = group;
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: "watch", group }));
  }

  hello() {
    this.missed = false;
    this.socket.send(JSON.stringify({ type: "hello", after: this.last, live: this.live }));
  }

  /** A woken tab asks for the gap at once: a socket that looks open may be long dead. */
  wake() {
    if (this.closed) return;
    if (this.missed) this.reopen();
    else if (this.socket?.readyState === WebSocket.OPEN) this.hello();
    else if (this.socket?.readyState !== WebSocket.CONNECTING) this.open();
  }

  /** Frames under way on the old socket would leave a hole before them: only a new one has none. */
  reopen() {
    this.socket.onmessage = null;
    this.socket.close();
    this.open();
  }

  lost(code) {
    if (this.closed) return;
    this.failures += 1;
    if (code === 4401) return this.end("refused");
    if (code === 4404) return this.end("gone");
    emit("run:connection", this.failures >= FAILURES_BEFORE_POLLING ? "polling" : "connecting");
    if (this.failures >= FAILURES_BEFORE_POLLING) this.startPolling();
    const delay = Math.min(LAST_DELAY, FIRST_DELAY * 2 ** (this.failures - 1));
    this.retry = setTimeout(() => this.open(), delay * (0.5 + Math.random() / 2));
  }

  /** The server said that there is nothing more to come for this viewer. */
  end(state) {
    this.close();
    emit("run:connection", state);
  }

  receive(data) {
    if (this.failures || !this.greeted) emit("run:connection", "live");
    this.failures = 0;
    this.greeted = true;
    this.stopPolling();
    if (typeof data === "string") return this.text(JSON.parse(data));
    if (document.hidden) { this.missed = true; return undefined; } // nothing is painted, so nothing is kept; the cursor stays
    if (this.missed) return undefined;
    const { id, frames } = message(data);
    if (id) this.live = id;
    this.frames.push(...frames);
    return this.flushSoon();
  }

  text(data) {
    if (data.type === "run") this.state = data.run;
    if (data.type === "events") this.take(data.events);
    if (data.type === "watch") emit("run:watching", data);
    this.flushSoon();
  }

  /** Take events once each: after a reconnect the server may repeat some. */
  take(events) {
    for (const event of events) {
      if (event.seq <= this.last) continue;
      this.last = event.seq;
      this.events.push(event);
    }
  }

  /** Hand on what came, at most ten times a second. */
  flushSoon() {
    if (this.flushing) return;
    this.flushing = true;
    const due = Math.max(0, PAINT - (performance.now() - (this.flushed ?? 0)));
    setTimeout(() => this.flush(), due);
  }

  flush() {
    this.flushing = false;
    this.flushed = performance.now();
    const { state, events, frames } = this;
    [this.state, this.events, this.frames] = [null, [], []];
    if (state) emit("run:state", state);
    if (events.length) emit("run:events", events);
    if (frames.length) emit("run:frames", frames);
  }

  startPolling() {
    if (this.polling) return;
    this.polling = setInterval(() => this.poll(), POLL);
    this.poll();
  }

  stopPolling() {
    clearInterval(this.polling);
    this.polling = null;
  }

  async poll() {
    try {
      const answer = await fetch(`${this.eventsUrl}?after=${this.last}`, { headers: { Accept: "application/x-ndjson" } });
      if (answer.redirected) return this.end("refused");
      if (answer.status === 404) return this.end("gone");
      if (!answer.ok) return;
      const lines = (await answer.text()).split("\n").filter(Boolean);
      this.take(lines.map((line) => JSON.parse(line)));
      emit("run:refresh");
      this.flushSoon();
    } catch {
      emit("run:connection", "offline"); // no network; the next poll tries again
    }
  }
}
