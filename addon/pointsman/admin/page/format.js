// Numbers and times as people read them. Unknown is "–", never 0.

const UNKNOWN = "–";
const plain = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const day = new Intl.DateTimeFormat("en", { dateStyle: "medium", timeStyle: "medium" });
const LARGE = 1_000_000;

const unknown = (value) => value === null || value === undefined;

/** 12345 → "12,345"; from a million on "1.23M". */
export function count(value) {
  if (unknown(value)) return UNKNOWN;
  return value >= LARGE ? short.format(value) : plain.format(value);
}

/** The whole number, for a tooltip. */
export const exact = (value) => (unknown(value) ? UNKNOWN : plain.format(value));

/** What is counted, in the singular where it is one. */
export const noun = (n, what, many = `${what}s`) => (n === 1 ? what : many);

/** 1 → "1 host", 2 → "2 hosts". */
export const several = (n, what) => `${exact(n)} ${noun(n, what)}`;

/** US dollars; small sums with more places. */
export function money(value) {
  if (unknown(value)) return UNKNOWN;
  if (value === 0) return "$0";
  if (value < 0.000001) return "< $0.000001";
  const places = value >= 100 ? 2 : value >= 1 ? 4 : 6;
  const amount = value.toLocaleString("en", {
    minimumFractionDigits: places, maximumFractionDigits: places,
  });
  return `$${amount}`;
}

/** 0.5234 → "52.3 %". */
export function percent(share) {
  if (unknown(share) || Number.isNaN(share)) return UNKNOWN;
  const value = share * 100;
  return `${Number.isInteger(value) ? value : value.toFixed(1)} %`;
}

/** Milliseconds → "0.31 ms", "812 ms", "4.2 s", "3 min 5 s". */
export function duration(ms) {
  if (unknown(ms)) return UNKNOWN;
  const seconds = ms / 1000;
  // What is shown decides on the unit: 999.6 ms is a second.
  if (Number(ms.toFixed(2)) < 10) return `${ms.toFixed(2)} ms`;
  if (Math.round(ms) < 1000) return `${Math.round(ms)} ms`;
  if (Number(seconds.toFixed(2)) < 10) return `${seconds.toFixed(2)} s`;
  if (Number(seconds.toFixed(1)) < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Bytes → "812 B", "4.1 kB". */
export function bytes(value) {
  if (unknown(value)) return UNKNOWN;
  if (value < 1000) return `${value} B`;
  const kilo = (value / 1000).toFixed(1);
  return Number(kilo) < 1000 ? `${kilo} kB` : `${(value / 1e6).toFixed(1)} MB`;
}

/** Seconds since 1970, and the time now → "12 s ago". */
export function ago(then, now) {
  const seconds = Math.max(0, Math.round(now - then));
  if (seconds < 1) return "now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** Seconds since 1970 → a date and time here. */
export const moment = (seconds) => (Number.isFinite(seconds) ? day.format(new Date(seconds * 1000)) : UNKNOWN);
