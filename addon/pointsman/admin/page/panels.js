// What stands above the list: the state of the proxy, totals, rules, providers and models.

import { h, show } from "./dom.js";
import { ago, count, duration, exact, moment, money, noun, percent, several } from "./format.js";
import { quantile, together } from "./state.js";
import { palette } from "./charts.js";

const byId = (id) => document.getElementById(id);

/** A state that is told by its shape and its word, not by its colour alone. */
const SIGNS = { healthy: "●", probing: "◐", ejected: "✕" };
const MEANINGS = {
  healthy: "its attempts go well",
  probing: "it was ejected; one attempt is trying it now",
  ejected: "it failed and is left out for a while",
};

export function health(state) {
  return h("span", { class: "health", "data-state": state, title: `${state}: ${MEANINGS[state]}` },
    h("span", { "aria-hidden": "true" }, SIGNS[state]), ` ${state}`);
}

// --- the state of the proxy -----------------------------------------------------------------------

const CONNECTION = {
  connecting: "Connecting…",
  live: "Live",
  full: "Too many viewers: close another page. Trying again…",
  failing: "Not up to date: the proxy can't tell what happens. Its log says why.",
  lost: "Disconnected: what you see is old. Trying again…",
};

export function showConnection(how) {
  const chip = byId("connection");
  if (chip.dataset.state === how) return;
  chip.dataset.state = how;
  chip.textContent = CONNECTION[how];
  document.body.classList.toggle("stale", how === "lost" || how === "full" || how === "failing");
}

export function showProxy(live, config, now) {
  const { ready, reasons } = live.readiness;
  const draining = reasons.includes("draining");
  const chip = byId("readiness");
  const state = ready ? "ready" : draining ? "draining" : "unready";
  chip.hidden = false;
  chip.dataset.state = state;
  const said = { ready: "Ready", draining: "Draining", unready: "Not ready" }[state];
  if (chip.textContent !== said) chip.textContent = said;

  const wanted = live.processes_wanted ?? live.processes;
  const processes = wanted === live.processes ? String(wanted) : `${live.processes} of ${wanted}`;
  show(byId("about"), [
    h("span", { id: "processes" }, `${processes} ${noun(wanted, "process", "processes")}`),
    config?.liveSince && h("span", { title: moment(Date.parse(config.liveSince) / 1000) },
      "rules from ", h("code", {}, config.rules), ` live since ${ago(Date.parse(config.liveSince) / 1000, now)}`),
    config?.version && h("span", {}, `version ${config.version}`),
  ].filter(Boolean));
  show(byId("since"), "Counted since ",
    h("time", { title: moment(live.since) }, ago(live.since, now)),
    ", when the oldest process started.");
  showNotices(live.readiness, config);
}

function showNotices({ ready, reasons, warnings }, config) {
  const notices = [];
  const others = reasons.filter((reason) => reason !== "draining");
  if (reasons.includes("draining")) {
    notices.push(notice("warn", "Draining", "Requests under way come to their end; clients are asked to use another connection."));
  }
  if (others.length && !ready) notices.push(notice("bad", "Not ready", list(others)));
  const since = (faults) => moment(Date.parse(faults.since) / 1000);
  if (config?.refused) {
    notices.push(notice("bad", "A change of the rules was refused",
      `What was last good stays live. Since ${since(config.refused)}:`, list(config.refused.problems)));
  }
  if (config?.outdated) {
    notices.push(notice("warn", "The rules may be out of date",
      `What is live stays. Since ${since(config.outdated)}:`, list(config.outdated.problems)));
  }
  if (config?.differingWorkers) {
    notices.push(notice("warn", "Processes differ",
      `Other rules are live in worker ${config.differingWorkers.join(", ")}.`));
  }
  const told = config?.refused || config?.outdated;
  const rest = warnings.filter((warning) => !(told && warning.includes("/config")));
  if (rest.length) notices.push(notice("warn", "Warnings", list(rest)));
  show(byId("notices"), notices);
}

const notice = (kind, title, ...told) => h("div", { class: "notice", "data-kind": kind },
  h("h2", {}, title), ...told.map((one) => (typeof one === "string" ? h("p", {}, one) : one)));
const list = (texts) => h("ul", {}, texts.map((text) => h("li", {}, text)));

// --- totals ---------------------------------------------------------------------------------------

/** A sum; unknown where there were requests and none of them told. */
const summed = (row, name, known) => (row.requests || row.mirrored) && !row[known] ? null : row[name] ?? 0;
const tokensIn = (row) => summed(row, "prompt_tokens", "with_prompt_tokens");
const tokensOut = (row) => summed(row, "completion_tokens", "with_completion_tokens");
const costOf = (row) => summed(row, "cost_usd", "with_cost");

/** What is missing in a row's cost, in words. */
function missing(row) {
  const answers = (n, what) => `${several(n, "answer")} without ${what}`;
  return [
    row.without_price ? answers(row.without_price, "a known price") : null,
    row.without_usage ? answers(row.without_usage, "token usage") : null,
  ].filter(Boolean);
}

export function showTotals(live) {
  const sum = live.totals;
  const [tokens, out, cost] = [tokensIn(sum), tokensOut(sum), costOf(sum)];
  const requests = sum.requests ?? 0;
  const slots = [...live.slots.values()];
  const times = (name) => {
    const buckets = together(slots, name);
    return [quantile(buckets, 0.5), quantile(buckets, 0.95)];
  };
  const [first50, first95] = times("time_to_first_token");
  const [over50, over95] = times("overhead");
  const errors = sum.errors ?? 0;
  show(byId("totals"),
    tile("Requests", number("requests", requests), [
      h("span", { "data-kind": errors ? "bad" : null }, number("errors", errors),
        ` ${noun(errors, "error")}`, requests ? ` · ${percent(errors / requests)}` : ""),
      sum.mirrored ? ` · ${exact(sum.mirrored)} mirrored` : "",
    ]),
    tile("Tokens", number("tokens", tokens === null && out === null ? null : tokens + out), [
      number("prompt_tokens", tokens), " in · ",
      number("completion_tokens", out), " out",
    ]),
    tile("Cost", h("span", { "data-total": "cost_usd", title: cost === null ? null : `$${cost}` },
      money(cost)),
    ["by list price", ...missing(sum)].join(" · ")),
    tile("Under way", number("requests_open", live.requests_open), [
      number("streams_open", live.streams_open),
      ` ${noun(live.streams_open, "stream")} open`,
    ]),
    tile("Time to first token", duration(first50), `p95 ${duration(first95)} · last 5 min`),
    tile("Overhead", duration(over50), `p95 ${duration(over95)} · last 5 min`));
}

const number = (name, value) => h("span", { "data-total": name, title: exact(value) }, count(value));
const tile = (title, value, below) => h("div", { class: "card tile" },
  h("h2", {}, title), h("p", { class: "value" }, value),
  h("p", { class: "below" }, ...[below].flat()));

// --- rules: configured against actual -------------------------------------------------------------

const ruleKey = (route, host, rule) => JSON.stringify([route, host, rule]);

export function showRules(live, config) {
  const told = new Map();
  for (const route of config?.routes ?? []) {
    for (const rule of route.rules ?? []) {
      told.set(ruleKey(route.route ?? route.host, route.host, rule.name), { route, rule });
    }
  }
  const rules = new Map();
  const of = (row) => {
    const key = ruleKey(row.route, row.host, row.rule);
    if (!rules.has(key)) {
      const known = told.get(key);
      rules.set(key, { ...row, known, named: !known || Boolean(known.route.route), targets: [], counts: new Map() });
    }
    return rules.get(key);
  };
  for (const target of live.targets.values()) of(target).targets.push(target);
  for (const row of live.rules.values()) of(row).counts.set(row.provider, row);

  // What a route refused stands with its rules.
  const all = [...Map.groupBy(rules.values(), (rule) => JSON.stringify([rule.route, rule.host])).values()].flat();
  const shown = all.filter((rule) => rule.named || rule.counts.size
    || rule.targets.some((target) => target.state !== "healthy"));
  const quiet = all.filter((rule) => !shown.includes(rule));
  // Routes before hosts that are only accounted for; the rest stays as the table has it.
  const routes = new Set(all.filter((rule) => rule.known?.route.route).map((rule) => rule.route));
  shown.sort((a, b) => Number(routes.has(b.route)) - Number(routes.has(a.route)));
  const blocks = [];
  let before = null; // several routes may have one name
  for (const rule of shown) {
    const place = JSON.stringify([rule.route, rule.host]);
    if (place !== before) blocks.push(routeTitle(rule));
    before = place;
    blocks.push(ruleBlock(rule));
  }
  if (quiet.length) {
    const hosts = [...new Set(quiet.map((rule) => rule.route))];
    blocks.push(h("details", { class: "quiet" },
      h("summary", {}, `${several(hosts.length, "host")} without a route and without requests`),
      h("p", {}, hosts.join(" · "))));
  }
  show(byId("rules"), blocks.length ? blocks : [h("p", { class: "dim" }, "No rules are live.")]);
}

function routeTitle(rule) {
  const route = rule.known?.route;
  const hosts = route ? [route.host, ...(route.also ?? [])] : [];
  return h("h3", { class: "route", title: hosts.join(", ") || null }, rule.route || "hosts without a route",
    route?.route && route.host !== route.route ? h("span", { class: "dim" }, ` ${route.host}`) : null);
}

function ruleBlock(rule) {
  const total = [...rule.counts].reduce((sum, [provider, row]) => sum + (provider ? row.requests : 0), 0);
  const chosen = [...rule.counts.values()].reduce((sum, row) => sum + (row.chosen ?? 0), 0);
  const rows = rule.targets.map((target) => targetRow(rule, target, chosen));
  for (const [provider, row] of rule.counts) {
    if (!provider && rule.rule) rows.push(h("li", { class: "other" }, `refused: ${exact(row.requests)}`));
    else if (provider && !rule.targets.some((target) => target.provider === provider)) {
      rows.push(h("li", { class: "other" }, `${provider}: ${exact(row.requests)}`));
    }
  }
  const refused = rule.rule ? 0 : rule.counts.get("")?.requests ?? 0;
  const matches = rule.known?.rule.matches?.join(" or ");
  return h("div", { class: "rule", "data-route": rule.route, "data-rule": rule.rule },
    h("p", { class: "name" },
      rule.rule ? h("b", {}, rule.rule) : h("b", { class: "dim" }, "no rule"),
      h("span", { class: "dim" }, rule.rule ? matches ?? "every request" : "refused: none matched, or the request can't be routed"),
      rule.known?.rule.observe ? h("span", { class: "badge" }, "observes") : null,
      rule.known?.rule.mirror ? h("span", { class: "badge" },
        `mirrors ${rule.known.rule.mirror.percent} % to ${rule.known.rule.mirror.target.provider}`) : null,
      h("span", { class: "sum num" }, exact(total + refused))),
    h("ul", {}, rows));
}

/** How many addresses a backend in the cluster has, and how they fare; null for what is none. */
function endpointsOf({ endpoints, ejected_endpoints: ejected }) {
  if (endpoints === null) return null;
  if (endpoints === 0) return "no endpoint";
  const all = several(endpoints, "endpoint");
  return ejected ? `${exact(ejected)} of ${all} ejected` : all;
}

function targetRow(rule, target, chosen) {
  const row = rule.counts.get(target.provider);
  const requests = row?.requests ?? 0;
  const actual = chosen ? (row?.chosen ?? 0) / chosen : null;
  const known = rule.known?.rule.targets?.find((one) => one.provider === target.provider);
  const model = known?.call?.model;
  const standby = target.priority > 0 && target.share === 0;
  const endpoints = endpointsOf(target);
  const meaning = target.endpoints === 0 ? "there is no one to call" : MEANINGS[target.state];
  return h("li", { class: "target", "data-provider": target.provider },
    h("span", { class: "health", "data-state": target.state, role: "img",
      "aria-label": [target.state, endpoints].filter(Boolean).join(", "),
      title: [`${target.state}: ${meaning}`, endpoints].filter(Boolean).join("; ") }, SIGNS[target.state]),
    h("span", { class: "to" }, target.provider,
      ...[model, endpoints].filter(Boolean).map((told) => h("span", { class: "dim" }, ` ${told}`))),
    h("span", { class: "bullet", "aria-hidden": "true" },
      h("span", { class: "actual", share: actual ?? 0, color: palette.of(target.provider) }),
      h("span", { class: "configured", share: target.share })),
    h("span", { class: "shares num" },
      h("span", { class: "configured-share", title: standby
        ? `Priority ${target.priority}: used when no target before it is left` : `Weight ${target.weight}` },
      standby ? "standby" : percent(target.share)),
      h("span", { class: "dim" }, " → "),
      h("b", { class: "actual-share", title: "of the requests, by the provider that was chosen first" },
        percent(actual))),
    h("span", { class: "requests num", title: "requests that ended here" }, exact(requests)));
}

// --- providers and models -------------------------------------------------------------------------

/** How many requests each provider has had. */
export function requestsByProvider(live) {
  const sums = new Map();
  for (const { provider, requests } of live.models.values()) {
    sums.set(provider, (sums.get(provider) ?? 0) + requests);
  }
  return sums;
}

const WORST = ["healthy", "probing", "ejected"];

export function showModels(live) {
  const states = new Map();
  for (const { provider, state } of live.targets.values()) {
    const known = states.get(provider) ?? "healthy";
    states.set(provider, WORST.indexOf(state) > WORST.indexOf(known) ? state : known);
  }
  const models = new Map();
  for (const row of live.models.values()) {
    if (!models.has(row.provider)) models.set(row.provider, []);
    models.get(row.provider).push(row);
  }
  const quiet = [...states].filter(([name, state]) => !models.has(name) && state === "healthy");
  const names = [...states.keys()].filter((name) => !quiet.some(([one]) => one === name));
  for (const name of models.keys()) if (!names.includes(name)) names.push(name);
  const body = names.flatMap((name) => [
    h("tr", { class: "provider", "data-provider": name },
      h("th", { scope: "rowgroup", colspan: 3 },
        h("i", { class: "swatch", color: palette.of(name) }), name || "refused"),
      h("td", { class: "num", colspan: 2 }, states.has(name) ? health(states.get(name)) : "")),
    ...(models.get(name) ?? []).sort((a, b) => b.requests - a.requests).map(modelRow),
  ]);
  const healthy = `${exact(quiet.length)} healthy ${noun(quiet.length, "provider")}`;
  const rest = quiet.length
    ? h("p", { class: "dim quiet" }, names.length
      ? `and ${healthy} without requests`
      : `${healthy}, without requests yet`) : null;
  show(byId("models"), names.length ? h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"),
      ...["Requests", "Tokens in", "Tokens out", "Cost"].map((title) => h("th", { scope: "col", class: "num" }, title)))),
    h("tbody", {}, body)) : null, rest);
}

function modelRow(row) {
  const more = [];
  if (row.errors) more.push(`${exact(row.errors)} failed`);
  if (row.mirrored) more.push(`${exact(row.mirrored)} mirrored`);
  return h("tr", { class: "model", "data-provider": row.provider, "data-model": row.model },
    h("td", {}, row.model || h("span", { class: "dim" }, "no model"),
      more.length ? h("span", { class: "dim" }, ` ${more.join(", ")}`) : null),
    h("td", { class: "num", "data-is": "requests", "data-unit": noun(row.requests, "request") }, exact(row.requests)),
    h("td", { class: "num", "data-is": "prompt_tokens", "data-unit": "in", title: exact(tokensIn(row)) }, count(tokensIn(row))),
    h("td", { class: "num", "data-is": "completion_tokens", "data-unit": "out", title: exact(tokensOut(row)) },
      count(tokensOut(row))),
    h("td", { class: "num", "data-is": "cost_usd", "data-unit": "", title: missing(row).join(", ") || null },
    money(costOf(row))));
}
