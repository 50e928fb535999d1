// The line to the proxy. It says when it is cut, and comes again by itself.

// The proxy says something every five seconds at least.
const SILENT_MS = 16_000;
const AGAIN_MS = 3_000;

/** Call `on.state`, `on.change` and `on.connection` ("live", "lost") from now on. */
export function listen(on) {
  let source = null;
  let heard = performance.now();

  const take = (what) => (event) => {
    heard = performance.now();
    on.connection("live");
    if (what) on[what](JSON.parse(event.data));
  };

  const open = () => {
    source?.close();
    heard = performance.now();
    source = new EventSource("api/events");
    let whole = false; // a change without its state, as after a cut, means nothing
    source.addEventListener("state", (event) => {
      whole = true;
      take("state")(event);
    });
    source.addEventListener("change", (event) => whole && take("change")(event));
    source.addEventListener("beat", take(null));
    source.addEventListener("error", () => {
      whole = false;
      on.connection("lost");
      // A refusal (too many viewers, a proxy that starts) ends it for good.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, AGAIN_MS);
    });
  };

  setInterval(() => {
    if (performance.now() - heard > SILENT_MS && source.readyState === EventSource.OPEN) {
      on.connection("lost");
      open();
    }
  }, 1000);
  open();
}
