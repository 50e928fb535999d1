// The last requests: a list that one can filter and hold still, and one of them explained.

import { h, show } from "./dom.js";
import { ago, bytes, count, duration, exact, moment, money } from "./format.js";
import { attempted, choice, failedOver, FLAGS, isError, summary } from "./words.js";

const MOST = 200;
const OUTCOMES = {
  "": () => true,
  ok: (one) => !isError(one),
  errors: isError,
  "4xx": (one) => one.status >= 400 && one.status < 500,
  "5xx": (one) => one.status >= 500,
  failover: failedOver,
  stream: (one) => one.stream === true,
  mirror: (one) => one.mirror === true,
  replay: (one) => one.replay === true,
};
// What the text filter looks at.
const SEARCHED = [
  "request_id", "host", "method", "path", "client", "workload", "namespace", "route", "rule",
  "provider", "provider_host", "upstream_path", "status", "error", "client_model", "request_model",
  "response_model", "finish_reason",
];

// Where the explanation takes the whole window, it is all that one can reach.
const narrow = matchMedia("(max-width: 900px)");

const byId = (id) => document.getElementById(id);
const keyOf = (one) => JSON.stringify([one.timestamp, one.request_id, one.mirror ?? false]);
const seconds = (one) => Date.parse(one.timestamp) / 1000;

export class Exchanges {
  constructor() {
    this.body = byId("list").tBodies[0];
    this.detail = byId("detail");
    this.rows = []; // newest first: {one, key, row, time}
    this.waiting = []; // newest first: those that came while the list is held
    this.chosen = null; // the key of the one that is explained
    this.held = false;
    this.now = 0;
    this.empty = () => [];
    this.listen();
  }

  // --- what comes in ------------------------------------------------------------------------------

  /** Show these and no others. */
  replace(exchanges) {
    const known = new Map(this.rows.map((entry) => [entry.key, entry]));
    if (this.held) {
      // What is held stays, whatever the proxy has by now.
      this.waiting = exchanges.filter((one) => !known.has(keyOf(one)));
      this.showHold();
      return;
    }
    this.waiting = [];
    this.rows = exchanges.map((one) => known.get(keyOf(one)) ?? this.entry(one));
    const focused = document.activeElement;
    this.body.replaceChildren(...this.rows.map((entry) => entry.row));
    if (this.body.contains(focused)) focused.focus();
    this.changed();
  }

  /** Take new ones in, newest first. */
  add(exchanges) {
    if (this.held) {
      this.waiting = [...exchanges, ...this.waiting].slice(0, MOST);
      this.showHold();
      return;
    }
    const entries = exchanges.map((one) => this.entry(one));
    this.body.prepend(...entries.map((entry) => entry.row));
    this.rows = [...entries, ...this.rows];
    for (const old of this.rows.splice(MOST)) old.row.remove();
    this.changed();
  }

  changed() {
    this.offerFlags();
    this.filter();
    this.tick(this.now);
  }

  /** Bring the times up to date. */
  tick(now) {
    this.now = now;
    for (const { time, one } of this.rows) {
      const said = ago(seconds(one), now);
      if (time.textContent !== said) time.textContent = said;
    }
    const time = this.detail.querySelector("time");
    if (time) time.textContent = ago(Number(time.dataset.at), now);
  }

  entry(one) {
    const time = h("time", { title: moment(seconds(one)), datetime: one.timestamp });
    const row = listRow(one, time);
    const key = keyOf(one);
    row.dataset.key = key;
    if (key === this.chosen) row.setAttribute("aria-selected", "true");
    return { one, key, row, time };
  }

  // --- the filter ---------------------------------------------------------------------------------

  offerFlags() {
    const select = byId("filter-flag");
    const flags = [...new Set(this.rows.flatMap(({ one }) => one.flags))].sort();
    if (select.value && !flags.includes(select.value)) flags.push(select.value);
    const offered = [...select.options].map((option) => option.value).filter(Boolean);
    const added = flags.filter((flag) => !offered.includes(flag));
    select.append(...added.map((flag) => h("option", { value: flag }, `${flag}: ${Object.hasOwn(FLAGS, flag) ? FLAGS[flag] : "?"}`)));
  }

  /** Hide what is not asked for; `asked`: just now, so that the count is read out. */
  filter(asked = false) {
    const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const outcome = OUTCOMES[byId("filter-outcome").value];
    const flag = byId("filter-flag").value;
    for (const { one, row } of this.rows) {
      const text = words.length ? searched(one) : "";
      row.hidden = !(words.every((word) => text.includes(word)) && outcome(one)
        && (!flag || one.flags.includes(flag)));
    }
    const found = this.visible().length;
    const filtered = words.length || byId("filter-outcome").value || flag;
    const said = filtered ? `${found} of the last ${this.rows.length} shown`
      : this.rows.length ? `the last ${this.rows.length}` : "";
    const told = byId("count");
    told.setAttribute("aria-live", asked ? "polite" : "off");
    if (told.textContent !== said) told.textContent = said;
    const empty = byId("empty");
    empty.hidden = found > 0;
    show(empty, found ? [] : this.rows.length
      ? [h("p", {}, "None of the last requests is like that.")] : this.empty());
    byId("list").hidden = !found;
    if (!this.reachable()) this.reach(this.visible()[0]);
  }

  // --- the list -----------------------------------------------------------------------------------

  visible() {
    return this.rows.filter(({ row }) => !row.hidden);
  }

  /** The row that the Tab key comes to. */
  reachable() {
    return this.visible().find(({ row }) => row.tabIndex === 0);
  }

  /** Let the Tab key come to this row, and to no other. */
  reach(entry) {
    for (const { row } of this.rows) if (row.tabIndex === 0) row.tabIndex = -1;
    if (entry) entry.row.tabIndex = 0;
  }

  of(element) {
    const row = element.closest("tr[data-key]");
    return row && this.rows.find((entry) => entry.row === row);
  }

  focus(entry) {
    if (!entry) return;
    this.reach(entry);
    entry.row.focus();
    if (this.chosen) this.explain(entry);
  }

  listen() {
    this.body.addEventListener("click", (event) => {
      const entry = this.of(event.target);
      if (!entry) return;
      this.reach(entry);
      this.explain(entry);
    });
    this.body.addEventListener("keydown", (event) => this.pressed(event));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.chosen) this.close();
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.closest?.("input, select, textarea");
      if (event.key === "/" && !typing) {
        event.preventDefault();
        byId("filter-text").focus();
      } else if (entersList(event) && this.reachable()) {
        event.preventDefault();
        this.focus(this.reachable());
      }
    });
    narrow.addEventListener("change", () => {
      if (!this.detail.open) return;
      this.detail.close();
      this.open();
    });
    // A browser has ways of its own to close what is modal, such as a phone's gesture.
    this.detail.addEventListener("close", () => this.chosen && !this.detail.open && this.close());
    byId("filter").addEventListener("submit", (event) => event.preventDefault());
    byId("filter").addEventListener("input", () => this.filter(true));
    byId("hold").addEventListener("click", () => this.hold(!this.held));
  }

  pressed(event) {
    const entry = this.of(event.target);
    if (!entry) return;
    const visible = this.visible();
    const at = visible.indexOf(entry);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: visible.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.focus(visible[to]);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.explain(entry);
      this.detail.focus();
    }
  }

  hold(held) {
    this.held = held;
    const waiting = this.waiting;
    this.waiting = [];
    if (!held) this.add(waiting);
    this.showHold();
  }

  showHold() {
    const button = byId("hold");
    button.setAttribute("aria-pressed", String(this.held));
    const newer = this.waiting.length === MOST ? `${MOST} or more` : this.waiting.length;
    button.textContent = this.held ? `Go on (${newer} newer)` : "Hold";
  }

  // --- one of them --------------------------------------------------------------------------------

  explain(entry) {
    this.mark(false);
    this.chosen = entry.key;
    this.mark(true);
    const close = h("button", { type: "button", class: "close", "aria-label": "Close" }, "✕");
    close.addEventListener("click", () => this.close());
    this.detail.replaceChildren(close, ...explained(entry.one));
    if (!this.detail.open) this.open();
    this.detail.scrollTop = 0;
    this.tick(this.now);
  }

  /** Show the explanation: beside the list, where the focus stays, or in its place. */
  open() {
    if (narrow.matches) this.detail.showModal();
    else this.detail.setAttribute("open", "");
  }

  close() {
    const entry = this.rows.find(({ key }) => key === this.chosen);
    this.mark(false);
    this.chosen = null;
    this.detail.close();
    this.detail.replaceChildren();
    if (entry && !entry.row.hidden) this.focus(entry);
    else byId("exchanges").focus();
  }

  mark(selected) {
    const row = this.rows.find(({ key }) => key === this.chosen)?.row;
    if (row && selected) row.setAttribute("aria-selected", "true");
    else row?.removeAttribute("aria-selected");
  }
}

/** Whether an arrow key comes from where it has no other use: nowhere, or the text of the filter. */
function entersList({ key, target }) {
  const outside = target === document.body || target === byId("exchanges");
  return (key === "ArrowDown" && (outside || target === byId("filter-text")))
    || (key === "ArrowUp" && outside);
}

function searched(one) {
  const attempts = one.attempts.flatMap(({ provider, error }) => [provider, error]);
  return [...SEARCHED.map((name) => one[name]), ...one.flags, ...attempts].join("\n").toLowerCase();
}

// --- a row ----------------------------------------------------------------------------------------

function statusBadge(one) {
  const kind = one.status === null ? "none" : isError(one) ? (one.status >= 500 ? "bad" : "warn") : "ok";
  return h("span", { class: "status", "data-kind": kind }, one.status === null ? "–" : String(one.status));
}

const flagBadges = (one) => one.flags.map((flag) =>
  h("abbr", { class: "flag", title: FLAGS[flag] ?? null }, flag));

function models(one) {
  const model = one.response_model ?? one.request_model ?? one.client_model;
  const asked = one.client_model && one.client_model !== model ? `${one.client_model} → ` : "";
  return model ? [asked ? h("span", { class: "dim" }, asked) : null, model] : [h("span", { class: "dim" }, "–")];
}

/** `POST host/path`; of a connection that was refused before it was read, the host alone. */
const asked = (one) => `${one.method ? `${one.method} ` : ""}${one.host}${one.path ?? ""}`;

function listRow(one, time) {
  const tokens = one.request_prompt_tokens === null && one.request_completion_tokens === null ? "–"
    : `${count(one.request_prompt_tokens)} + ${count(one.request_completion_tokens)}`;
  return h("tr", { tabindex: -1, class: isError(one) ? "error" : null },
    h("td", { class: "c-status" }, statusBadge(one), flagBadges(one)),
    h("td", { class: "c-request clip", title: asked(one) },
      one.host, h("span", { class: "dim" }, one.path ?? "")),
    h("td", { class: `c-provider clip${one.attempts.length ? "" : " dim"}`, title: one.rule ? `by rule ${one.rule}` : null },
      failedOver(one) ? h("span", { class: "turn", title: "failed over" }, "↪ ") : null,
      one.mirror ? h("span", { class: "badge" }, "mirror") : null,
      one.replay ? h("span", { class: "badge" }, "replay") : null,
      one.provider ?? h("span", { class: "dim" }, "none"),
      h("span", { class: "small dim" }, models(one).map((part) => part?.cloneNode?.(true) ?? part))),
    h("td", { class: "c-model clip", title: one.response_model ?? one.request_model }, models(one)),
    h("td", { class: "num c-tokens" }, tokens),
    h("td", { class: "num c-cost" }, money(one.cost_usd)),
    h("td", { class: "num c-first" }, duration(one.time_to_first_token_ms)),
    h("td", { class: "num" }, duration(one.duration_ms)),
    h("td", { class: "num dim c-ended" }, time));
}

// --- the explanation ------------------------------------------------------------------------------

const part = (title, ...told) => h("section", {}, h("h4", {}, title), ...told);
const facts = (pairs) => h("dl", {}, pairs.filter(([, value]) => value !== null)
  .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

function explained(one) {
  return [
    h("h3", {}, statusBadge(one), " ", asked(one)),
    h("p", { class: "dim" }, h("time", { "data-at": seconds(one), title: moment(seconds(one)) }),
      ` · ${moment(seconds(one))}`),
    ...summary(one).map((said) => h("p", { class: "said" }, said)),
    one.flags.length ? h("ul", { class: "flags" }, one.flags.map((flag) =>
      h("li", {}, h("span", { class: "flag" }, flag), ` ${FLAGS[flag] ?? ""}`))) : null,
    part("Why it went there", ...why(one)),
    one.attempts.length ? part("Attempts", attempts(one)) : null,
    part("Model and tokens", facts([
      ["Asked for", one.client_model ?? "no model"],
      ["Sent", one.request_model],
      ["Answered by", one.response_model],
      ["Tokens in", amount(one.request_prompt_tokens, [["cached", one.cached_tokens], ["written to the cache", one.cache_write_tokens]])],
      ["Tokens out", amount(one.request_completion_tokens, [["reasoning", one.reasoning_tokens]])],
      ["In all", one.total_tokens === null ? null : exact(one.total_tokens)],
      ["Counted by", { response: "the provider's answer", partial: "what came of the answer" }[one.usage_source] ?? "no one"],
      ["Cost", cost(one)],
      ["Finished", one.finish_reason],
    ])),
    part("Time", facts([
      ["In all", duration(one.duration_ms)],
      ["First token", one.time_to_first_token_ms === null ? null : `after ${duration(one.time_to_first_token_ms)}`],
      ["In Pointsman", duration(one.overhead_ms)],
      ["Sent, received", `${bytes(one.request_bytes)}, ${bytes(one.response_bytes)}`],
    ])),
    part("Where", facts([
      ["Client", one.client],
      ["Workload", [one.workload, one.namespace].filter(Boolean).join(" in ") || null],
      ["Sent to", one.provider_host === null ? null : `${one.provider_host}${one.upstream_path ?? ""}`],
      ["Request", one.request_id],
    ])),
    h("details", {}, h("summary", {}, "As the access log has it"), h("pre", {}, logged(one))),
  ].filter(Boolean);
}

function why(one) {
  const rules = one.decision?.rules ?? [];
  const route = one.route ? `Route ${one.route} answers for this host.`
    : one.provider || one.provider_host ? "No route stands before this host: its provider answers."
      : "No route and no provider answers for this host.";
  if (!one.decision && !one.provider) {
    return [h("p", {}, one.route ? route : "It was refused before any rule was looked at.")];
  }
  const none = one.decision && !rules.some((rule) => rule.matched);
  return [
    h("p", {}, route),
    rules.length ? h("ol", { class: "rules" }, rules.map((rule) =>
      h("li", { class: rule.matched ? "yes" : "no" },
        h("span", { "aria-hidden": "true" }, rule.matched ? "✓ " : "✗ "),
        h("b", {}, rule.rule), rule.matched ? " matched: " : " did not match: ", rule.reason))) : null,
    none ? h("p", {}, "No rule matched.") : null,
    ...(none && !one.decision.by_hand ? [] : choice(one)).map((said) => h("p", {}, said)),
  ].filter(Boolean);
}

function attempts(one) {
  const whole = Math.max(one.duration_ms ?? 0, one.attempts.reduce((sum, { duration_ms: ms }) => sum + (ms ?? 0), 0));
  return h("ol", { class: "attempts" }, one.attempts.map((attempt) => {
    const good = attempt.error === null && attempt.status !== null && attempt.status < 400;
    return h("li", { class: good ? "yes" : "no" },
      h("b", {}, attempt.provider), ` ${attempted(attempt)}`,
      h("span", { class: "took", "aria-hidden": "true" },
        h("span", { share: whole ? (attempt.duration_ms ?? 0) / whole : 0 })));
  }));
}

function cost(one) {
  if (one.cost_usd !== null) return `${money(one.cost_usd)} by list price`;
  if (!one.attempts.length) return "none: no provider was asked";
  if (one.request_prompt_tokens !== null) return "unknown: there is no list price";
  return "unknown: its tokens are not known";
}

function amount(value, parts) {
  if (value === null) return "unknown";
  const known = parts.filter(([, some]) => some).map(([name, some]) => `${exact(some)} ${name}`);
  return `${exact(value)}${known.length ? `, of it ${known.join(", ")}` : ""}`;
}

function logged(one) {
  const { decision, ...entry } = one;
  return JSON.stringify({ event: "llm_request", ...entry }, null, 2);
}
