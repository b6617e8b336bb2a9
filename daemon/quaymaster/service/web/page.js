// The page of a running service: it listens to its events, and draws the status that comes with them.

import { announce, byId, make, mark, nameOf, Rows, say, show } from "./dom.js";
import { events, NoToken, Refused } from "./api.js";
import { draw } from "./chart.js";
import * as failures from "./failures.js";
import * as file from "./file.js";
import { clock, count, duration, parts, rate, size } from "./format.js";
import * as places from "./places.js";

const STAGES = { fetch: "copying to staging", transfer: "transferring", publish: "publishing", record: "recording", dispose: "finishing" };
const WAITS = [1, 2, 4, 8, 15];

let status = null;
let health = null;
let away = "";
let heardAt = 0;

// -- the header: is it well, and is this of now? --

function drawHealth() {
  const state = away ? "away" : health ? health.status : "asking";
  mark(byId("health"), "data-state", state);
  say(byId("health"), state);
  mark(document.body, "data-away", Boolean(away));
  const reasons = health ? [...health.reasons.map((text) => ["bad", text]), ...health.notes.map((text) => ["note", text])] : [];
  const list = byId("reasons");
  const now = JSON.stringify(reasons);
  if (list.dataset.now !== now) {
    list.dataset.now = now;
    list.replaceChildren(...reasons.map(([kind, text]) => make("li", { class: kind }, nameOf(text))));
  }
  show(byId("away"), Boolean(away));
  say(byId("away"), away);
  show(byId("trouble"), Boolean(away) || reasons.length > 0);
  mark(byId("trouble"), "data-state", away || (health && health.reasons.length) ? "bad" : "note");
  document.title = state === "ok" ? "quaymaster" : `${state}: quaymaster`;
}

let spoken = "";

/** Only what somebody would want to be interrupted for. */
function speak() {
  const text = away
    ? "The service does not answer."
    : `The service is ${health ? health.status : "there"}. ${count(status.totals.parked.jobs)} parked.`;
  if (text !== spoken) announce(text);
  spoken = text;
}

function heardHealth(found) {
  health = found;
  drawHealth();
  if (status) speak();
}

function drawAge() {
  if (!status) return;
  const since = `as of ${clock(status.at)}`;
  say(byId("as-of"), away ? `Not of now: ${since}, ${duration(Date.now() / 1000 - status.at)} ago` : since);
}

// -- totals and what is in flight --

const TOTALS = [
  ["running", "In flight"],
  ["queued", "Queued"],
  ["waiting", "Waiting"],
  ["parked", "Parked"],
  ["done", "Delivered"],
];

const totals = new Rows(byId("totals"), ([key]) => key, ([key, title]) => {
  const value = make("dd", { class: "figure" });
  const note = make("dd", { class: "quiet" });
  return {
    node: make("div", { "data-of": key }, make("dt", {}, title), value, note),
    update([, , text, more]) {
      say(value, text);
      say(note, more);
    },
  };
});

function drawTotals() {
  const rates = status.rates.source_bytes_per_second;
  const now = status.at;
  const retry = status.next_retry === null ? "" : `next try in ${duration(status.next_retry - now)}`;
  const since = status.watches.map((watch) => watch.oldest_queued).filter((at) => at !== null);
  const oldest = since.length ? `oldest ${duration(now - Math.min(...since))}` : "";
  const notes = { queued: oldest, waiting: retry };
  const rows = TOTALS.map(([key, title]) => {
    const { jobs, bytes } = status.totals[key];
    return [key, title, count(jobs), jobs ? notes[key] || size(bytes) : "\u00a0"];
  });
  const eta = status.eta_seconds ? `empty in ${duration(status.eta_seconds)}` : status.eta_seconds === 0 ? "the queue is empty" : `15 min: ${rate(rates["15m"])}`;
  totals.show([...rows, ["rate", "Reading", rate(rates["1m"]), eta]]);
  mark(byId("totals").querySelector("[data-of=parked]"), "data-bad", status.totals.parked.jobs > 0);
  say(byId("version"), status.service.version || status.version);
}

function fileButton(job) {
  const [folder, name] = parts(job.path);
  return make("button", { type: "button", class: "name", click: () => file.open(job) }, make("span", { class: "folder" }, nameOf(folder)), nameOf(name));
}

const flight = new Rows(byId("flight"), (job) => job.id, (job) => {
  const meta = make("p", { class: "quiet" });
  const amount = make("p", { class: "amount" });
  const bar = make("progress", { max: Math.max(1, job.size), "aria-label": `Job ${job.id}, ${job.path}` });
  return {
    node: make("li", { "data-job": job.id }, fileButton(job), amount, bar, meta),
    update(found) {
      const done = found.source_bytes ?? 0;
      const percent = found.size ? Math.min(100, Math.floor((100 * done) / found.size)) : 100;
      if (found.source_bytes === null) bar.removeAttribute("value");
      else mark(bar, "value", found.size ? done : 1);
      say(amount, found.source_bytes === null ? size(found.size) : `${percent} % of ${size(found.size)}`);
      say(meta, moving(found).join(" · "));
    },
  };
});

function moving(job) {
  const facts = [`job ${job.id}`, job.watch, STAGES[job.stage] || job.stage || "beginning"];
  if (job.rate) facts.push(rate(job.rate));
  if (job.eta_seconds) facts.push(`${duration(job.eta_seconds)} left`);
  if (job.ratio && job.ratio > 1.05) facts.push(`compressed ${job.ratio.toFixed(1)} to 1`);
  return facts;
}

function drawFlight() {
  flight.show(status.running);
  show(byId("flight-empty"), status.running.length === 0);
  const queued = status.totals.queued.jobs;
  say(byId("flight-empty"), queued ? `Nothing at this moment; ${count(queued)} queued.` : "Nothing is on its way. What lands is taken as soon as it is whole.");
  say(byId("flight-note"), status.stalled.length ? `${count(status.stalled.length)} standing still` : "");
}

// -- from the service --

function heard(found) {
  status = found;
  away = "";
  heardAt = Date.now();
  show(byId("enter-token"), false);
  drawTotals();
  drawFlight();
  draw(status.rates);
  places.draw(status);
  failures.heard(status);
  file.heard(status);
  drawHealth();
  drawAge();
  speak();
}

function lost(error, seconds) {
  const since = heardAt ? ` since ${clock(heardAt / 1000)}` : "";
  if (error instanceof NoToken) away = "The figures are shown to those who have a token.";
  else if (error instanceof Refused) away = `The service refuses: ${error.message}.`;
  else away = `The service does not answer${since}. ${status ? "The figures below are not of now. " : ""}Trying again every ${seconds} s or so.`;
  show(byId("enter-token"), error instanceof NoToken);
  if (!status) say(byId("as-of"), error instanceof NoToken ? "No token" : "No answer");
  for (const empty of status ? [] : document.querySelectorAll("main .empty")) say(empty, "Nothing is known yet.");
  drawHealth();
  drawAge();
  speak();
}

/** Until something calls it, or so many seconds have gone by. */
function pause(seconds) {
  return new Promise((resolve) => {
    const control = new AbortController();
    const end = () => {
      control.abort();
      resolve();
    };
    const timer = setTimeout(end, seconds * 1000);
    control.signal.addEventListener("abort", () => clearTimeout(timer));
    window.addEventListener("online", end, { signal: control.signal });
    byId("enter-token").addEventListener("click", end, { signal: control.signal });
  });
}

async function follow() {
  for (let tries = 0; ; tries += 1) {
    let error = new Error("The connection ended");
    try {
      for await (const [name, data] of events(() => {})) {
        tries = 0;
        if (name === "status") heard(data);
        else if (name === "health") heardHealth(data);
      }
    } catch (failure) {
      error = failure;
    }
    const seconds = WAITS[Math.min(tries, WAITS.length - 1)];
    lost(error, seconds);
    await pause(error instanceof NoToken ? 1e6 : seconds * (0.8 + 0.4 * Math.random()));
  }
}

for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
setInterval(drawAge, 1000);
follow();
