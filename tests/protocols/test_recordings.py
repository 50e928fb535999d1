"""Each recorded exchange gives the expected facts, whichever way its response is cut.

`golden_usage.json` was read out of the recordings with the standard library, not with this package.
"""

import base64
import json
import random
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pointsman.protocols import Reader, detect

HERE = Path(__file__).parent
RECORDINGS = HERE.parents[2] / "shared" / "recordings"
GOLDEN: dict[str, Any] = json.loads((HERE / "golden_usage.json").read_text())

pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not here")


def load(name: str) -> tuple[dict[str, Any], bytes]:
    recording = json.loads((RECORDINGS / name).read_text())
    response = recording["response"]
    body = response["text"].encode() if "text" in response else base64.b64decode(response["base64"])
    return recording, body


def reader_for(recording: dict[str, Any], *, filter_usage: bool = False) -> Reader:
    api = detect(recording["method"], recording["path"])
    assert api is not None
    event_stream = recording["content_type"].startswith("text/event-stream")
    return api.reader(event_stream=event_stream, filter_usage=filter_usage)


def cuts(body: bytes) -> list[list[bytes]]:
    chance = random.Random(len(body))
    marks = [0, *sorted(chance.choices(range(len(body)), k=30)), len(body)]
    pieces = [body[a:b] for a, b in pairwise(marks)]
    return [[body], [body[i : i + 1] for i in range(len(body))], pieces]


def facts(reader: Reader) -> dict[str, Any]:
    assert reader.fault is None
    names = ("model", "finish_reason", "content_started", "failed", "complete")
    usage = None if reader.usage is None else asdict(reader.usage)
    return {"usage": usage, **{name: getattr(reader, name) for name in names}}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_recording_gives_its_facts_and_its_bytes_in_any_cuts(name: str) -> None:
    recording, body = load(name)
    assert name.startswith(detect(recording["method"], recording["path"]).name + ".")  # type: ignore[union-attr]
    for pieces in cuts(body):
        reader = reader_for(recording)
        assert b"".join([*map(reader.feed, pieces), reader.close()]) == body
        assert facts(reader) == GOLDEN[name]


def slowly_filtered(stream: str) -> str:
    """Return the stream without usage: a second implementation, member by member."""
    events = stream.split("\n\n")
    return "\n\n".join(kept for event in events if (kept := without_usage(event)) is not None)


def without_usage(event: str) -> str | None:
    if not event.startswith("data: {"):
        return event
    chunk = json.loads(event[6:])
    if chunk["choices"] == [] and chunk.get("usage"):
        return None
    if "usage" not in chunk or chunk["usage"] is not None:
        return event
    del chunk["usage"]
    slim = json.dumps(chunk, separators=(",", ":"), ensure_ascii=False)
    assert len(event[6:]) - len(slim) == len(',"usage":null')
    return f"data: {slim}"


@pytest.mark.parametrize(
    "name", [n for n in GOLDEN if n.startswith("openai-chat.") and ".stream" in n]
)
def test_a_filtered_recording_is_what_a_second_implementation_gives(name: str) -> None:
    recording, body = load(name)
    for pieces in cuts(body):
        reader = reader_for(recording, filter_usage=True)
        out = b"".join([*map(reader.feed, pieces), reader.close()])
        assert out.decode() == slowly_filtered(body.decode())
        assert b'"usage":null' not in out
        assert facts(reader) == GOLDEN[name]
