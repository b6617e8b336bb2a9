// Asking the service. A token is asked for when it wants one, and kept in this tab alone.

import { byId, say } from "./dom.js";

const KEPT = "quaymaster-token";
const SILENCE = 40_000; // milliseconds; the service says something every 15 seconds

/** The service has answered, and the answer is no. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Nobody gave a token. */
export class NoToken extends Error {}

function kept() {
  try {
    return sessionStorage.getItem(KEPT) || "";
  } catch {
    return "";
  }
}

function keep(token) {
  try {
    sessionStorage.setItem(KEPT, token);
  } catch {
    // Storage is switched off: it is asked for again after a reload.
  }
}

let token = kept();
let asking = null;

/** One dialog, however many requests wait for it. */
function askForToken(why) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = byId("token");
    const text = byId("token-text");
    let given = "";
    text.value = "";
    say(byId("token-why"), why);
    byId("token-form").onsubmit = (event) => {
      event.preventDefault();
      given = text.value.trim();
      if (given) dialog.close();
    };
    dialog.onclose = () => {
      asking = null;
      text.value = "";
      if (!given) return reject(new NoToken("No token was given."));
      token = given;
      keep(given);
      return resolve();
    };
    dialog.showModal();
  });
  return asking;
}

function whyToken(used, acts) {
  if (used) return acts ? "The token that you gave may not change anything. Enter the one for acting ([api] act_token)." : "That token was not accepted.";
  return acts ? "To change anything here enter the token for acting ([api] act_token)." : "The service asks for a token to show its figures ([api] read_token or act_token).";
}

function wantsToken(status, detail) {
  return status === 401 || (status === 403 && detail === "Not authorized");
}

async function request(path, options) {
  const headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  const signal = options.signal || AbortSignal.timeout(30_000);
  return fetch(path, { ...options, headers, signal, cache: "no-store", credentials: "omit", redirect: "error" });
}

async function problemOf(response) {
  try {
    return (await response.json()).detail || response.statusText;
  } catch {
    return response.statusText || `status ${response.status}`;
  }
}

/** The answer, asking for a token as often as it takes. Raises Refused, NoToken, or what fetch raises. */
async function answer(path, options = {}, good = []) {
  for (;;) {
    const used = token;
    const response = await request(path, options);
    if (response.ok || good.includes(response.status)) return response;
    const detail = await problemOf(response);
    if (!wantsToken(response.status, detail)) throw new Refused(response.status, detail);
    if (used === token) await askForToken(whyToken(used, options.method === "POST"));
  }
}

/** A document: its text as it came, since numbers may be larger than a script's, and what is in it. */
export async function ask(path, good = []) {
  const response = await answer(path, {}, good);
  const text = await response.text();
  return { text, data: JSON.parse(text) };
}

export async function act(path, body = {}) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return (await answer(path, options)).json();
}

/** Server-sent events as pairs of name and data, until the connection ends. `opened` is called once they flow. */
export async function* events(opened) {
  const control = new AbortController();
  let alarm = setTimeout(() => control.abort(), SILENCE);
  try {
    const response = await answer("/api/v1/events", { signal: control.signal });
    opened();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let left = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(alarm);
      alarm = setTimeout(() => control.abort(), SILENCE);
      const frames = (left + value).split("\n\n");
      left = frames.pop();
      for (const frame of frames) {
        const fields = Object.fromEntries(frame.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
        if (fields.data) yield [fields.event, JSON.parse(fields.data)];
      }
    }
  } finally {
    clearTimeout(alarm);
    control.abort();
  }
}
