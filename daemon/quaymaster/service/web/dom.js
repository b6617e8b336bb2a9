// Elements. What comes from outside gets in as text alone, never as markup.

/** An element with properties (class, on…, data-… and attributes) and children, which are nodes or texts. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Changes a text only when it is another, so that nothing is laid out or read aloud in vain. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node, name, value) {
  if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/** Rows for items, kept from one time to the next: `row(item)` gives {node, update}. */
export class Rows {
  constructor(parent, key, row) {
    this.parent = parent;
    this.key = key;
    this.row = row;
    this.known = new Map();
  }

  show(items) {
    const before = this.known;
    this.known = new Map();
    let place = this.parent.firstElementChild;
    for (const item of items) {
      const key = this.key(item);
      const row = before.get(key) || this.row(item);
      before.delete(key);
      this.known.set(key, row);
      row.update(item);
      if (row.node === place) place = place.nextElementSibling;
      else this.parent.insertBefore(row.node, place);
    }
    for (const row of before.values()) row.node.remove();
  }
}

/** A name that may be anything: set apart, so that its direction changes nothing around it. */
export function nameOf(text) {
  return make("bdi", {}, text);
}

/** Cells of a table say their column's title where it is laid out as a list; and they stay cells there. */
export function cell(title, properties, ...children) {
  return make("td", { role: "cell", "data-title": title, ...properties }, ...children);
}

/** Roles that a table loses in some browsers when it is laid out otherwise. */
export function keepRoles(table) {
  table.setAttribute("role", "table");
  for (const group of table.querySelectorAll("thead, tbody")) group.setAttribute("role", "rowgroup");
  for (const row of table.querySelectorAll("tr")) row.setAttribute("role", "row");
  for (const head of table.querySelectorAll("thead th")) head.setAttribute("role", "columnheader");
}

let speaking = "";

/** Said by a screen reader, once. */
export function announce(text) {
  const said = byId("said");
  speaking = speaking === text ? `${text}\u00a0` : text; // the same text again would not be noticed
  said.textContent = speaking;
}
