"""Counts in a file whose disk may be full: they are lost, and nothing else is."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import MmapedDict

from pointsman.telemetry.counts_file import STEP, CountsFile

ADDON = Path(__file__).parents[2] / "addon"


def keys(count: int) -> list[str]:
    """Return keys of which a hundred fill the first room of a file."""
    return [f"{number:05}".ljust(700, "x") for number in range(count)]


def written(file: Path) -> dict[str, float]:
    read: Any = MmapedDict.read_all_values_from_file
    return {key: value for key, value, _, _ in read(str(file))}


def on_a_small_disk(size: int, program: str, *arguments: str) -> str:
    """Run a program that can make no file larger than this; return what it prints."""
    limits = (size, resource.RLIM_INFINITY)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(ADDON)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


COUNT = """
import sys
from pointsman.telemetry.counts_file import CountsFile

file = CountsFile(sys.argv[1])
for key in sys.argv[2:]:
    file.read_value(key)
    file.write_value(key, 1.0, 0.0)
    file.write_value(key, 2.0, 0.0)
file.close()
"""


def test_the_file_is_as_prometheus_client_reads_it_and_has_no_holes(tmp_path: Path) -> None:
    file = CountsFile(str(tmp_path / "counter_1.db"))
    for number, key in enumerate(keys(1000)):
        assert file.read_value(key) == (0.0, 0.0)
        file.write_value(key, number, 0.0)
    assert file.fault is None
    file.close()  # type: ignore[no-untyped-call]
    assert written(tmp_path / "counter_1.db") == {k: n for n, k in enumerate(keys(1000))}
    stat = (tmp_path / "counter_1.db").stat()
    assert stat.st_blocks * 512 >= stat.st_size == 12 * STEP
    assert [path.name for path in tmp_path.iterdir()] == ["counter_1.db"]


def test_one_that_is_there_is_gone_on_with(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        file = CountsFile(str(tmp_path / "counter_1.db"))
        assert file.read_value("key")[0] == value - 1
        file.write_value("key", value, 0.0)
        file.close()  # type: ignore[no-untyped-call]


def test_what_has_no_room_is_missing_and_told_once_and_the_rest_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "counter_1.db"
    told = on_a_small_disk(STEP, COUNT, str(file), *keys(100), "x")
    found = written(file)
    assert 80 < len(found) < 100
    assert set(found.values()) == {2.0}
    assert file.stat().st_size == STEP
    assert told.count("some counts are missing from the metrics") == 1
    assert str(tmp_path) in told


def test_without_room_for_a_file_there_is_none(tmp_path: Path) -> None:
    told = on_a_small_disk(STEP // 2, COUNT, str(tmp_path / "counter_1.db"), "a", "b")
    assert list(tmp_path.iterdir()) == []
    assert told.count("some counts are missing from the metrics") == 1
