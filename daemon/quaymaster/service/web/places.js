// Where files come from, where they go, and how much of each limit is in use.

import { announce, byId, cell, keepRoles, make, mark, nameOf, Rows, say, show } from "./dom.js";
import { act, NoToken } from "./api.js";
import { clock, count, duration, many, rate, size } from "./format.js";

/** Does it, says what came of it, and lets nobody press twice. */
export async function doing(button, what, did) {
  button.disabled = true;
  try {
    const found = await what();
    announce(did(found));
    button.title = "";
  } catch (error) {
    const text = error instanceof NoToken ? "Nothing was changed: no token was given." : `That did not work: ${error.message}`;
    announce(text);
    warn(button, text);
  } finally {
    button.disabled = false;
  }
}

function warn(button, text) {
  const parent = button.parentElement;
  parent.querySelector(".did-not")?.remove();
  const note = make("span", { class: "did-not" }, text);
  parent.append(note);
  setTimeout(() => note.remove(), 15_000);
}

function steer(button, action, watches, did) {
  return doing(button, () => act(`/api/v1/${action}`, { watches }), () => did);
}

// -- watches, and mirrors, which are steered alike --

const LOOKS = { watching: "ok", polling: "ok", ok: "ok", outage: "bad", failing: "bad", degraded: "note", paused: "note", parked: "note" };

/** Rows of things that can be paused; `factsOf` and `whyOf` tell about one in words. */
const steered = (list, factsOf, whyOf) => new Rows(byId(list), (watch) => watch.name, (watch) => {
  let paused = false;
  const state = make("span", { class: "state" });
  const facts = make("p", { class: "counts" });
  const reason = make("p", { class: "reason" });
  const label = (text) => `${text} ${watch.name}`;
  const hold = make("button", { type: "button", click: () => steer(hold, paused ? "resume" : "pause", [watch.name], label(paused ? "Went on with" : "Paused")) });
  const rescan = make("button", { type: "button", "aria-label": label("Rescan"), click: () => steer(rescan, "rescan", [watch.name], `${watch.name} is looked through.`) }, "Rescan");
  const path = make("p", { class: "quiet path" }, nameOf(watch.path || "not in the configuration any more"));
  return {
    node: make("li", { "data-watch": watch.name }, make("div", { class: "head" }, make("h3", {}, nameOf(watch.name)), state, make("span", { class: "do" }, hold, " ", rescan)), path, facts, reason),
    update(found) {
      paused = Boolean(found.paused);
      say(hold, paused ? "Resume" : "Pause");
      mark(hold, "aria-label", label(paused ? "Resume" : "Pause"));
      show(rescan, Boolean(found.path));
      const word = paused ? "paused" : found.state;
      say(state, word);
      mark(state, "data-state", LOOKS[word] || "");
      say(facts, factsOf(found));
      const why = [paused ? `Paused since ${clock(found.paused.since)} by ${found.paused.by}.` : "", found.reason, ...whyOf(found)].filter(Boolean).join(" ");
      say(reason, why);
      show(reason, Boolean(why));
    },
  };
});

let now = 0;

const watches = steered("watches", ofWatch, (watch) => (watch.units?.examples || []).map((unit) => `Unit ${unit.path} is overdue: ${unit.why}.`));
const mirrors = steered("mirrors", ofMirror, (mirror) => [
  ...Object.entries(mirror.quarantined).map(([version, why]) => `${version} was not taken: ${why}.`),
  ...Object.entries(mirror.refused).map(([key, why]) => `${key} is refused: ${why}.`),
  mirror.server,
]);

function ofMirror(mirror) {
  const facts = [`from ${mirror.source}`, `${many(mirror.listed, "object")} listed (${size(mirror.bytes)})`, `${many(mirror.released, "version")} in place`];
  const waiting = Object.keys(mirror.waiting).length;
  if (waiting) facts.push(`${many(waiting, "version")} not whole yet`);
  facts.push(mirror.last_good ? `listed ${duration(now - mirror.last_good)} ago` : "not listed yet");
  return facts.join(" · ");
}

function ofWatch(watch) {
  const { queued, running, waiting, parked, done } = watch.jobs;
  const facts = [];
  if (watch.seen.pending) facts.push(`${count(watch.seen.pending)} settling`);
  if (running.jobs) facts.push(`${count(running.jobs)} in flight`);
  facts.push(queued.jobs ? `${count(queued.jobs)} queued (${size(queued.bytes)}${watch.oldest_queued ? `, oldest ${duration(now - watch.oldest_queued)}` : ""})` : "none queued");
  if (waiting.jobs) facts.push(`${count(waiting.jobs)} waiting`);
  if (parked.jobs) facts.push(`${count(parked.jobs)} parked`);
  facts.push(`${count(done.jobs)} delivered (${size(done.bytes)})`);
  if (watch.seen.refused) facts.push(`${many(watch.seen.refused, "file")} not taken`);
  const units = watch.units;
  if (units) facts.push(`units: ${["open", "complete", "published"].filter((name) => units[name]).map((name) => `${count(units[name])} ${name}`).join(", ") || "none yet"}`);
  return facts.join(" · ");
}

// -- destinations --

const destinations = new Rows(byId("destinations").tBodies[0], (to) => to.name, (to) => {
  const state = make("span", { class: "state" });
  const error = make("p", { class: "reason" });
  const files = cell("Files", { class: "number" });
  const stored = cell("Stored", { class: "number" });
  return {
    node: make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, nameOf(to.name), make("span", { class: "quiet" }, ` ${to.type}`)), cell("State", {}, state, error), files, stored),
    update(found) {
      const since = found.since && found.state === "failing" ? ` for ${duration(now - found.since)}` : "";
      say(state, `${found.state}${since}`);
      mark(state, "data-state", { ok: "ok", failing: "bad" }[found.state] || "");
      say(error, found.error);
      show(error, Boolean(found.error));
      say(files, count(sum(found.delivered, "files")));
      say(stored, size(sum(found.delivered, "stored_bytes")));
    },
  };
});

function sum(list, name) {
  return list.reduce((total, item) => total + item[name], 0);
}

// -- hooks --

const hooks = new Rows(byId("hooks"), (hook) => hook.name, (hook) => {
  const state = make("span", { class: "state" });
  const facts = make("p", { class: "counts" });
  const reason = make("p", { class: "reason" });
  return {
    node: make("li", {}, make("div", { class: "head" }, make("h3", {}, nameOf(hook.name)), state), facts, reason),
    update(found) {
      say(state, found.state);
      mark(state, "data-state", LOOKS[found.state] || "");
      const told = [found.type, `${count(found.confirmed)} told`, found.waiting + found.behind ? `${count(found.waiting + found.behind)} waiting` : "", found.parked ? `${count(found.parked)} given up` : ""];
      say(facts, told.filter(Boolean).join(" · "));
      const failing = found.state === "failing" || found.state === "parked";
      say(reason, failing ? found.last_error : "");
      show(reason, failing && Boolean(found.last_error));
    },
  };
});

// -- limits --

const limits = new Rows(byId("limits"), (limit) => limit.name, (limit) => {
  const text = make("dd", {});
  const bar = make("progress", { "aria-label": limit.name });
  return {
    node: make("div", {}, make("dt", {}, limit.name), text, make("dd", { class: "bar" }, bar)),
    update(found) {
      say(text, found.text);
      show(bar.parentElement, found.ceiling !== null);
      mark(bar, "max", found.ceiling || 1);
      mark(bar, "value", Math.min(found.used, found.ceiling || 1));
    },
  };
});

function* uses(ceilings) {
  const pool = (name, key, figure) => {
    const { used, ceiling, waiting } = ceilings[key];
    const queue = waiting ? `, ${many(waiting, "file")} waiting` : "";
    const text = ceiling === null ? `${figure(used)}, no limit` : `${figure(used)} of ${figure(ceiling)}${queue}`;
    return { name, used, ceiling, text };
  };
  if (ceilings.files) yield pool("Files in flight", "files", count);
  if (ceilings.compressing) yield pool("Compressing threads", "compressing", count);
  if (ceilings.memory) yield pool("Memory for buffers", "memory", size);
  if (ceilings.staging) yield pool("Staging", "staging", size);
  for (const flow of ceilings.bandwidth || []) {
    const until = flow.until ? ` until ${flow.until}` : "";
    const queue = flow.waiting ? `, ${many(flow.waiting, "piece")} waiting` : "";
    yield { name: `Bandwidth${flow.destination ? ` to ${flow.destination}` : ""}`, used: flow.rate, ceiling: flow.limit, text: `${rate(flow.rate)} of ${rate(flow.limit)}${until}${queue}` };
  }
}

export function draw(status) {
  now = status.at;
  watches.show(status.watches);
  show(byId("watches-empty"), status.watches.length === 0);
  say(byId("watches-empty"), "No watch is configured.");
  for (const [name, rows] of [["mirrors", mirrors], ["hooks", hooks]]) {
    const found = status[name] || [];
    rows.show(found);
    show(byId(name).closest("section"), found.length > 0);
  }
  destinations.show(status.destinations);
  const none = status.destinations.length === 0;
  show(byId("destinations"), !none);
  show(byId("destinations-note"), !none);
  show(byId("destinations-empty"), none);
  say(byId("destinations-empty"), "No destination is configured.");
  const found = [...uses(status.ceilings)];
  limits.show(found);
  show(byId("limits-empty"), found.length === 0);
  say(byId("limits-empty"), "The service has not said yet.");
}

keepRoles(byId("destinations"));
byId("rescan-all").addEventListener("click", () => steer(byId("rescan-all"), "rescan", [], "All watches are looked through."));
