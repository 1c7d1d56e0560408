"""Limits of a process: containers, quotas and affinity, in trees that replace /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edgemoe import limits

GIB = 2**30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a tree of a machine with eight processors on four cores and 32 GiB."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * GIB, available=20 * GIB))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def topology() -> dict[str, str]:
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {folder.format(number): f"{number % 4},{number % 4 + 4}" for number in range(8)}


def test_a_whole_machine(tmp_path: Path) -> None:
    assert limits.processors(tree(tmp_path, topology())) == limits.Processors(8, 4)
    assert limits.memory(tmp_path) == limits.Memory(32 * GIB, 20 * GIB)


@pytest.mark.parametrize(("quota", "logical"), [("100000 100000", 1), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_quota_rounds_down_and_says_so(quota: str, logical: int, tmp_path: Path) -> None:
    tree(tmp_path, topology() | {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": quota})
    found = limits.processors(tmp_path)
    assert (found.logical, found.physical) == (logical, logical)
    assert f"{int(quota.split()[0]) / 100000:g} of 8 processors" in found.reason


def test_a_group_above_limits_too_and_a_namespace_hides_paths(tmp_path: Path) -> None:
    above = tree(tmp_path / "a", {"proc/self/cgroup": "0::/pod/box", "sys/fs/cgroup/pod/box/cpu.max": "max 100000"})
    tree(above, {"sys/fs/cgroup/pod/cpu.max": "200000 100000"} | topology())
    assert limits.processors(above).logical == 2
    hidden = tree(tmp_path / "b", {"proc/self/cgroup": "0::/../../host/path", "sys/fs/cgroup/cpu.max": "100000 100000"})
    assert limits.processors(hidden).logical == 1


def test_version_1(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(4 * GIB),
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(3 * GIB),
            "sys/fs/cgroup/memory/box/memory.stat": f"cache 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
        },
    )
    assert limits.processors(tmp_path).logical == 1
    found = limits.memory(tmp_path)
    assert (found.total, found.available) == (4 * GIB, 3 * GIB) and "4.0 GiB" in found.reason


def test_a_memory_limit_counts_pages_that_can_be_dropped(tmp_path: Path) -> None:
    box = "sys/fs/cgroup/box/"
    files = {"memory.max": str(8 * GIB), "memory.high": "max", "memory.current": str(7 * GIB)}
    stat = f"anon {GIB}\ninactive_file {4 * GIB}\nactive_file {GIB}"
    tree(tmp_path, {"proc/self/cgroup": "0::/box", box + "memory.stat": stat})
    tree(tmp_path, {box + name: text for name, text in files.items()})
    assert limits.memory(tmp_path) == limits.Memory(8 * GIB, 6 * GIB, "the container may use 8.0 GiB of RAM")


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    found = limits.processors(tree(tmp_path, topology()))
    assert (found.logical, found.physical) == (3, 2) and "3 of 8" in found.reason


def test_only_quick_cores_of_a_hybrid_processor(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {folder.format(number): f"{number // 2 * 2}-{number // 2 * 2 + 1}" for number in range(4)}
    files |= {folder.format(number): str(number) for number in range(4, 8)}
    tree(tmp_path, files | {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"})
    assert limits.processors(tmp_path) == limits.Processors(8, 2)


def test_unknown_cores_are_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else None)
    assert limits.processors(tmp_path).physical == 4
