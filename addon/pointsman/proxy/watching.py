"""What the page of one instance is made of: the router feeds it while an endpoint can show it."""

import logging
from typing import Any

from pointsman.proxy.measuring import read
from pointsman.proxy.router import Router
from pointsman.telemetry.live import Cursor, Live

logger = logging.getLogger(__name__)


class Watching:
    """Collects exchanges from `begin` on; before it, nothing is kept."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._live: Live | None = None

    def begin(self) -> None:
        """Collect, and have the decisions kept; a second call changes nothing."""
        if self._live is None:
            self._live = Live()
            self._router.sinks.put("live", self._live.record)
            self._router.keep_decisions = True
            self.rules_live()

    def end(self) -> None:
        """Collect no more."""
        self._router.sinks.remove("live")

    def rules_live(self) -> None:
        """Tell of the router's table, which is new."""
        if self._live is None:
            return
        try:
            self._live.rules_live(read(self._router).targets)
        except Exception:
            logger.exception("the page does not know of the rules")

    def snapshot(self, after: Cursor | None = None) -> dict[str, Any]:
        """Return `Live.snapshot`."""
        live = self._live or Live()
        return live.snapshot(after, read(self._router))
