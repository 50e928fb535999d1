"""One JSON object a line, whatever a worker prints."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pointsman.sidecar import output
from pointsman.telemetry.json_log import json_formatter
from pointsman.telemetry.line_writer import LineWriter

ADDON = Path(__file__).resolve().parents[2] / "addon"
LIMIT = 20.0

type Forwarded = Callable[[bytes], list[bytes]]


@pytest.fixture
def forwarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forwarded:
    def forward(printed: bytes) -> list[bytes]:
        with (tmp_path / "out").open("w+b") as out:
            lines = LineWriter(out.fileno())
            asyncio.run(run(printed, lines))
            lines.close(LIMIT)
            out.seek(0)
            return out.readlines()

    async def run(printed: bytes, lines: LineWriter) -> None:
        stream = asyncio.StreamReader(limit=100)
        stream.feed_data(printed)
        stream.feed_eof()
        logger = logging.getLogger("worker")
        monkeypatch.setattr(logger, "handlers", [output.line_handler(lines)])
        await output.forward(stream, lines, logger, worker=1)

    return forward


def test_json_objects_pass_as_they_are(forwarded: Forwarded) -> None:
    lines = [b'{"event":"llm_request","n":1.0}\n', b'{"event": "x"}\n']
    assert forwarded(b"".join(lines)) == lines


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (b"Traceback (most recent call last):\n", "Traceback (most recent call last):"),
        (b"  indented\r\n", "  indented"),
        (b"[1, 2]\n", "[1, 2]"),
        (b'{"cut off\n', '{"cut off'),
        (b"no end of line", "no end of line"),
        (b'{"event":"whole"', '{"event":"whole"'),
        (b"\xff\xfe\n", "\\xff\\xfe"),
    ],
)
def test_other_lines_become_log_records_of_that_worker(
    forwarded: Forwarded, printed: bytes, said: str
) -> None:
    (line,) = forwarded(printed)
    entry = json.loads(line)
    assert entry.pop("timestamp")
    assert entry == {"event": said, "level": "error", "logger": "worker", "worker": 1}


def test_blank_lines_are_left_out_and_long_ones_cost_no_other(forwarded: Forwarded) -> None:
    lines = forwarded(b"\n" + b"x" * 500 + b'\n{"event":"next"}\n')
    assert all(json.loads(line) for line in lines)
    assert b'{"event":"next"}\n' in lines
    assert sum(map(len, lines)) < 500


def test_records_have_their_place_time_and_traceback() -> None:
    record = logging.LogRecord("a.b", logging.WARNING, "", 1, "%s\nis late", ("it",), None)
    record.client = ("::1", 5, 0, 0)
    entry = json.loads(json_formatter().format(record))
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "it\nis late", "level": "warning", "logger": "a.b", "client": "::1:5",
    }  # fmt: skip
    try:
        raise KeyError("k")  # noqa: TRY301
    except KeyError:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "oops", (), sys.exc_info())
    entry = json.loads(json_formatter().format(record))
    assert "KeyError" in entry["exception"]


def test_what_ends_a_process_is_one_line_of_json() -> None:
    program = (
        "import threading; from pointsman.sidecar import output; output.log_to_stdout();"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join();"
        "raise RuntimeError('the\\nend')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ADDON)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    in_thread, at_end = map(json.loads, done.stdout.splitlines())
    assert "ZeroDivisionError" in in_thread["exception"]
    assert "RuntimeError: the\nend" in at_end["exception"]
    assert at_end["level"] == "critical"
