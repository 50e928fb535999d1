import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.protocols.sse import Event, Parser


def parse(stream: bytes, *, step: int | None = None, max_event: int = 1000) -> list[Event]:
    """Parse the stream in steps; what is left over becomes a last event without data."""
    parser, events, step = Parser(max_event), [], step or len(stream) or 1
    for start in range(0, len(stream), step):
        events += parser.feed(stream[start : start + step])
    events += parser.close()
    return [*events, Event(parser.pending)] if parser.pending else events


def told(events: list[Event]) -> list[tuple[str, bytes]]:
    """Return names and data; events without data that follow each other count as one."""
    named = [(event.event, event.data) for event in events]
    return [one for n, one in enumerate(named) if one != ("", b"") or named[n - 1 : n] != [one]]


CASES = [
    (b"data: a\n\n", [("", b"a")]),
    (b"data:a\n\n", [("", b"a")]),
    (b"data:  a\n\n", [("", b" a")]),
    (b"data\n\n", [("", b"")]),
    (b"event: e\ndata: a\n\n", [("e", b"a")]),
    (b"event:e\ndata: a\ndata: b\ndata:\n\n", [("e", b"a\nb\n")]),
    (b"event: e\n\ndata: a\n\n", [("", b""), ("", b"a")]),
    (b": c\n\ndata: a\n\n", [("", b""), ("", b"a")]),
    (b": c\nid: 1\nretry: 5\nother\ndata: a\n\n", [("", b"a")]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
    (b"data: a\r\rdata: b\r\r", [("", b"a"), ("", b"b")]),
    (b"data: a\r\n\ndata: b\n\r\n", [("", b"a"), ("", b"b")]),
    (b"\n\ndata: a\n\n\n", [("", b""), ("", b"a"), ("", b"")]),
    (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [("", b"a"), ("", b"")]),
    (b"\xef\xbb\xbfdata: a", [("", b"a")]),
    (b"data: a\n\ndata: b", [("", b"a"), ("", b"b")]),
    (b"data: a\n\ndata: b\r", [("", b"a"), ("", b"b")]),
    (b"data: a\n\n: c", [("", b"a"), ("", b"")]),
    (b"event: \xff\ndata: a\n\n", [("\N{REPLACEMENT CHARACTER}", b"a")]),
    (b"", []),
]


@pytest.mark.parametrize(("stream", "expected"), CASES)
@pytest.mark.parametrize("step", [None, 1, 2, 3])
def test_events_follow_the_specification_whichever_way_the_stream_is_cut(
    stream: bytes, expected: list[tuple[str, bytes]], step: int | None
) -> None:
    events = parse(stream, step=step)
    assert told(events) == expected
    assert b"".join(event.raw for event in events) == stream


def test_an_event_is_given_out_with_its_blank_line() -> None:
    parser = Parser()
    assert parser.feed(b"data: a\n") == []
    assert parser.pending == b"data: a\n"
    assert parser.feed(b"\ndata") == [Event(b"data: a\n\n", "", b"a")]
    assert parser.pending == b"data"


def test_a_comment_is_given_out_without_waiting_for_the_next_event() -> None:
    assert Parser().feed(b": keep-alive\n\n") == [Event(b": keep-alive\n\n")]


@pytest.mark.parametrize("blank", [b"\n", b"\r", b"\r\n"])
def test_a_run_of_blank_lines_is_one_event_whatever_its_length(blank: bytes) -> None:
    lines = blank * 3_000_000
    events = parse(lines)
    assert b"".join(event.raw for event in events) == lines
    assert len(events) <= 2  # a CR at the end is held back
    parser = Parser()
    events = parser.feed(b"data: a" + lines + b": c\n\ndata: b\n" + lines)
    assert [event.data for event in events if event.data] == [b"a", b"b"]
    assert len(events) <= 5
    assert events[0].raw == b"data: a" + blank * 2


@pytest.mark.parametrize("step", [None, 1, 7])
def test_an_event_past_the_limit_ends_the_parsing_and_loses_nothing(step: int | None) -> None:
    stream = b"data: a\n\ndata: " + b"x" * 50 + b"\n\ndata: b\r\n\r\n"
    events = parse(stream, step=step, max_event=20)
    assert [event.data for event in events if event.data] == [b"a"]
    assert b"".join(event.raw for event in events) == stream


def test_memory_stays_bounded_after_an_overflow() -> None:
    parser = Parser(max_event=10)
    for _ in range(100):
        parser.feed(b"data: " + b"x" * 1000)
    assert parser.overflowed
    assert parser.pending == b""


pieces = st.sampled_from([b"data:", b"event:", b":", b" ", b"a", b"\r", b"\n", b"\xef\xbb\xbf"])


@given(st.lists(pieces | st.binary(max_size=4)).map(b"".join), st.data())
def test_any_cut_gives_the_events_of_the_whole(stream: bytes, data: st.DataObject) -> None:
    whole = parse(stream, max_event=30)
    assert b"".join(event.raw for event in whole) == stream
    cut = parse(stream, step=data.draw(st.integers(1, 9)), max_event=30)
    assert b"".join(event.raw for event in cut) == stream
    assert [e for e in cut if e.data] == [e for e in whole if e.data]
