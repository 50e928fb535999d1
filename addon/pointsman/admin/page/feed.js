// The line to the proxy. It says when it is cut, and comes again by itself.

// The proxy says something every five seconds at least.
const SILENT_MS = 16_000;
const AGAIN_MS = 3_000;

/** Call `on.state`, `on.change` and `on.connection` ("live", "lost", "full", "failing") from now on. */
export function listen(on) {
  let source = null;
  let heard = performance.now();
  let again = 0; // the timer of the next try

  const take = (what) => (event) => {
    heard = performance.now();
    const told = JSON.parse(event.data);
    on.connection(told.failing ? "failing" : "live");
    if (what) on[what](told);
  };

  const open = () => {
    source?.close();
    clearTimeout(again);
    heard = performance.now();
    source = new EventSource("api/events");
    let whole = false; // a change without its state, as after a cut, means nothing
    source.addEventListener("state", (event) => {
      whole = true;
      take("state")(event);
    });
    source.addEventListener("change", (event) => whole && take("change")(event));
    source.addEventListener("beat", take(null));
    const mine = source;
    source.addEventListener("error", async () => {
      if (mine !== source) return;
      whole = false;
      on.connection("lost");
      // A refusal (too many viewers, a proxy that starts) ends it for good.
      if (mine.readyState !== EventSource.CLOSED) return;
      again = setTimeout(open, AGAIN_MS);
      const full = await refused();
      if (full && mine === source) on.connection("full");
    });
  };
  const close = () => {
    clearTimeout(again);
    source?.close();
    source = null;
  };

  setInterval(() => {
    if (source && performance.now() - heard > SILENT_MS && source.readyState === EventSource.OPEN) {
      on.connection("lost");
      open();
    }
  }, 1000);
  // A browser has six lines to one proxy: one that no one looks at would be missing elsewhere.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close();
    else if (!source) open();
  });
  if (!document.hidden) open();
}

/** Whether there are too many viewers, which an EventSource does not tell. */
async function refused() {
  const stop = new AbortController();
  try {
    const answer = await fetch("api/events", { cache: "no-store", signal: stop.signal });
    return answer.status === 503;
  } catch {
    return false;
  } finally {
    stop.abort(); // a place that has become free is not this one's
  }
}
