"""What the admin endpoint shows, and who tells it: one proxy, or the supervisor of several."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether traffic can be served.

    `reasons` say why not, each a phrase without keys or paths; `warnings` what is amiss though it
    can. `under_way` is how many LLM requests are being served now.
    """

    reasons: tuple[str, ...] = ()
    under_way: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Tell whether there is nothing against it."""
        return not self.reasons


class Source(Protocol):
    """Where the admin endpoint gets what it shows."""

    async def readiness(self, *, keys: bool = True) -> Readiness:
        """Tell whether the listener is up, the rules are loaded, the CA and the keys are there.

        Without `keys`, a missing one is a warning and no reason.
        """

    async def config(self) -> dict[str, Any]:
        """Return the live table with masked keys, and the errors of a refused reload."""

    async def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format 0.0.4."""

    async def live(self, after: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return the snapshot that the page shows (`telemetry.live`).

        With the `cursor` of an earlier one, only the exchanges that have ended since are in it.
        """

    async def drain(self, *, soft: bool = False) -> None:
        """Begin to drain: accept nothing new, let what is under way end, then exit.

        `soft`: go on accepting, but be not ready and ask clients to come by new connections.
        """
