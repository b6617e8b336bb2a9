// What could not be delivered, why, and another try.

import { byId, cell, keepRoles, make, nameOf, Rows, say, show } from "./dom.js";
import { act, ask, NoToken } from "./api.js";
import * as file from "./file.js";
import { count, duration, many, parts } from "./format.js";
import { doing } from "./places.js";

const PAGE = 20;
const EVERY = 3000; // milliseconds between two listings, however much fails

const filter = byId("failures-filter");
let status = null;
let shownOf = "";
let askedAt = 0;
let after = null;
let next = null;
let asked = 0;
let timer = null;

const rows = new Rows(byId("failures").tBodies[0], (job) => job.id, (job) => {
  const [folder, name] = parts(job.path);
  const state = cell("State", {});
  const reason = cell("Reason", { class: "why" });
  const retry = make("button", { type: "button", "aria-label": `Retry job ${job.id}`, click: () => again(retry, job) }, "Retry");
  const link = make("button", { type: "button", class: "name", click: () => file.open(job) }, make("span", { class: "folder" }, nameOf(folder)), nameOf(name));
  return {
    node: make("tr", { role: "row", "data-job": job.id }, make("th", { scope: "row", role: "rowheader" }, link, make("p", { class: "quiet" }, `job ${job.id} · `, nameOf(job.watch))), state, reason, cell("Action", { class: "do" }, retry)),
    update(found) {
      const when = found.retry_at === null ? "" : `, next try in ${duration(found.retry_at - Date.now() / 1000)}`;
      say(state, `${found.state}${when}${found.attempts > 1 ? `, failed ${count(found.attempts)} times` : ""}`);
      say(reason, found.error || "Delivered; it waits before its source is disposed of.");
    },
  };
});

async function again(button, job) {
  await doing(button, () => act(`/api/v1/jobs/${job.id}/retry`), () => `Job ${job.id} is tried again.`);
  if (!button.isConnected || document.activeElement === document.body) byId("failures-title").focus();
  list();
}

function chosen() {
  return Object.fromEntries(["state", "error", "watch"].map((name) => [name, filter.elements[name].value]));
}

function states() {
  const { state } = chosen();
  return state ? [state] : ["parked", "waiting"];
}

/** What the status says of these failures: when it is another, they are listed anew. */
function told() {
  return JSON.stringify([status.totals.parked, status.totals.waiting, status.waiting.map((g) => g.newest.id), status.parked.map((g) => g.newest.id)]);
}

async function list() {
  clearTimeout(timer);
  timer = null;
  const mine = (asked += 1);
  askedAt = Date.now();
  shownOf = status ? told() : "";
  const { error, watch } = chosen();
  const query = new URLSearchParams([...states().map((state) => ["state", state]), ["limit", PAGE]]);
  if (error) query.set("error", error);
  if (watch) query.set("watch", watch);
  if (after) query.set("after", after);
  try {
    const { data } = await ask(`/api/v1/jobs?${query}`);
    if (mine === asked) draw(data);
  } catch (failure) {
    if (mine === asked && !(failure instanceof NoToken)) say(byId("failures-note"), `They cannot be listed: ${failure.message}`);
  }
}

function draw(found) {
  const focused = byId("failures").contains(document.activeElement);
  rows.show(found.jobs);
  keepRoles(byId("failures"));
  if (focused && !byId("failures").contains(document.activeElement)) byId("failures-title").focus();
  next = found.after;
  show(byId("failures"), found.jobs.length > 0);
  show(byId("failures-empty"), found.jobs.length === 0);
  say(byId("failures-empty"), Object.values(chosen()).some(Boolean) ? "None of these." : "None. Everything that was begun has arrived.");
  show(byId("older"), found.more);
  show(byId("newer"), after !== null);
  say(byId("failures-note"), `${count(status.totals.parked.jobs)} parked, ${count(status.totals.waiting.jobs)} waiting`);
  byId("retry-all").disabled = found.jobs.length === 0;
}

function fill(name, values) {
  const select = filter.elements[name];
  const wanted = [...new Set([...values, select.value])].filter(Boolean).sort();
  if (JSON.stringify(wanted) === select.dataset.now) return;
  const { value } = select;
  select.dataset.now = JSON.stringify(wanted);
  select.replaceChildren(new Option("any", ""), ...wanted.map((text) => new Option(text, text)));
  select.value = value;
}

export function heard(found) {
  status = found;
  fill("error", [...found.waiting, ...found.parked].map((group) => group.error_code));
  fill("watch", found.watches.map((watch) => watch.name));
  if (told() === shownOf || timer) return;
  timer = setTimeout(list, Math.max(0, askedAt + EVERY - Date.now()));
}

function page(to) {
  after = to;
  list();
  byId("failures-title").focus();
}

byId("newer").addEventListener("click", () => page(null));
byId("older").addEventListener("click", () => page(next));
filter.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("change", () => {
  after = null;
  list();
});
byId("retry-all").addEventListener("click", async () => {
  const { error, watch } = chosen();
  const body = { state: states(), ...(error && { error }), ...(watch && { watch }) };
  await doing(byId("retry-all"), () => act("/api/v1/jobs/retry", body), (done) => `${many(done.retried, "job")} tried again.`);
  list();
});
