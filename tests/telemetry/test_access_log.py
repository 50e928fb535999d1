import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pointsman.protocols.usage import Usage
from pointsman.telemetry.access_log import AccessLog
from pointsman.telemetry.exchange import Attempt, Exchange, access_log_entry
from pointsman.telemetry.sinks import Sinks

FULL = Path("/dev/full")  # every write to it fails for want of space


def exchange(request_id: str = "r1", **fields: Any) -> Exchange:
    begun = {"host": "llm.test", "method": "POST", "path": "/v1", "client": None, "started": 1.0}
    return Exchange(request_id, **{**begun, **fields})


@contextmanager
def open_log(destination: Path | str) -> Iterator[AccessLog]:
    log = AccessLog(str(destination))
    try:
        yield log
    finally:
        log.close()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_exchange_is_one_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    exchanges = [
        exchange("r1", error="two\nlines", ended=2.0),
        exchange("r2", client_model="模型 🚂", usage=Usage(1, 2, 3)),
    ]
    with open_log(path) as log:
        for one in exchanges:
            log.emit(one)
        lines = read(path)  # it is not held back until the end
    for line, one in zip(lines, exchanges, strict=True):
        assert list(line) == ["event", "timestamp", *access_log_entry(one)]
        assert line.pop("event") == "llm_request"
        age = datetime.now(UTC) - datetime.fromisoformat(line.pop("timestamp"))
        assert 0 <= age.total_seconds() < 60
        assert line == access_log_entry(one)


def test_the_timestamp_is_iso_8601_in_utc(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as log:
        log.emit(exchange())
    assert read(tmp_path / "log")[0]["timestamp"].endswith("Z")


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    for name in ("r1", "r2"):
        with open_log(tmp_path / "log") as log:
            log.emit(exchange(name))
    assert [line["request_id"] for line in read(tmp_path / "log")] == ["r1", "r2"]


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_log("~/log") as log:
        log.emit(exchange())
    assert len(read(tmp_path / "log")) == 1


def test_a_dash_is_standard_output_and_stays_open(
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    for _ in range(2):
        with open_log("-") as log:
            log.emit(exchange())
    lines = capsysbinary.readouterr().out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["llm_request"] * 2


def test_off_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_log("off") as log:
        log.emit(exchange())
    assert capsysbinary.readouterr().out == b""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "missing/log"])
def test_a_path_that_cannot_be_written_is_told_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match=r"."):
        AccessLog(str(tmp_path / name))


def test_nothing_is_written_once_it_is_closed(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as log:
        log.close()
        log.emit(exchange())
    assert read(tmp_path / "log") == []


def test_bytes_of_a_client_that_are_no_text_do_not_cost_the_line(tmp_path: Path) -> None:
    # mitmproxy gives what is not UTF-8 in a path as lone surrogates, which no JSON may hold.
    odd, sinks = "/v1/\udcff/é", Sinks()
    attempt = Attempt("p", "\udcff", 1.0, error="\udcff")
    with open_log(tmp_path / "log") as log:
        sinks.put("log", log.emit)
        sinks.emit(exchange(path=odd, upstream_path=odd, client_model="é", attempts=[attempt]))
    (line,) = read(tmp_path / "log")
    assert (line["path"], line["upstream_path"]) == ("/v1/\ufffd/é", "/v1/\ufffd/é")
    assert line["attempts"][0]["error"] == "\ufffd"
    assert (line["request_id"], line["client_model"]) == ("r1", "é")
    assert list(line) == ["event", "timestamp", *access_log_entry(exchange())]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    caplog.set_level(logging.WARNING, "pointsman")
    return lambda: sum("access log" in record.message for record in caplog.records)


class TestRotation:
    @pytest.fixture(autouse=True)
    def looked_at_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pointsman.telemetry.access_log._LOOK_SECONDS", 0.0)

    @staticmethod
    def ids(path: Path) -> list[str]:
        return [line["request_id"] for line in read(path)]

    @pytest.mark.parametrize("created", [False, True])
    def test_a_file_that_was_moved_is_opened_anew(self, tmp_path: Path, created: bool) -> None:
        path, old = tmp_path / "log", tmp_path / "log.1"
        with open_log(path) as log:
            log.emit(exchange("r1"))
            log.emit(exchange("r2"))
            first = log._file
            path.rename(old)
            if created:  # by who has moved it
                path.touch()
            log.emit(exchange("r3"))
            log.emit(exchange("r4"))
            assert first is not None
            assert first.closed
            assert (self.ids(old), self.ids(path)) == (["r1", "r2"], ["r3", "r4"])

    def test_a_file_that_was_removed_is_made_again(self, tmp_path: Path) -> None:
        with open_log(tmp_path / "log") as log:
            (tmp_path / "log").unlink()
            log.emit(exchange("r1"))
        assert self.ids(tmp_path / "log") == ["r1"]

    def test_where_it_can_not_be_opened_the_old_file_is_written_to(
        self, tmp_path: Path, warnings: Callable[[], int]
    ) -> None:
        path, old = tmp_path / "log", tmp_path / "log.1"
        with open_log(path) as log:
            path.rename(old)
            path.mkdir()
            log.emit(exchange("r1"))
            log.emit(exchange("r2"))
            assert self.ids(old) == ["r1", "r2"]
            assert warnings() == 1
            path.rmdir()
            log.emit(exchange("r3"))
        assert self.ids(path) == ["r3"]
        assert warnings() == 1

    def test_it_is_not_looked_at_for_each_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pointsman.telemetry.access_log._LOOK_SECONDS", 1e9)
        path, old = tmp_path / "log", tmp_path / "log.1"
        with open_log(path) as log:
            path.rename(old)
            log.emit(exchange("r1"))
        assert self.ids(old) == ["r1"]
        assert not path.exists()


class TestFailing:
    def test_a_write_that_fails_is_told_once(
        self, tmp_path: Path, warnings: Callable[[], int]
    ) -> None:
        with open_log(tmp_path / "log") as log:
            assert log._file is not None
            log._file.close()
            for _ in range(5):
                log.emit(exchange())
        assert warnings() == 1

    @pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
    def test_a_full_disk_fails_neither_requests_nor_the_end(
        self, warnings: Callable[[], int]
    ) -> None:
        with open_log(FULL) as log:
            for _ in range(100):
                log.emit(exchange())
        assert warnings() == 1

    def test_a_second_failure_after_a_recovery_is_told_again(
        self, tmp_path: Path, warnings: Callable[[], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcomes = iter((False, False, True, False, False))

        def entry(done: Exchange) -> dict[str, Any]:
            if not next(outcomes):
                raise OSError("no space left")
            return access_log_entry(done)

        monkeypatch.setattr("pointsman.telemetry.access_log.access_log_entry", entry)
        with open_log(tmp_path / "log") as log:
            for _ in range(5):
                log.emit(exchange())
        assert warnings() == 2
        assert len(read(tmp_path / "log")) == 1
