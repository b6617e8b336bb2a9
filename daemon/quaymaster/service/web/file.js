// One file: what became of it, what it waits for, and everything that proves its delivery.

import { byId, make, nameOf, say } from "./dom.js";
import { act, ask, NoToken } from "./api.js";
import { clock, count, many, moment, parts, queryOf, size } from "./format.js";
import { doing } from "./places.js";

const LISTED = 20;
let roots = new Map();

export function heard(status) {
  roots = new Map([...status.watches, ...status.mirrors].map((place) => [place.name, place.path]));
}

/** The dialog on the file of a job. */
export function open(job) {
  const root = roots.get(job.watch);
  if (root) look(job.path, queryOf(root, job));
  else look(job.path, "", `The watch ${job.watch} is not in the configuration any more: quaymaster jobs ${job.id} shows what is known.`);
}

async function look(title, query, trouble = "") {
  const dialog = byId("file");
  const body = byId("file-body");
  byId("file-title").replaceChildren(nameOf(parts(title)[1] || title));
  body.replaceChildren(make("p", { class: trouble ? "reason" : "empty", role: "status" }, trouble || "Asking the service …"));
  if (!dialog.open) dialog.showModal();
  byId("file-title").focus();
  if (trouble) return;
  try {
    const { data, text } = await ask(`/api/v1/files?${query}`);
    body.replaceChildren(...content(data, text, () => look(title, query)));
  } catch (error) {
    if (error instanceof NoToken) dialog.close();
    else body.replaceChildren(make("p", { class: "reason", role: "alert" }, error.message));
  }
}

function content(found, text, again) {
  const { why, prove } = found;
  if (!why) return mirrored(prove, text);
  return [
    make("p", { class: "path" }, nameOf(`${why.watch_path.replace(/\/$/, "")}/${why.path}`), make("span", { class: "quiet" }, ` watch ${why.watch}`)),
    fault(prove),
    ...state(why, prove, again),
    ...prove.deliveries.map((one, index) => delivery(one, index, prove.deliveries.length)),
    chain(prove),
    make("p", { class: "buttons" }, copyButton(text), saveButton(text, why.path)),
  ].filter(Boolean);
}

function fault(prove) {
  return prove.fault ? make("p", { class: "fault", role: "alert" }, `${prove.fault}. Keep a copy of the state directory as it is, and find out who wrote to it.`) : null;
}

// -- a file that came down --

const HERE = {
  same: "It is as it was released.",
  untouched: "It is as it was released, by its inode, size and time.",
  unread: "It is another file than was released, by its inode, size or time.",
  changed: "It was CHANGED since it was released.",
  absent: "It is not there.",
  directory: "A directory.",
  unreadable: "The service cannot read it.",
};

function mirrored(prove, text) {
  const known = prove.downloads.length || prove.here === "directory";
  return [
    make("p", { class: "path" }, nameOf(`${prove.mirror_path.replace(/\/$/, "")}/${prove.path}`), make("span", { class: "quiet" }, ` mirror ${prove.mirror}`)),
    fault(prove),
    make("p", { class: "verdict", "data-state": prove.here === "changed" ? "parked" : "" }, known ? HERE[prove.here] : "It was not downloaded by this mirror."),
    ...prove.downloads.map(download),
    chain(prove),
    make("p", { class: "buttons" }, copyButton(text), saveButton(text, prove.path)),
  ].filter(Boolean);
}

function download(one, index, { length: all }) {
  return make("section", {},
    make("h3", {}, all > 1 ? `Download ${index + 1} of ${all}` : "Downloaded"),
    facts([
      ["Key", one.key],
      ["When", moment(one.downloaded_at)],
      ["Stored", `${count(one.stored_size)} bytes (${size(one.stored_size)})`],
      ["File", `${count(one.size)} bytes (${size(one.size)})`],
      ["SHA-256", one.sha256],
      ["Compression", one.compression],
      ["Proven by", one.evidence],
      ["ETag", one.etag],
      ["Version", one.version_id],
    ]),
  );
}

// -- what became of it --

function sentence(why, prove) {
  const { job } = why;
  const newest = prove.deliveries.at(-1);
  if (!job) {
    if (Object.keys(why.jobs_below).length) return "A directory.";
    return newest ? "Not in the queue; an earlier version was delivered." : "Not in the queue.";
  }
  switch (job.state) {
    case "done":
      return newest ? `Delivered ${moment(newest.delivered_at)}, and proven.` : "Finished: there was nothing to send.";
    case "running":
      return `Being delivered since ${clock(job.started_at)}${job.stage ? `: ${job.stage}` : ""}.`;
    case "waiting":
      return `Waiting to be tried again${job.retry_at ? ` at ${clock(job.retry_at)}` : ""}, after ${many(job.attempts, "failure")}.`;
    case "parked":
      return `Parked after ${many(job.attempts, "failure")}: mend the cause, then retry it.`;
    case "queued":
      return `Queued since ${clock(job.queued_at)}.`;
    default:
      return `It is ${job.state}.`;
  }
}

function state(why, prove, again) {
  const { job } = why;
  const nodes = [make("p", { class: "verdict", "data-state": job ? job.state : "" }, sentence(why, prove))];
  if (job?.error) nodes.push(make("p", { class: "reason" }, job.error));
  if (job && ["waiting", "parked", "dropped"].includes(job.state)) {
    const retry = make("button", { type: "button", class: "main", click: async () => {
      await doing(retry, () => act(`/api/v1/jobs/${job.id}/retry`), () => `Job ${job.id} is tried again.`);
      if (!retry.parentElement.querySelector(".did-not")) again();
    } }, `Retry job ${job.id}`);
    nodes.push(make("p", {}, retry));
  }
  const marks = new Map([[true, "in order"], [false, "missing"], [null, "cannot be told"]]);
  if (why.evidence.length) {
    nodes.push(make("ul", { class: "evidence" }, ...why.evidence.map(({ ok, text }) => make("li", { "data-ok": String(ok) }, make("strong", {}, marks.get(ok)), ` ${text}`))));
  }
  const below = Object.entries(why.jobs_below);
  if (below.length) nodes.push(make("p", {}, `Files below it: ${below.map(([name, number]) => `${count(number)} ${name}`).join(", ")}.`));
  return nodes;
}

// -- its proof --

function facts(pairs) {
  return make("dl", { class: "facts" }, ...pairs.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, nameOf(value))]));
}

function digests(name, others) {
  return Object.entries(others || {}).map(([kind, value]) => [`${name} ${kind}`, value]);
}

function delivery(one, index, all) {
  return make("section", {},
    make("h3", {}, all > 1 ? `Delivery ${index + 1} of ${all}: ${one.destination}` : `Delivered to ${one.destination}`),
    facts([
      ["Key", one.key],
      ["When", moment(one.delivered_at)],
      ["Source", `${count(one.size)} bytes (${size(one.size)})`],
      ["Source SHA-256", one.sha256],
      ...digests("Source", one.other_digests),
      ["Compression", one.compression + (one.compression_note ? ` (${one.compression_note})` : "")],
      ["Stored", `${count(one.stored_size)} bytes (${size(one.stored_size)})`],
      ["Stored SHA-256", one.stored_sha256],
      ...digests("Stored", one.stored_other_digests),
      ["Proven by", one.evidence],
      ["Checksum there", one.checksum],
      ["ETag", one.etag],
      ["Version", one.version_id],
      ["Source after", one.disposal],
      ["Copy", one.replaced ? "replaced since by a newer version" : ""],
    ]),
  );
}

function fieldsOf(entry) {
  try {
    return JSON.parse(entry.body);
  } catch {
    return { kind: entry.body };
  }
}

function chain(prove) {
  if (!prove.custody.length) return null;
  const entries = prove.custody.map((entry) => {
    const { kind, at, by, destination, error_code: code } = fieldsOf(entry);
    const about = [kind, destination && `to ${destination}`, code, by && `by ${by}`].filter(Boolean).join(" ");
    return make("li", {}, make("p", {}, make("strong", {}, nameOf(about)), at ? ` ${moment(at)}` : "", make("span", { class: "quiet" }, ` entry ${count(entry.seq)}`)), make("code", {}, entry.sha256));
  });
  return make("section", {},
    make("h3", {}, "Chain of custody"),
    make("ol", { class: "chain" }, ...entries),
    make("p", { class: "quiet small" }, prove.chain_checked ? "The whole log was checked." : "Each digest covers the entry and all before it. The whole log is checked by: quaymaster audit verify"),
  );
}

// -- to take along --

function copyButton(text) {
  const button = make("button", { type: "button", click: () => doing(button, () => copy(text), () => "Copied.").then(() => said(button, "Copied")) }, "Copy as JSON");
  return button;
}

function said(button, text) {
  if (button.parentElement.querySelector(".did-not")) return;
  const before = button.textContent;
  button.textContent = text;
  setTimeout(() => { button.textContent = before; }, 2000);
}

/** Where a page came without TLS there is no clipboard, but still a selection. */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { readonly: true, class: "unseen" });
  area.value = text;
  byId("file").append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("this browser does not let the page copy; download it instead");
  return undefined;
}

function saveButton(text, path) {
  const name = parts(path)[1].replace(/[^A-Za-z0-9._-]+/g, "_").slice(0, 100) || "file";
  return make("button", { type: "button", click: () => {
    const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    make("a", { href: url, download: `${name}.proof.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  } }, "Download as JSON");
}

// -- finding it --

async function find(path) {
  const found = byId("found");
  say(found, "Looking …");
  try {
    const { data } = await ask(`/api/v1/jobs?${new URLSearchParams({ path, limit: LISTED })}`);
    const files = new Map(data.jobs.map((job) => [`${job.watch}/${job.path}`, job]).reverse());
    const jobs = [...files.values()].reverse();
    if (path.startsWith("/") && jobs.length < 2) {
      say(found, "");
      look(path, `path=${encodeURIComponent(path)}`);
    } else {
      found.replaceChildren(...(jobs.length ? listing(jobs, data.more) : [make("p", {}, "No file of that name is known. An absolute path tells why.")]));
    }
  } catch (error) {
    found.replaceChildren(make("p", { class: "reason" }, error instanceof NoToken ? "No token was given." : error.message));
  }
}

function listing(jobs, more) {
  return [
    make("ul", { class: "hits" }, ...jobs.map((job) => make("li", {}, make("button", { type: "button", class: "name", click: () => open(job) }, nameOf(job.path)), make("span", { class: "quiet" }, ` ${job.watch}, ${job.state}, ${size(job.size)}`)))),
    more ? make("p", { class: "quiet" }, `The newest ${count(LISTED)}; there are more: quaymaster jobs --path`) : "",
  ];
}

byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  find(byId("find-path").value.trim());
});
