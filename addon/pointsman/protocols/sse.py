r"""Server-sent events, parsed by the WHATWG rules with every byte kept.

Bytes are added to one buffer, and line ends are looked for in the new chunk only, so the work is
linear however the stream is cut. An event is given out at its blank line. Rules:

- A blank line that ends no data (after comments, or a second one) dispatches nothing. What such
  lines end is given out without data, all that follow each other in one chunk as one event: a
  keep-alive comment is passed on at once, and a run of a million blank lines costs next to nothing.
- A CR at the end of a chunk is held back until the next byte tells whether an LF belongs to it.
  So the events with data are the same whichever way the stream is cut.
- The `raw` of all events, then `pending`, are the input, byte for byte; after an overflow too.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import re
from dataclasses import dataclass

MAX_EVENT = 4 * 1024 * 1024  # bytes; a chat event has some hundreds

_LINE_ENDS = re.compile(rb"[\r\n]++")  # a line's end, and the blank lines after it
_BOM = b"\xef\xbb\xbf"
_COLON = ord(":")  # begins a comment


@dataclass(frozen=True, slots=True)
class Event:
    r"""One event.

    `raw` is what was received, the blank line included; `event` is "" when unset; `data` is the
    data lines joined by "\n".
    """

    raw: bytes
    event: str = ""
    data: bytes = b""


class Parser:
    """Takes a stream in any cuts and gives out its events.

    An event that grows past `max_event` bytes ends the parsing: `overflowed` becomes true, and from
    there each feed comes back as one event without data.
    """

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self.overflowed = False
        self._max_event = max_event
        self._buffer = bytearray()  # the unfinished event …
        self._line = 0  # … and where its unfinished line starts
        self._held_cr = b""
        self._at_start = True
        self._event = b""
        self._data: list[bytes] = []

    @property
    def pending(self) -> bytes:
        """The bytes of the unfinished event."""
        return bytes(self._buffer) + self._held_cr

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that the chunk completes."""
        if self.overflowed:
            return [Event(chunk)] if chunk else []
        if not chunk:
            return []
        if self._held_cr:
            chunk, self._held_cr = self._held_cr + chunk, b""
        if chunk.endswith(b"\r"):
            chunk, self._held_cr = chunk[:-1], b"\r"
        return self._parse(chunk)

    def close(self) -> list[Event]:
        """Return what the end of the stream completes.

        The specification drops an event without its blank line; real providers leave that line out,
        so here the event counts if it has data. Anything else stays in `pending`.
        """
        held, self._held_cr = self._held_cr, b""
        events = self._parse(held)
        self._field(self._text(self._line, len(self._buffer)))
        if self._data:
            events.append(self._take(0, len(self._buffer)))
            self._buffer.clear()
        return events

    def _parse(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        buffer, offset, line = self._buffer, len(self._buffer), self._line
        buffer += chunk
        given = start = 0  # what is given out ends, and the unfinished event starts, here
        for found in _LINE_ENDS.finditer(chunk):
            end, last = offset + found.start(), offset + found.end()
            text, line = self._text(line, end), last
            if text:
                if text[0] != _COLON:
                    self._field(text)
                end += 2 if last - end > 1 and buffer.startswith(b"\r\n", end) else 1
                if end == last:
                    continue  # no blank line yet
            end += 2 if buffer.startswith(b"\r\n", end) else 1
            if end - start > self._max_event:
                break
            if self._data:
                if given < start:
                    events.append(Event(bytes(buffer[given:start])))
                events.append(self._take(start, end))
                given = end
            self._event = b""
            start = last
        if given < start:
            events.append(Event(bytes(buffer[given:start])))
        del buffer[:start]
        self._line = line - start
        if len(buffer) + len(self._held_cr) > self._max_event:
            self.overflowed = True
            events.append(Event(self.pending))
            self._buffer, self._held_cr, self._data = bytearray(), b"", []
        return events

    def _text(self, start: int, end: int) -> bytes:
        line = bytes(self._buffer[start:end])
        if self._at_start:
            self._at_start, line = False, line.removeprefix(_BOM)
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")  # a comment has the empty name
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._event = value.removeprefix(b" ")

    def _take(self, start: int, end: int) -> Event:
        raw = bytes(self._buffer[start:end])
        name = self._event.decode(errors="replace") if self._data else ""
        event = Event(raw, name, b"\n".join(self._data))
        self._event, self._data = b"", []
        return event
