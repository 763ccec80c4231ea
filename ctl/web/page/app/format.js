// Numbers, times and names for people. Pure.

const counted = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 12,345; an absent number is a dash. */
export function count(value) {
  return typeof value === "number" && Number.isFinite(value) ? counted.format(value) : "–";
}

/** Three digits and a unit: 999, 1.23 k, 45.6 M. */
export function short(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  let rest = Math.abs(value);
  if (rest < 1000) return rest < 10 && !Number.isInteger(rest) ? value.toFixed(1) : counted.format(value);
  let unit = "";
  for (unit of ["k", "M", "G", "T", "P"]) {
    rest /= 1000;
    if (rest < 999.5) break;
  }
  return `${value < 0 ? "-" : ""}${rest < 9.995 ? rest.toFixed(2) : rest < 99.95 ? rest.toFixed(1) : rest.toFixed(0)} ${unit}`;
}

export const perSecond = (value) => (typeof value === "number" ? `${short(value)}/s` : "–");

/** Bytes per second as bits per second, as links are measured. */
export const bits = (bytes) => {
  if (typeof bytes !== "number") return "–";
  const text = short(bytes * 8);
  return /[kMGTP]$/.test(text) ? `${text}bit/s` : `${text} bit/s`;
};

export const bytes = (value) => {
  const text = short(value);
  return text === "–" ? text : /[kMGTP]$/.test(text) ? `${text}B` : `${text} B`;
};

export const percent = (share) => {
  if (typeof share !== "number") return "–";
  const value = share * 100;
  return `${value === 0 || value >= 99.995 || value < 0.05 ? Math.round(value) : value < 10 ? value.toFixed(1) : value.toFixed(value > 99 ? 2 : 0)} %`;
};

/** 12 s, 3 min, 2 h 5 min, 4 d 3 h. */
export function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export const milliseconds = (value) => (typeof value === "number" ? `${value < 10 && !Number.isInteger(value) ? value.toFixed(1) : counted.format(value)} ms` : "–");

/** How long ago the peer was heard. */
export function ago(ms) {
  if (typeof ms !== "number") return "never";
  return ms < 10000 ? `${counted.format(ms)} ms ago` : `${duration(ms / 1000)} ago`;
}

const two = (value) => String(value).padStart(2, "0");

/** A moment in the browser's time zone: the time, with the date if it is not today. */
export function moment(when, now = new Date()) {
  const at = typeof when === "number" ? new Date(when * 1000) : new Date(when);
  if (Number.isNaN(at.getTime())) return String(when ?? "");
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const today = at.toDateString() === now.toDateString();
  return today ? time : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** ADDR:PORT, an IPv6 address in brackets: the name of a backend. */
export const endpoint = (address, port) => (String(address).includes(":") ? `[${address}]:${port}` : `${address}:${port}`);

/** Where a farm listens. */
export const listener = (farm) =>
  String(farm.vip)
    .split(",")
    .map((vip) => (vip.includes(":") ? `[${vip}]` : vip) + `:${farm.port}`)
    .join(", ");
