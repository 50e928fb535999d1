"""Metrics of several processes in one directory: summed, kept over restarts, bounded."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pointsman.telemetry import exposition
from pointsman.telemetry.exposition import DIRECTORY, render, worker_gone

ADDON = Path(__file__).parents[2] / "addon"
# A process that records so many requests by a rule, then waits for the end of its input.
WORKER = """
import sys
from pointsman.telemetry.exchange import Attempt, Exchange
from pointsman.telemetry.metrics import Metrics
from pointsman.telemetry.naming import RuleName
from pointsman.telemetry.reading import Reading, RulesReading, TargetReading
from pointsman.protocols.usage import Usage

count, rule, state = int(sys.argv[1]), sys.argv[2], sys.argv[3]
reading = Reading(targets=(TargetReading("r", "vanished", "openai", state="ejected"),))
metrics = Metrics(lambda: reading)
hosts = {"api.openai.com": "openai"}
metrics.rules_live(RulesReading(frozenset({RuleName("r", "", "vanished")}), hosts))
reading = Reading(count, 1, (TargetReading("r", rule, "openai", state=state),))
metrics.rules_live(RulesReading(frozenset({RuleName("r", "", rule)}), hosts))
for n in range(count):
    metrics.record(Exchange(
        "r1", "h", "POST", "/", None, 1.0, route="r", rule=rule, provider="openai",
        provider_host="api.openai.com", api="openai-chat", request_model="m", status=200,
        attempts=[Attempt("openai", "api.openai.com", 1.0, 2.0, 200)], ended=2.0,
        usage=Usage(10, 5, 15), overhead=0.001, cost_usd=0.5))
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory, as a supervisor has it."""
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    return tmp_path


class Worker:
    """A process that has recorded, and goes on until it is ended."""

    def __init__(self, folder: Path, count: int, rule: str = "all", state: str = "healthy") -> None:
        env = {DIRECTORY: str(folder), "PYTHONPATH": str(ADDON)}
        command = [sys.executable, "-c", WORKER, str(count), rule, state]
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == b"done\n"
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.communicate(timeout=20)
        assert self._process.returncode == 0


def values(name: str) -> dict[str, float]:
    """Return the values of a metric by its rule (or nothing)."""
    return {
        sample.labels.get("rule", ""): sample.value
        for family in text_string_to_metric_families(render().decode())
        for sample in family.samples
        if sample.name == name and sample.labels.get("le", "+Inf") == "+Inf"
    }


def test_the_processes_of_a_directory_are_summed(shared: Path) -> None:
    workers = [Worker(shared, 3, state="healthy"), Worker(shared, 4, state="ejected")]
    try:
        assert values("pointsman_requests_total") == {"all": 7}
        assert values("pointsman_overhead_seconds_count") == {"": 7}
        assert values("gen_ai_client_operation_duration_seconds_sum") == {"": 7}
        assert values("pointsman_requests_open") == {"": 7}
        assert values("pointsman_target_state") == {"all": 2}
        assert values("pointsman_last_reload_successful") == {"": 1}
        assert values("pointsman_build_info") == {"": 1}
    finally:
        for worker in workers:
            worker.end()


def test_counts_outlive_their_process_and_gauges_do_not(shared: Path) -> None:
    for restart in range(1, 6):
        worker = Worker(shared, 2, rule=f"rule-{restart % 2}")
        worker.end()
        before = values("pointsman_requests_total")
        worker_gone(worker.pid)
        assert values("pointsman_requests_total") == before
        assert sum(before.values()) == 2 * restart
        files = {path.name for path in shared.iterdir()}
        assert files == {"counter_ended.db", "histogram_ended.db"}
    assert values("gen_ai_client_operation_duration_seconds_count") == {"": 10}
    assert values("pointsman_overhead_seconds_bucket") == {"": 10}
    assert values("pointsman_requests_open") == {}
    worker_gone(worker.pid)  # a second time, nothing happens
    assert sum(values("pointsman_requests_total").values()) == 10


def test_what_ended_processes_leave_is_bounded(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "_MOST_BYTES", 1)
    for restart in (1, 2):
        worker = Worker(shared, restart)
        worker.end()
        worker_gone(worker.pid)
    assert values("pointsman_requests_total") == {"all": 2}


def test_on_a_full_disk_counts_stay_with_the_process_that_has_ended(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first, second = Worker(shared, 2), Worker(shared, 3)
    for worker in (first, second):
        worker.end()
    worker_gone(first.pid)
    with monkeypatch.context() as full:
        full.setattr("pointsman.telemetry.counts_file.take_room", no_room)
        worker_gone(second.pid)
    assert values("pointsman_requests_total") == {"all": 5}
    assert values("pointsman_requests_open") == {}
    worker_gone(second.pid)
    assert values("pointsman_requests_total") == {"all": 5}
    files = {path.name for path in shared.iterdir()}
    assert files == {"counter_ended.db", "histogram_ended.db"}


def test_a_folder_without_room_for_all_processes_is_told_with_the_mend(tmp_path: Path) -> None:
    exposition.make_folder(tmp_path / "metrics", 3)
    assert list((tmp_path / "metrics").iterdir()) == []
    with pytest.raises(OSError, match="the counters of 3 processes") as refused:
        exposition.make_folder(tmp_path / "missing" / "metrics", 3)
    assert "begin with 960 KiB" in str(refused.value.strerror)


def test_a_supervisor_that_records_nothing_renders_an_empty_directory(shared: Path) -> None:
    assert render() == b""
    worker_gone(1)
    assert list(shared.iterdir()) == []


def test_a_directory_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=DIRECTORY):
        render()


def test_without_a_directory_an_ended_process_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DIRECTORY, raising=False)
    worker_gone(1)
