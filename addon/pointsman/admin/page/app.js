// The page: what the proxy tells, put in its places.

import { Charts, palette } from "./charts.js";
import { h } from "./dom.js";
import { Exchanges } from "./exchanges.js";
import { listen } from "./feed.js";
import { requestsByProvider, showConnection, showModels, showProxy, showRules, showTotals } from "./panels.js";
import { State } from "./state.js";

const state = new State();
const charts = new Charts();
const exchanges = new Exchanges();
let config = null;
let asked = ""; // the versions that `config` was asked for

exchanges.empty = () => [
  h("h3", {}, "No LLM request has come through yet"),
  h("p", {}, "Send one, and it appears here within a second:"),
  h("pre", {}, example(config?.options)),
  h("p", { class: "dim" }, "A client has to trust the proxy's certificate authority, which is in ",
    h("code", {}, `${config?.options?.confdir ?? "~/.mitmproxy"}/mitmproxy-ca-cert.pem`), "."),
];

function example(options) {
  const transparent = options?.mode?.some((mode) => mode.startsWith("transparent"));
  if (transparent) return "curl https://api.openai.com/v1/models   # in the application's container";
  const port = options?.listen_port || 8080;
  const confdir = options?.confdir ?? "~/.mitmproxy";
  return `export HTTPS_PROXY=http://127.0.0.1:${port}\n`
    + `export SSL_CERT_FILE=${confdir}/mitmproxy-ca-cert.pem\n`
    + "python your_application.py";
}

function showAll() {
  const { live } = state;
  palette.rank(requestsByProvider(live));
  showProxy(live, config, state.now());
  showTotals(live);
  showRules(live, config);
  showModels(live);
  charts.draw(state);
}

/** Ask for the live rules when they are others than those we have. */
async function learnRules() {
  const versions = JSON.stringify(state.live.config_versions);
  if (versions === asked) return;
  asked = versions;
  try {
    const answer = await fetch("config", { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    config = await answer.json();
  } catch {
    asked = ""; // once more with the next event
    return;
  }
  showAll();
  exchanges.filter();
}

listen({
  connection: showConnection,
  state(snapshot) {
    state.replace(snapshot);
    exchanges.now = state.now();
    exchanges.replace(snapshot.exchanges);
    showAll();
    learnRules();
  },
  change(changed) {
    state.change(changed);
    exchanges.now = state.now();
    if (changed.exchanges) exchanges.add(changed.exchanges);
    showAll();
    learnRules();
  },
});

// Time goes on where nothing else does.
setInterval(() => {
  if (!state.live || document.hidden || document.body.classList.contains("stale")) return;
  exchanges.tick(state.now());
  showProxy(state.live, config, state.now());
  charts.draw(state);
}, 1000);
