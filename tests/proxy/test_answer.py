import gzip
import json
import zlib
from collections.abc import Callable
from itertools import pairwise

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pointsman.protocols import Api, Usage, detect
from pointsman.protocols.openai_chat import ChatReader
from pointsman.proxy.answer import Answer

CHAT = detect("POST", "/v1/chat/completions")
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
COUNTS = Usage(10, 5, 15)
JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"

BODY = json.dumps({"model": "m", "choices": [{"message": {"content": "é"}}], "usage": USAGE})


def event(chunk: object) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


TEXT = event({"model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]})
EXTRA = event({"model": "m", "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
STREAM = TEXT + EXTRA + DONE

encodings = pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("", bytes),
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("br", brotli.compress),
        ("zstd", zstandard.ZstdCompressor().compress),
    ],
)


def answer(
    api: Api | None = CHAT, *, content_type: str = JSON, encoding: str = "", filters: bool = False
) -> Answer:
    return Answer(api, content_type=content_type, content_encoding=encoding, filter_usage=filters)


def passed(reading: Answer, body: bytes, step: int = 7) -> bytes:
    """Feed the body in chunks, each of which must come out as it is."""
    for start in range(0, len(body), step):
        chunk = body[start : start + step]
        assert reading.feed(chunk) is chunk
    assert reading.close() == b""
    return body


def usage(reading: Answer) -> Usage | None:
    return reading.reader.usage if reading.reader else None


@encodings
@given(cuts=st.lists(st.integers(0, 300), max_size=8), stream=st.booleans())
def test_every_chunk_passes_as_it_came_and_the_usage_is_read(
    encoding: str, encode: Callable[[bytes], bytes], cuts: list[int], stream: bool
) -> None:
    body = encode(STREAM if stream else BODY.encode())
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    reading = answer(content_type=SSE if stream else JSON, encoding=encoding)
    for start, end in pairwise(edges):
        chunk = body[start:end]
        assert reading.feed(chunk) is chunk
    assert reading.close() == b""
    assert usage(reading) == COUNTS
    assert reading.reader is not None
    assert reading.reader.model == "m"
    assert not reading.filters


@encodings
@given(
    raw=st.binary(max_size=200), step=st.integers(1, 50), content_type=st.sampled_from([JSON, SSE])
)
def test_bytes_that_are_nothing_known_pass_too(
    encoding: str, encode: Callable[[bytes], bytes], raw: bytes, step: int, content_type: str
) -> None:
    for body in (raw, encode(raw)):
        passed(answer(content_type=content_type, encoding=encoding), body, step)


@pytest.mark.parametrize("encoding", ["compress", "gzip, lzma", "aws-chunked"])
@pytest.mark.parametrize("filters", [True, False])
def test_an_answer_in_an_unknown_coding_passes_unread(encoding: str, filters: bool) -> None:
    reading = answer(content_type=SSE, encoding=encoding, filters=filters)
    assert not reading.filters
    passed(reading, STREAM)
    assert reading.reader is None


def test_an_answer_of_an_unknown_api_passes_unread() -> None:
    reading = answer(None, content_type=SSE, filters=True)
    passed(reading, STREAM)
    assert (reading.reader, reading.filters) == (None, False)


@pytest.mark.parametrize("content_type", [SSE, "text/event-stream", "Text/Event-Stream;x"])
def test_an_event_stream_is_known_by_its_type(content_type: str) -> None:
    assert answer(content_type=content_type).event_stream


@pytest.mark.parametrize("content_type", ["", JSON, "text/event-streams", "text/plain"])
def test_anything_else_is_one_body(content_type: str) -> None:
    assert not answer(content_type=content_type, filters=True).event_stream


@pytest.mark.parametrize(
    "body",
    [
        b"this is no gzip" * 5,
        gzip.compress(BODY.encode()) + b"garbage",
    ],
)
def test_a_compressed_answer_that_is_corrupt_passes_and_is_unknown(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reading = answer(encoding="gzip")
    passed(reading, body)
    assert usage(reading) is None
    assert not caplog.records


def test_a_compressed_answer_that_lacks_its_end_still_counts() -> None:
    reading = answer(encoding="gzip")
    passed(reading, gzip.compress(BODY.encode())[:-4])
    assert usage(reading) is not None


def test_an_answer_that_unfolds_without_end_passes_and_is_unknown() -> None:
    bomb = gzip.compress(bytes(20 << 20))
    reading = answer(encoding="gzip")
    passed(reading, bomb, len(bomb))
    assert reading.reader is None


def test_a_bug_in_reading_costs_the_count_and_not_the_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: ChatReader, chunk: bytes) -> bytes:
        raise KeyError("a bug")

    monkeypatch.setattr(ChatReader, "feed", broken)
    reading = answer(content_type=SSE)
    passed(reading, STREAM)
    assert reading.reader is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]


class TestFilter:
    @given(st.integers(1, len(STREAM)))
    def test_the_usage_that_we_asked_for_is_read_and_taken_out(self, step: int) -> None:
        reading = answer(content_type=SSE, filters=True)
        assert reading.filters
        out = b"".join(
            reading.feed(STREAM[start : start + step]) for start in range(0, len(STREAM), step)
        )
        assert out + reading.close() == TEXT + DONE
        assert usage(reading) == COUNTS

    def test_an_unfinished_event_comes_out_at_the_end(self) -> None:
        reading = answer(content_type=SSE, filters=True)
        assert reading.feed(TEXT + b"data: {") == TEXT
        assert reading.close() == b"data: {"

    def test_a_body_that_is_no_stream_is_not_filtered(self) -> None:
        reading = answer(content_type=JSON, filters=True)
        assert not reading.filters
        passed(reading, BODY.encode())
        assert usage(reading) == COUNTS

    def test_a_compressed_stream_is_read_and_not_filtered(self) -> None:
        reading = answer(content_type=SSE, encoding="gzip", filters=True)
        assert not reading.filters
        passed(reading, gzip.compress(STREAM))
        assert usage(reading) == COUNTS
