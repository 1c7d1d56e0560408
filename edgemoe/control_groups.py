"""The control groups of this process, by which a container limits it: their folders, and the kernel's kills in them.

**Source**: cgroups(7); ``memory.events`` of cgroup v2 and ``memory.oom_control`` of version 1 (kernel documentation,
admin-guide/cgroup-v2 and cgroup-v1); ``oom_kill`` of /proc/vmstat.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def folders(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield the folders of this process's groups, from its own up to the mounted one.

    Args:
        controller: kind of limits, such as ``memory``.
        root: folder that holds /proc and /sys.
    """
    mounted = root / "sys" / "fs" / "cgroup"
    for line in text(root / "proc" / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            base = mounted / "unified" if (mounted / "unified").is_dir() else mounted
        elif controller in controllers.split(","):
            named = [mounted / controllers, mounted / controller]
            base = next((folder for folder in named if folder.is_dir()), named[0])
        else:
            continue
        folder = base / path.strip("/")
        while folder != base:
            if folder.is_dir():  # in a namespace, /proc may name a folder that the process cannot see
                yield folder
            folder = folder.parent
        yield base


def memory_kills(root: Path = ROOT) -> int:
    """Count the processes that the kernel ended for lack of memory, in this process's group.

    Without such a group, count the kills of the whole machine; 0 if the system does not report them.

    Args:
        root: folder that holds /proc and /sys.
    """
    files = [folder / name for folder in folders("memory", root) for name in ("memory.events", "memory.oom_control")]
    for file in [*files, root / "proc" / "vmstat"]:
        for line in text(file).splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill" and count.isdigit():
                return int(count)
    return 0


def text(path: Path) -> str:
    """Read a small file of the system; empty if it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="ascii").strip()
    return ""
