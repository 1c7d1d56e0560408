"""Limits of this process on its machine: processors, memory, and memory that it may lock.

A container, a batch system or ``taskset`` gives a process less than the machine has, and the machine's own figures do
not show this. Every module that plans asks here.

**Source**: sched_setaffinity(2); cgroup v2 ``cpu.max``, ``cpuset.cpus.effective``, ``memory.max``, ``memory.high`` and
version 1's names for them (kernel documentation, admin-guide/cgroup-v2 and cgroup-v1); the topology below
/sys/devices/system/cpu; RLIMIT_MEMLOCK of getrlimit(2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from .control_groups import ROOT, folders, text

_CAP_IPC_LOCK = 14


@dataclass(frozen=True)
class Processors:
    """Processors that this process may use.

    Attributes:
        logical: number of logical processors that may run at once.
        physical: number of physical cores among them. With cores of two kinds, only the fast cores count.
        reason: the limit that applies, in words; empty if only the machine limits the process.
    """

    logical: int
    physical: int
    reason: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes of RAM for this process.

    Attributes:
        total: bytes that the process may use.
        available: bytes of ``total`` that are free now, including file pages that the system can drop.
        reason: the limit that applies, in words; empty if only the machine limits the process.
    """

    total: int
    available: int
    reason: str = ""


def processors(root: Path = ROOT) -> Processors:
    """Count the processors that affinity and quota leave to this process.

    Args:
        root: folder that holds /proc and /sys.
    """
    machine = psutil.cpu_count() or 1
    allowed = _allowed(root)
    logical, reason = len(allowed), ""
    if logical < machine:
        reason = f"this process may run on {logical} of {machine} processors"
    quota = _quota(root)
    if quota is not None and quota < logical:
        logical = max(1, int(quota))
        reason = f"the container may use {quota:g} of {machine} processors"
    return Processors(logical, max(1, min(_cores(allowed, root), logical)), reason)


def memory(root: Path = ROOT) -> Memory:
    """Read how much RAM the machine and the limits of this process leave to it.

    Args:
        root: folder that holds /proc and /sys.
    """
    machine = psutil.virtual_memory()
    limits = [limit for limit in _memory_limits(root) if limit[0] < machine.total]
    if not limits:
        return Memory(int(machine.total), int(machine.available))
    most = min(limit for limit, _ in limits)
    left = min(max(0, limit - used) for limit, used in limits)
    return Memory(most, min(int(machine.available), left), f"the container may use {most / 2**30:.1f} GiB of RAM")


def lockable(root: Path = ROOT) -> int | None:
    """Read how many bytes this process may lock in RAM; None if there is no limit or the system does not report it.

    Args:
        root: folder that holds /proc.
    """
    if sys.platform == "win32" or _may_lock_all(root):
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else int(soft)


# Processors.


def _affinity() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def _allowed(root: Path) -> list[int]:
    """List the processors that affinity and cpusets allow. On Linux the affinity respects cpusets already."""
    allowed = set(_affinity())
    for folder in folders("cpuset", root):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
            allowed &= _numbers(text(folder / name)) or allowed
    return sorted(allowed) or _affinity()


def _cores(allowed: list[int], root: Path) -> int:
    """Count the physical cores among ``allowed``: only the fast ones if the processor has cores of two kinds.

    If the system does not report cores, two processors count as one core.
    """
    devices = root / "sys" / "devices"
    quick = _numbers(text(devices / "cpu_core" / "cpus")) if text(devices / "cpu_atom" / "cpus") else set()
    wanted = [number for number in allowed if not quick or number in quick] or allowed
    siblings = {
        text(devices / "system" / "cpu" / f"cpu{number}" / "topology" / "thread_siblings_list") for number in wanted
    }
    if "" not in siblings:
        return len(siblings)
    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count() or 1
    # In some containers psutil finds no cores. A processor then counts as half a core: most cores run two threads.
    share = physical / logical if physical else 0.5
    return max(1, round(len(wanted) * share)) if logical > 1 else 1


def _numbers(listed: str) -> set[int]:
    """Read a list such as ``0-7,16``."""
    found: set[int] = set()
    for part in listed.split(","):
        first, _, last = part.partition("-")
        if first.strip().isdigit():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _quota(root: Path) -> float | None:
    """Read how many processors' time the process may use; None without a quota."""
    shares = []
    for folder in folders("cpu", root):
        quota, _, period = text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = text(folder / "cpu.cfs_quota_us"), text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


# Memory.


def _may_lock_all(root: Path) -> bool:
    """Tell whether the process has CAP_IPC_LOCK, which no limit binds: capabilities(7)."""
    lines = (line.split() for line in text(root / "proc" / "self" / "status").splitlines())
    given = next((int(line[1], 16) for line in lines if line[:1] == ["CapEff:"]), 0)
    return bool(given >> _CAP_IPC_LOCK & 1)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield each limit that covers this process, and the bytes used under it that cannot be dropped."""
    for folder in folders("memory", root):
        given = [text(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
        limits = [int(most) for most in given if most.isdigit()]
        used = text(folder / "memory.current") or text(folder / "memory.usage_in_bytes")
        if limits and used.isdigit():
            yield min(limits), max(0, int(used) - _droppable(folder))


def _droppable(folder: Path) -> int:
    """Count the bytes of file pages. The kernel drops these pages before it ends a process."""
    entries = dict(line.split()[:2] for line in text(folder / "memory.stat").splitlines() if " " in line)
    names = [("total_inactive_file", "total_active_file"), ("inactive_file", "active_file")]
    for pair in names:
        if all(entries.get(name, "").isdigit() for name in pair):
            return sum(int(entries[name]) for name in pair)
    return 0
