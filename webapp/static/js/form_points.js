// A drawn course: points dragged in a small plot. The text field below stays the truth and can be typed into.
// Click adds a point, double-click or Delete removes one, arrow keys move the focused one.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 300, height: 120, left: 28, right: 6, top: 8, bottom: 18 };

function element(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const read = (text) =>
  text.split(/[,\n]/).map((item) => item.split(":").map(Number)).filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y)).sort((a, b) => a[0] - b[0]);
const write = (points) => points.map(([x, y]) => `${Number(x.toFixed(3))}:${Number(y.toFixed(3))}`).join(", ");

class PointsEditor {
  constructor(host) {
    this.host = host;
    this.input = document.getElementById(host.dataset.pointsEditor);
    this.svg = element("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, class: "points-plot", role: "group", "aria-label": "Drawn course; click to add a point" });
    host.replaceChildren(this.svg);
    this.input.addEventListener("input", () => this.draw());
    this.svg.addEventListener("pointerdown", (event) => this.press(event));
    this.svg.addEventListener("dblclick", (event) => this.remove(event.target.dataset.index));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }

  get points() {
    return read(this.input.value);
  }

  set points(points) {
    this.input.value = write(points);
    this.input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  get top() {
    if (this.dragging) return this.held;
    const most = Math.max(0.5, ...this.points.map((point) => point[1]));
    this.held = [0.5, 1, 2, 3, 5, 10, 20].find((step) => most <= step * 0.95) ?? 20;
    return this.held;
  }

  x = (share) => BOX.left + share * (BOX.width - BOX.left - BOX.right);
  y = (value) => BOX.top + (1 - value / this.top) * (BOX.height - BOX.top - BOX.bottom);

  at(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * BOX.width;
    const y = ((event.clientY - box.top) / box.height) * BOX.height;
    const share = (x - BOX.left) / (BOX.width - BOX.left - BOX.right);
    const value = (1 - (y - BOX.top) / (BOX.height - BOX.top - BOX.bottom)) * this.top;
    return [Math.min(1, Math.max(0, share)), Math.min(20, Math.max(0, value))];
  }

  draw() {
    const points = this.points;
    const focused = this.svg.contains(document.activeElement) ? document.activeElement.dataset.index : null;
    const nodes = [];
    for (const share of [0, 0.5, 1]) {
      const y = this.y(this.top * share);
      nodes.push(element("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: y, y2: y }));
      const label = element("text", { x: BOX.left - 4, y: y + 3, "text-anchor": "end" });
      label.textContent = String(this.top * share);
      const under = element("text", { x: this.x(share), y: BOX.height - 4, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" });
      under.textContent = share === 0 ? "start" : share === 1 ? "end" : "half";
      nodes.push(label, under);
    }
    if (points.length) {
      const line = [[0, points[0][1]], ...points, [1, points.at(-1)[1]]];
      nodes.push(element("polyline", { class: "course-edge", points: line.map(([x, y]) => `${this.x(x)},${this.y(y)}`).join(" ") }));
    }
    points.forEach(([x, y], index) => {
      const text = `Point at ${Math.round(x * 100)} % of the run, ${y} nats`;
      nodes.push(element("circle", { class: "handle", cx: this.x(x), cy: this.y(y), r: 5, tabindex: 0, role: "slider", "aria-label": text, "aria-valuenow": y, "data-index": index }));
    });
    this.svg.replaceChildren(...nodes);
    if (focused !== null) this.svg.querySelector(`[data-index="${focused}"]`)?.focus();
  }

  press(event) {
    let index = event.target.dataset.index;
    if (index === undefined) {
      const point = this.at(event);
      const points = [...this.points, point].sort((a, b) => a[0] - b[0]);
      index = points.indexOf(point);
      this.points = points;
    }
    this.drag(Number(index), event);
  }

  drag(index, event) {
    event.preventDefault();
    this.dragging = true;
    this.svg.setPointerCapture(event.pointerId);
    const move = (moved) => {
      const points = this.points;
      if (!points[index]) return;
      const [x, y] = this.at(moved);
      const left = index > 0 ? points[index - 1][0] + 0.005 : 0;
      const right = index < points.length - 1 ? points[index + 1][0] - 0.005 : 1;
      points[index] = [Math.min(right, Math.max(left, x)), y];
      this.points = points;
    };
    const end = () => {
      this.dragging = false;
      this.svg.removeEventListener("pointermove", move);
      this.draw();
    };
    this.svg.addEventListener("pointermove", move);
    this.svg.addEventListener("pointerup", end, { once: true });
    this.svg.addEventListener("pointercancel", end, { once: true });
  }

  remove(index) {
    if (index === undefined) return;
    this.points = this.points.filter((_, other) => other !== Number(index));
  }

  key(event) {
    const index = event.target.dataset.index;
    const moves = { ArrowUp: [0, 0.01], ArrowDown: [0, -0.01], ArrowLeft: [-0.01, 0], ArrowRight: [0.01, 0] };
    if (index === undefined || !(event.key in moves || event.key === "Delete")) return;
    event.preventDefault();
    if (event.key === "Delete") return this.remove(index);
    const points = this.points;
    const [dx, dy] = moves[event.key];
    points[index] = [Math.min(1, Math.max(0, points[index][0] + dx)), Math.max(0, points[index][1] + dy)];
    this.points = points;
  }
}

function install() {
  for (const host of document.querySelectorAll("[data-points-editor]:empty")) new PointsEditor(host);
}

document.addEventListener("htmx:after:swap", install);
install();
