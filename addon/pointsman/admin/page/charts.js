// The three charts of the last five minutes. Their cursors move together; a legend tells the values
// at the cursor, or else the latest.

/* global uPlot */
import { h, show } from "./dom.js";
import { duration } from "./format.js";
import { quantile, together } from "./state.js";

const SPAN = 300; // seconds
const LEAST_SPAN = 60; // of a process that has just started
const SMOOTH = 5; // slots that a quantile is taken over
const RATE_SLOTS = 5; // slots that the latest rate is taken over
// Told apart by the colour-blind too (after Okabe and Ito); the light ones are for dark surfaces.
const COLORS = {
  light: ["#1f6fb5", "#e69a00", "#0a8f6f", "#c2569b", "#56b0e3", "#c8511b", "#7257c0", "#7d7a12"],
  dark: ["#5aa9e6", "#f2b134", "#2fbf98", "#e085bd", "#9ad4f5", "#f0814a", "#a996ea", "#c4bf4f"],
};
const OTHERS = { light: "#8a93a3", dark: "#7d8797" };
const MOST = COLORS.light.length;

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (dark.matches ? "dark" : "light");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** The colours of providers: the busiest have one, and keep it until another is twice as busy. */
class Palette {
  constructor() {
    this.places = new Map();
  }

  /** Take in how many requests each provider has had: a map. */
  rank(requests) {
    const busy = (name) => requests.get(name) ?? 0;
    const byRequests = [...requests.keys()].filter((name) => name !== "" && busy(name))
      .sort((a, b) => busy(b) - busy(a));
    for (const name of byRequests.slice(0, MOST)) {
      if (this.places.has(name)) continue;
      let place = this.places.size;
      if (place === MOST) {
        const [least] = [...this.places.keys()].sort((a, b) => busy(a) - busy(b));
        if (busy(name) < 2 * busy(least)) continue;
        place = this.places.get(least);
        this.places.delete(least);
      }
      this.places.set(name, place);
    }
  }

  of(provider) {
    return COLORS[theme()][this.places.get(provider)] ?? OTHERS[theme()];
  }

  has(provider) {
    return this.places.has(provider);
  }
}

export const palette = new Palette();

const axis = (more = {}) => ({
  stroke: css("--muted"),
  font: "11px system-ui, sans-serif",
  grid: { stroke: css("--grid"), width: 1 },
  ticks: { show: false },
  ...more,
});

class Chart {
  constructor(id, value, tick = value) {
    this.figure = document.getElementById(id);
    this.place = this.figure.querySelector(".plot");
    this.legend = this.figure.querySelector(".legend");
    this.value = value;
    this.tick = tick;
    this.data = [[]];
    this.plot = null;
    this.shape = "";
    new ResizeObserver(() => this.resize()).observe(this.place);
    dark.addEventListener("change", () => this.plot && this.draw(this.data, this.series, this.now, this.span, true));
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.place;
    if (this.plot && width && height) this.plot.setSize({ width, height });
  }

  /** Draw series: `{label, color, latest, ...uPlot's}`, whose values stand in `data`. */
  draw(data, series, now, span, anew = false) {
    Object.assign(this, { data, series, now, span });
    const shape = JSON.stringify(series.map((one) => [one.label, one.dash]));
    if (anew || shape !== this.shape || !this.plot) {
      this.plot?.destroy();
      this.plot = new uPlot(this.options(), data, this.place);
      this.shape = shape;
    } else {
      this.plot.setData(data, false);
      this.plot.setScale("x", { min: now - this.span, max: now });
    }
    this.tell();
  }

  options() {
    return {
      width: this.place.clientWidth || 300,
      height: this.place.clientHeight || 160,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: "pointsman", setSeries: false },
        drag: { x: false, y: false },
        points: { show: false },
        y: false,
      },
      scales: {
        x: { time: true, range: () => [this.now - this.span, this.now] },
        y: { range: (_, __, most) => [0, Math.max(most ?? 0, this.least ?? 1) * 1.1] },
      },
      axes: [
        axis({ values: (_, at) => at.map(clock), space: 70, size: 24 }),
        axis({ values: (_, at) => at.map((v) => this.tick(v)), size: 58, space: 32 }),
      ],
      series: [{}, ...this.series.map((one) => one.drawn(one))],
      hooks: { setCursor: [() => this.tell()] },
    };
  }

  /** Say in the legend, and to those who can't see the chart, what the values are. */
  tell() {
    const at = this.plot?.cursor.idx;
    const said = this.series.map((one) => {
      const value = at === null || at === undefined ? one.latest : one.values[at];
      return [one, this.value(value ?? null)];
    });
    show(this.legend, said.toReversed().map(([one, value]) => h("span", { class: "series" },
      h("i", { class: `swatch ${one.swatch ?? ""}`, color: one.color }),
      h("span", { class: "name" }, one.label), h("b", {}, value))));
    const title = this.figure.querySelector("h2").textContent;
    const words = this.series.map((one) => `${one.label} ${this.value(one.latest ?? null)}`);
    this.place.setAttribute("aria-label", `${title}, now: ${words.join(", ") || "no requests"}`);
  }
}

const two = (n) => String(n).padStart(2, "0");
function clock(seconds) {
  const at = new Date(seconds * 1000);
  const minutes = `${two(at.getHours())}:${two(at.getMinutes())}`;
  return at.getSeconds() ? `${minutes}:${two(at.getSeconds())}` : minutes;
}

const bars = (one) => ({
  fill: one.color,
  stroke: one.color,
  width: 0,
  paths: uPlot.paths.bars({ size: [0.82, 40], align: 1 }),
  points: { show: false },
});

const line = (one) => ({
  stroke: one.color,
  width: one.dash ? 1.5 : 2,
  dash: one.dash,
  fill: one.area,
  points: { size: 4, fill: one.color },
});

const short = (ms) => (Number(ms.toFixed(2)) < 1000 ? `${+ms.toFixed(2)} ms` : `${+(ms / 1000).toFixed(1)} s`);
const rate = (value) => (value === null ? "–" : `${+value.toFixed(value < 10 ? 2 : 1)}/s`);

// A provider may be called `constructor`.
const countOf = (providers, name) => (Object.hasOwn(providers, name) ? providers[name] : 0);

export class Charts {
  constructor() {
    this.requests = new Chart("chart-requests", rate);
    this.requests.least = 1;
    this.first = new Chart("chart-first", duration, short);
    this.first.least = 10;
    this.overhead = new Chart("chart-overhead", duration, short);
    this.overhead.least = 0.5;
  }

  draw(state) {
    const length = state.live.slot_seconds;
    const now = state.now();
    // The slot that is still being filled would look like a drop.
    const end = Math.floor(now / length) * length;
    this.span = Math.min(SPAN, Math.max(LEAST_SPAN, end - state.live.since));
    const known = new Map([...state.live.slots.values()].map((slot) => [slot.start, slot]));
    const starts = Array.from({ length: SPAN / length }, (_, n) => end - SPAN + n * length);
    const slots = starts.map((start) => known.get(start) ?? null);
    this.drawRequests(starts, slots, length, end);
    this.drawTimes(this.first, "time_to_first_token", starts, slots, end);
    this.drawTimes(this.overhead, "overhead", starts, slots, end);
  }

  drawRequests(starts, slots, length, end) {
    const names = new Set(slots.flatMap((slot) => (slot ? Object.keys(slot.providers) : [])));
    const own = [...names].filter((name) => palette.has(name)).sort();
    const groups = own.map((name) => [name, (providers) => countOf(providers, name)]);
    const rest = [...names].filter((name) => name !== "" && !palette.has(name));
    if (rest.length) {
      groups.push(["others", (providers) => rest.reduce((sum, name) => sum + countOf(providers, name), 0)]);
    }
    if (names.has("")) groups.push(["refused", (providers) => countOf(providers, "")]);
    let below = starts.map(() => 0);
    const series = groups.map(([label, take]) => {
      const values = slots.map((slot) => (slot ? take(slot.providers) / length : 0));
      below = below.map((sum, n) => sum + values[n]);
      const last = values.slice(-RATE_SLOTS);
      const latest = last.reduce((sum, value) => sum + value, 0) / last.length;
      const color = palette.of(own.includes(label) ? label : "");
      return { label, values, tops: below, latest, color, drawn: bars };
    });
    // The highest first: each next one covers the lower part of it.
    const drawn = series.toReversed();
    this.requests.draw([starts, ...drawn.map((one) => one.tops)], drawn, end, this.span);
  }

  drawTimes(chart, name, starts, slots, end) {
    const windows = slots.map((_, n) => {
      const some = slots.slice(Math.max(0, n - SMOOTH + 1), n + 1).filter(Boolean);
      return together(some, name);
    });
    const color = css("--accent");
    const series = [["p95", 0.95, [4, 3]], ["p50", 0.5, undefined]].map(([label, q, dash]) => {
      const values = windows.map((buckets) => quantile(buckets, q));
      const latest = values.findLast((value) => value !== null) ?? null;
      return { label, values, latest, dash, color, swatch: dash ? "dashed" : "line",
        area: dash ? undefined : css("--area"), drawn: line };
    });
    chart.draw([starts, ...series.map((one) => one.values)], series, end, this.span);
  }
}
