"""The live part of the page as server-sent events: one computation for all who look.

- Nothing is computed while no one looks.
- Who comes gets an event `state`, the whole snapshot; then, each second in which something has
  changed, a `change` to it (`telemetry.changes`), or another `state` where a change can't tell it.
- Where nothing has changed there is a `beat` now and then, by which the page knows that the line
  is alive; and, with `failing`, that what it shows can't be brought up to date.
- There is a bound on viewers, and on what waits for each: who does not read is cut off.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from pointsman.admin.source import Source
from pointsman.telemetry.changes import changes, combine, continued

logger = logging.getLogger(__name__)

type Json = dict[str, Any]

MOST_VIEWERS = 20
_WAITING = 8  # events for one viewer
_EVERY_SECONDS = 1.0
_BEAT_SECONDS = 5.0
# How soon a browser comes again when the line is cut.
_RETRY = b"retry: 2000\n\n"


class Viewer:
    """One who looks. `cut` closes the line."""

    def __init__(self, cut: Callable[[], None]) -> None:
        self._cut = cut
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield what is to be sent, until the end."""
        yield _RETRY
        while (frame := await self._waiting.get()) is not None:
            yield frame

    def put(self, frame: bytes) -> None:
        """Send it when the ones before have gone; cut the line where too many wait."""
        if self._waiting.qsize() >= _WAITING:
            self._cut()
        else:
            self._waiting.put_nowait(frame)

    def end(self) -> None:
        """End the line when all has been sent."""
        self._waiting.put_nowait(None)


class Feed:
    """Looks at a source for all viewers."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._viewers: set[Viewer] = set()
        self._state: Json | None = None  # what all viewers have
        self._looking: asyncio.Task[None] | None = None
        self._failing = False

    @property
    def viewers(self) -> int:
        """How many look."""
        return len(self._viewers)

    def join(self, cut: Callable[[], None]) -> Viewer | None:
        """Return a new viewer, whom `leave` has to end; None: there are too many."""
        if len(self._viewers) >= MOST_VIEWERS:
            return None
        viewer = Viewer(cut)
        self._viewers.add(viewer)
        if self._state is not None:
            viewer.put(_frame("state", self._state))
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """End a viewer; a second call changes nothing."""
        if viewer in self._viewers:
            self._viewers.discard(viewer)
            viewer.end()
        if not self._viewers and self._looking is not None:
            self._looking.cancel()
            self._looking = self._state = None

    def stop(self) -> None:
        """End all."""
        for viewer in tuple(self._viewers):
            self.leave(viewer)

    async def _look(self) -> None:
        clock = asyncio.get_running_loop().time
        sent = clock()
        while True:
            if frame := await self._next_or_failing():
                self._send(frame)
                sent = clock()
            elif clock() - sent >= _BEAT_SECONDS:
                self._send(self._beat())
                sent = clock()
            await asyncio.sleep(_EVERY_SECONDS)

    def _beat(self) -> bytes:
        return _frame("beat", {"failing": True} if self._failing else {})

    def _send(self, frame: bytes) -> None:
        for viewer in tuple(self._viewers):
            viewer.put(frame)

    async def _next_or_failing(self) -> bytes | None:
        """Look once, and look on whatever the source does wrong: return the event to send."""
        try:
            frame = await self._next()
        except Exception as error:  # noqa: BLE001 (also what can't be encoded)
            if self._failing:
                return None
            self._failing = True
            # Without its message, which may quote anything.
            logger.error("the page is not brought up to date: %s", type(error).__name__)  # noqa: TRY400
            return self._beat()
        self._failing = False
        return frame

    async def _next(self) -> bytes | None:
        """Return the event that tells what is new, None for nothing.

        What viewers have changes only with an event that could be made.
        """
        known = self._state
        found = await self._find(known and known["cursor"])
        if known is None:
            frame: bytes | None = _frame("state", found)
            self._state = found
            return frame
        found = continued(known, found)
        changed, state = changes(known, found), combine(known, found)
        if changed is None:
            frame = _frame("state", state)
        else:
            frame = _frame("change", changed) if changed else None
        self._state = state
        return frame

    async def _find(self, after: dict[str, int] | None) -> Json:
        live, readiness = await asyncio.gather(self._source.live(after), self._source.readiness())
        told = {
            "ready": readiness.ready,
            "reasons": list(readiness.reasons),
            "warnings": list(readiness.warnings),
        }
        return {**live, "readiness": told}


def _frame(event: str, data: Json) -> bytes:
    # JSON has its line ends escaped, so it is one line.
    return b"event: %s\ndata: %s\n\n" % (event.encode(), msgspec.json.encode(data))
