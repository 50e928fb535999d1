"""How this process ends: it takes in nothing new and lets what is under way come to its end.

SIGTERM and a POST to the admin endpoint's `/drain` begin it:
- The listeners are closed; the connections that stand live on. On them requests to LLM hosts are
  still served, and their answers ask the client to come again by another connection.
- The process ends when no LLM request is under way and no connection moves bytes, at the latest
  after `llm_drain_timeout`. What is cut then is logged as cut.
- A second SIGTERM ends it at once.

A soft drain, for the time in which the application beside it is still finishing, takes in new
connections as before. It has no end of its own: SIGTERM follows.
"""

import asyncio
import logging
import signal
import time
from contextlib import suppress

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.tools.dump import DumpMaster

from pointsman.errors import DrainTimeoutError, StoppedError
from pointsman.proxy.router import Router

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.05
# A connection on which nothing has moved for so long is idle: whatever it waits for, its exit does
# not. It is also the time that a client has to use a connection that it has only just opened.
_IDLE_AFTER = 2.0


class Drain:
    """The end of one process.

    Attributes:
        timeout: the longest that a drain takes, in seconds.
    """

    def __init__(self, router: Router) -> None:
        self.timeout = 0.0
        self._router = router
        self._task: asyncio.Task[None] | None = None
        self._terminated = False
        self._expired = False
        # What was last known of a connection's unsent bytes, and since when, by its id.
        self._unsent: dict[object, tuple[int, float]] = {}

    def listen_to_signals(self) -> None:
        """Take over SIGTERM, where no one looks at a screen; a UI ends at once, as ever."""
        if isinstance(ctx.master, DumpMaster):
            # Not everywhere, and only in the main thread.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGTERM, self._terminate)

    def _terminate(self) -> None:
        if self._terminated:
            ctx.master.shutdown()
            return
        self._terminated = True
        self.begin()

    def soften(self) -> None:
        """Ask clients to come by other connections, and go on taking them in."""
        if not self._router.draining:
            logger.info("draining softly: new connections are still accepted")
        self._router.draining = True

    def begin(self) -> None:
        """Drain, then end the process; a second call changes nothing."""
        self._router.draining = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def why(self) -> StoppedError:
        """Return what is said of the requests that are cut now."""
        if self._expired:
            return DrainTimeoutError("The proxy has stopped, after waiting for this request.")
        return StoppedError("The proxy has stopped.")

    async def _run(self) -> None:
        proxyserver: Proxyserver = ctx.master.addons.get("proxyserver")
        logger.info("draining; requests under way: %d", self._router.under_way)
        until = time.monotonic() + self.timeout
        try:
            await proxyserver.servers.update(())
            await asyncio.sleep(_LOOK_EVERY)
            while self._router.under_way or self._any_moves(proxyserver):
                if time.monotonic() >= until:
                    self._expire()
                    break
                await asyncio.sleep(_LOOK_EVERY)
        finally:
            ctx.master.shutdown()

    def _expire(self) -> None:
        self._expired = True
        if cut := self._router.under_way:
            logger.warning(
                "the drain has timed out after %g s; requests cut: %d; raise llm_drain_timeout,"
                " and with it terminationGracePeriodSeconds, if they should end",
                self.timeout,
                cut,
            )

    def _any_moves(self, proxyserver: Proxyserver) -> bool:
        return any(self._moves(*each) for each in proxyserver.connections.items())

    def _moves(self, key: object, handler: ProxyConnectionHandler) -> bool:
        """Tell whether bytes have come or gone lately, or wait for a client that takes them."""
        if time.time() - handler.timeout_watchdog.last_activity < _IDLE_AFTER:
            return True
        unsent = sum(
            io.writer.transport.get_write_buffer_size()
            for io in handler.transports.values()
            if isinstance(io.writer, asyncio.StreamWriter)
        )
        now = time.monotonic()
        known, since = self._unsent.get(key, (0, now))
        if unsent != known:
            since = now
        self._unsent[key] = unsent, since
        return unsent > 0 and now - since < _IDLE_AFTER
