"""Labels of a bounded number, whatever clients and providers send."""

from collections.abc import Collection

from pointsman.telemetry.conventions import status_label
from pointsman.telemetry.exchange import Attempt
from pointsman.telemetry.verdicts import FIRST_ERROR

NONE = "-"  # no name that a resource can have
OTHER = "other"

_LONGEST = 128


class Names:
    """Names that become labels: those that the rules know, and so many others.

    Whoever comes past the limit shares one label.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: frozenset[str] = frozenset()
        self._admitted: set[str] = set()

    def know(self, names: Collection[str]) -> None:
        """Take these in the place of those that were known: they do not count."""
        self._known = frozenset(filter(_is_fit, names))

    def label(self, name: str | None, *, admit: bool) -> str:
        """Return the label of a name; a new one gets its own only if it is to be admitted."""
        if not name:
            return ""
        if name in self._known or name in self._admitted:
            return name
        if admit and len(self._admitted) < self._limit and _is_fit(name):
            self._admitted.add(name)
            return name
        return OTHER


def _is_fit(name: str) -> bool:
    """Tell whether a name is short, and made of what can be shown: no lone surrogate is."""
    return len(name) <= _LONGEST and name.isprintable()


def clean(name: str | None) -> str:
    """Return the name of a resource as a label."""
    if not name:
        return NONE
    return "".join(c if c.isprintable() else "\ufffd" for c in name[:_LONGEST])


# The words of an attempt's `error`, beside those that say how a connection failed.
_OUTCOMES = {
    "client disconnected": "client_disconnected",
    "connect_timeout": "connect_failure",
    "drain_timeout": "stopped",
    "error in the answer": "stream_error",
    "idle_timeout": "stalled",
    "internal_error": "internal_error",
    "no chunk in time": "timeout",
    "no first byte in time": "timeout",
    "no key": "no_key",
    "stale connection": "stale_connection",
    "stopped": "stopped",
    "upstream_protocol_error": "protocol_error",
    "upstream_reset": "connection_closed",
    "upstream_timeout": "timeout",
    "usage parameter refused": "usage_refused",
}


def outcome(attempt: Attempt) -> str:
    """Return what became of an attempt, in one of a bounded number of words.

    `ok`, a status from 400 on, or why it failed.
    """
    error, status = attempt.error, attempt.status
    if error is not None and (found := _OUTCOMES.get(error)):
        return found
    if status is not None and status >= FIRST_ERROR:
        return status_label(status)
    if error is None:
        return "ok" if status is not None else NONE
    if error.startswith("stream "):
        return "stream_error"
    return "connect_failure" if status is None else "broken_off"
