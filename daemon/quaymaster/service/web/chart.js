// What moved in each minute of the last hour: bars for the eye, a table for everybody.

import { byId, make, mark, say, show } from "./dom.js";
import { clock, count, rate, size } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 140;
const bars = [];
let minutes = [];

function bar(kind, index) {
  const node = document.createElementNS(SVG, "rect");
  node.setAttribute("class", kind);
  node.setAttribute("x", (index * WIDTH) / 60 + 1);
  node.setAttribute("width", WIDTH / 60 - 2);
  byId("plot").append(node);
  return node;
}

function prepare() {
  for (const y of [0.5, HEIGHT / 2, HEIGHT - 0.5]) {
    const line = document.createElementNS(SVG, "line");
    for (const [name, value] of Object.entries({ class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y })) line.setAttribute(name, value);
    byId("plot").append(line);
  }
  for (let index = 0; index < 60; index += 1) bars.push([bar("read", index), bar("sent", index)]);
  byId("plot").addEventListener("pointermove", (event) => {
    const box = byId("plot").getBoundingClientRect();
    point(Math.min(59, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * 60))));
  });
  byId("plot").addEventListener("pointerleave", () => say(byId("chart-at"), ""));
}

function point(index) {
  const minute = minutes[index];
  if (minute) say(byId("chart-at"), `${clock(minute.at, false)}: ${rate(minute.source_bytes / 60)} read, ${rate(minute.stored_bytes / 60)} sent`);
}

function reach(node, part) {
  const height = part > 0 ? Math.max(1, part * HEIGHT) : 0;
  mark(node, "height", height.toFixed(1));
  mark(node, "y", (HEIGHT - height).toFixed(1));
}

/** The next larger number of 1, 2 and 5 with zeros, in bytes a minute. */
function ceiling(most) {
  const unit = 60 * 1024 ** Math.floor(Math.log(Math.max(1024, most / 60)) / Math.log(1024));
  for (let step = 1; ; step *= 10) {
    for (const factor of [1, 2, 5]) if (most <= factor * step * unit) return factor * step * unit;
  }
}

/** `found` are the rates of a status. */
export function draw(found) {
  if (!bars.length) prepare();
  minutes = found.minutes;
  const most = Math.max(...minutes.map((minute) => Math.max(minute.source_bytes, minute.stored_bytes)));
  const top = ceiling(most);
  minutes.forEach((minute, index) => {
    reach(bars[index][0], minute.source_bytes / top);
    reach(bars[index][1], minute.stored_bytes / top);
  });
  const files = minutes.reduce((sum, minute) => sum + minute.files, 0);
  const read = minutes.reduce((sum, minute) => sum + minute.source_bytes, 0);
  const sent = minutes.reduce((sum, minute) => sum + minute.stored_bytes, 0);
  const moved = read || sent || files;
  say(byId("chart-top"), rate(top / 60));
  say(byId("chart-from"), clock(minutes[0].at, false));
  const ratio = found.ratio ? `, ratio ${found.ratio.toFixed(2)}` : "";
  say(byId("hour-note"), moved ? `${count(files)} files, ${size(read)} read, ${size(sent)} sent${ratio}` : "nothing moved");
  const peak = minutes.reduce((best, minute) => (minute.source_bytes > best.source_bytes ? minute : best));
  mark(byId("plot"), "aria-label", moved ? `Throughput of the last hour: ${size(read)} read, at most ${rate(peak.source_bytes / 60)} at ${clock(peak.at, false)}` : "Throughput of the last hour: nothing moved");
  table();
}

let tabled = "";

function table() {
  const rows = minutes.filter((minute) => minute.files || minute.source_bytes || minute.stored_bytes).reverse();
  const now = JSON.stringify(rows);
  if (now === tabled) return;
  tabled = now;
  show(byId("minutes"), rows.length > 0);
  show(byId("minutes-empty"), rows.length === 0);
  const number = (text) => make("td", { class: "number" }, text);
  byId("minutes").tBodies[0].replaceChildren(
    ...rows.map((minute) =>
      make("tr", {}, make("th", { scope: "row" }, clock(minute.at, false)), number(count(minute.files)), number(size(minute.source_bytes)), number(size(minute.stored_bytes))),
    ),
  );
}
