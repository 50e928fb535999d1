"""What a process may use."""

import os
from pathlib import Path

import pytest

from pointsman import cgroups
from pointsman.cgroups import allowed_cores, allowed_memory, cgroup_memory, cgroup_quota


def cgroup(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def own(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "own"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def test_the_tightest_quota_of_a_cgroup_and_those_above_it_counts(tmp_path: Path) -> None:
    cgroup(tmp_path, "a", cpu__max="150000 100000")
    cgroup(tmp_path, "a/b", cpu__max="max 100000")
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/a/b")) == 1.5


def test_in_a_container_the_mount_itself_is_its_cgroup(tmp_path: Path) -> None:
    cgroup(tmp_path, ".", cpu__max="50000 100000")
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/kubepods/pod1")) == 0.5


def test_the_older_hierarchy_counts_too(tmp_path: Path) -> None:
    cgroup(tmp_path, "cpu,cpuacct/a", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    cgroup(tmp_path, "cpu,cpuacct", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    lines = ("3:memory:/a", "2:cpu,cpuacct:/a", "0::/")
    assert cgroup_quota(tmp_path, own(tmp_path, *lines)) == 2


def test_without_a_quota_there_is_none(tmp_path: Path) -> None:
    cgroup(tmp_path, ".", cpu__max="max 100000")
    assert cgroup_quota(tmp_path, own(tmp_path, "0::/")) is None
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("affinity", "quota", "cores_allowed"),
    [(8, None, 8), (8, 2.9, 2), (2, 4.0, 2), (4, 0.5, 1)],
)
def test_whole_cores_are_counted_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, cores_allowed: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(cgroups, "cgroup_quota", lambda *_: quota)
    assert allowed_cores() == cores_allowed


def test_the_tightest_limit_of_memory_counts(tmp_path: Path) -> None:
    cgroup(tmp_path, "a", memory__max="1000")
    cgroup(tmp_path, "a/b", memory__max="max")
    assert cgroup_memory(tmp_path, own(tmp_path, "0::/a/b")) == 1000
    cgroup(tmp_path, "memory/a", memory__limit_in_bytes="500")
    assert cgroup_memory(tmp_path, own(tmp_path, "3:memory:/a", "0::/a/b")) == 500
    assert cgroup_memory(tmp_path, own(tmp_path, "0::/c")) is None


@pytest.mark.parametrize(("limit", "allowed"), [(None, 4096 * 10), (5000, 5000), (10**9, 40960)])
def test_memory_is_the_machines_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, allowed: int
) -> None:
    known = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}
    monkeypatch.setattr(os, "sysconf", known.__getitem__)
    monkeypatch.setattr(cgroups, "cgroup_memory", lambda *_: limit)
    assert allowed_memory() == allowed
