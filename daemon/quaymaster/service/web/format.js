// Figures as text, by the rules of the command line: three digits, two units of time.

const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

export function size(number) {
  if (number < 1024) return `${Math.round(number)} B`;
  let value = number / 1024;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ${UNITS[unit]}`;
}

export function rate(number) {
  return `${size(number)}/s`;
}

export function count(number) {
  return number.toLocaleString("en");
}

export function many(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) {
    const minutes = Math.floor((whole % 3600) / 60);
    return `${Math.floor(whole / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
  }
  const hours = Math.floor((whole % 86400) / 3600);
  return `${Math.floor(whole / 86400)} d${hours ? ` ${hours} h` : ""}`;
}

/** Seconds since the epoch as the time of day here; with the date when it is another day. */
export function clock(epoch, seconds = true) {
  const date = new Date(epoch * 1000);
  const time = date.toTimeString().slice(0, seconds ? 8 : 5);
  return date.toDateString() === new Date().toDateString() ? time : `${day(date)} ${time}`;
}

export function moment(epoch) {
  const date = new Date(epoch * 1000);
  return `${day(date)} ${date.toTimeString().slice(0, 8)}`;
}

function day(date) {
  const two = (number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** A directory and a name. */
export function parts(path) {
  const cut = path.lastIndexOf("/") + 1;
  return [path.slice(0, cut), path.slice(cut)];
}

/** The query that names a file of a watch, byte for byte: its name need not be text. */
export function queryOf(root, record) {
  const bytes = (record.path_bytes_hex || "").match(/../g);
  const path = bytes ? bytes.map((byte) => `%${byte}`).join("") : encodeURIComponent(record.path);
  return `path=${encodeURIComponent(root.replace(/\/$/, ""))}%2F${path}`;
}
