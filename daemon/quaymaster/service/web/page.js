"use strict";
// Every figure of the status, a row each, as the service says it.

const rows = document.getElementById("status");
const said = document.getElementById("said");

function* flat(value, name) {
  if (value !== null && typeof value === "object") {
    for (const [key, inside] of Object.entries(value)) yield* flat(inside, name ? `${name}.${key}` : key);
  } else {
    yield [name, String(value)];
  }
}

async function show() {
  try {
    const answer = await fetch("/api/v1/system/upload-status");
    const status = await answer.json();
    if (!answer.ok) throw new Error(status.detail);
    delete status.rates.minutes;
    rows.replaceChildren(...[...flat(status, "")].map(([name, text]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(head, cell);
      return row;
    }));
    said.textContent = `As of ${new Date(status.at * 1000).toLocaleTimeString()}.`;
  } catch (error) {
    said.textContent = `The service does not answer: ${error.message}`;
  }
}

show();
setInterval(show, 2000);
