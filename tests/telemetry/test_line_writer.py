"""A writer whose reader stalls, goes, or is slow."""

import json
import os
import threading
from collections.abc import Iterator

import pytest

from pointsman.telemetry.line_writer import LineWriter

LIMIT = 20.0
LINES = [f"{number:05} {'x' * 500}\n".encode() for number in range(400)]  # 200 kB

type Pipe = tuple[int, int]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ours, theirs = os.pipe()
    yield ours, theirs
    for number in (ours, theirs):
        try:
            os.close(number)
        except OSError:
            continue


def read_all(pipe: Pipe, writer: LineWriter) -> list[bytes]:
    """Read until the writer has ended."""
    ours, theirs = pipe
    found: list[bytes] = []

    def read() -> None:
        while piece := os.read(ours, 1 << 16):
            found.append(piece)

    reading = threading.Thread(target=read)
    reading.start()
    writer.close(LIMIT)
    os.close(theirs)
    reading.join(LIMIT)
    return b"".join(found).splitlines(keepends=True)


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_come_whole_and_in_order(pipe: Pipe, blocking: bool) -> None:
    os.set_blocking(pipe[1], blocking)
    writer = LineWriter(pipe[1])
    for line in LINES:
        writer.write(line)
    assert read_all(pipe, writer) == LINES


def test_a_line_longer_than_the_pipe_is_written_too(pipe: Pipe) -> None:
    writer = LineWriter(pipe[1])
    line = b"x" * 300_000 + b"\n"
    writer.write(line)
    writer.write(b"next\n")
    assert read_all(pipe, writer) == [line, b"next\n"]


def test_a_reader_that_stalls_costs_lines_and_is_told_how_many(pipe: Pipe) -> None:
    most = 100_000
    writer = LineWriter(pipe[1], most)
    for line in LINES:  # would wait for ever if it waited
        writer.write(line)
    *found, told = read_all(pipe, writer)
    assert found == LINES[: len(found)]
    # What is in the pipe has been written; up to so much waits.
    assert most // 2 < sum(map(len, found)) < most + (1 << 17)
    entry = json.loads(told)
    assert entry["event"].endswith(f"its reader had stalled: {len(LINES) - len(found)}")
    assert (entry["level"], bool(entry["timestamp"])) == ("warning", True)


def test_the_end_does_not_wait_for_a_reader_that_has_stalled(pipe: Pipe) -> None:
    writer = LineWriter(pipe[1])
    for line in LINES:
        writer.write(line)
    writer.close(0.01)


def test_a_reader_that_has_gone_stops_nothing(pipe: Pipe) -> None:
    os.close(pipe[0])
    writer = LineWriter(pipe[1])
    for line in LINES:
        writer.write(line)
    writer.close(LIMIT)
    assert writer._bytes == 0
