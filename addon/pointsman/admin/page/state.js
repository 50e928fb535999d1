// What the proxy has told: one snapshot, and the changes that came after it.

// As pointsman.telemetry.live has them; a test compares them.
export const ROWS = {
  slots: ["start"],
  rules: ["route", "host", "rule", "provider"],
  models: ["provider", "model"],
  targets: ["route", "host", "rule", "provider"],
};
export const SLOTS_KEPT = 200; // somewhat more than are drawn
export const LAST_EXCHANGES = 200;
export const PER_DOUBLING = 4;

const keyOf = (row, names) => JSON.stringify(names.map((name) => row[name]));

export class State {
  constructor() {
    this.live = null;
    this.told = 0; // performance.now() when the proxy last told its time
  }

  /** Take a whole snapshot. */
  replace(snapshot) {
    this.live = { ...snapshot };
    for (const [name, key] of Object.entries(ROWS)) {
      this.live[name] = new Map(snapshot[name].map((row) => [keyOf(row, key), row]));
    }
    this.told = performance.now();
  }

  /** Take what has changed. */
  change(changed) {
    const { exchanges = [], ...others } = changed;
    for (const [name, value] of Object.entries(others)) {
      if (!(name in ROWS)) this.live[name] = value;
      else for (const row of value) this.live[name].set(keyOf(row, ROWS[name]), row);
    }
    const slots = this.live.slots;
    for (const key of slots.keys()) {
      if (slots.size <= SLOTS_KEPT) break;
      slots.delete(key);
    }
    this.live.exchanges = [...exchanges, ...this.live.exchanges].slice(0, LAST_EXCHANGES);
    this.told = performance.now();
  }

  /** The proxy's time in seconds since 1970: this machine's clock may be another. */
  now() {
    return this.live.time + (performance.now() - this.told) / 1000;
  }
}

/** The upper bound, in ms, of the bucket that the quantile falls in; null without any value. */
export function quantile(buckets, q) {
  const entries = Object.entries(buckets).map(([number, n]) => [Number(number), n]);
  entries.sort((a, b) => a[0] - b[0]);
  const wanted = q * entries.reduce((sum, [, n]) => sum + n, 0);
  let seen = 0;
  for (const [number, n] of entries) {
    seen += n;
    if (seen >= wanted) return 2 ** (number / PER_DOUBLING);
  }
  return null;
}

/** Add up the buckets of several slots. */
export function together(slots, name) {
  const sum = Object.create(null);
  for (const slot of slots) {
    for (const [number, n] of Object.entries(slot[name])) sum[number] = (sum[number] ?? 0) + n;
  }
  return sum;
}
