"""Progress of a download: bytes, speed, time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WINDOW_S = 8.0  # the speed is the average over this time
EVERY_S = 0.1  # between two reports


@dataclass(frozen=True)
class Progress:
    """Report the progress of a download of one or more files.

    Attributes:
        done_bytes: bytes on the disk.
        total_bytes: bytes of all files.
        bytes_per_second: speed over the last seconds; 0 at first.
        note: the current activity, if it is not a transfer; else empty.
    """

    done_bytes: int
    total_bytes: int
    bytes_per_second: float = 0.0
    note: str = ""

    @property
    def share(self) -> float:
        """Give the share of the bytes that is done, in 0..1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Estimate the time left at the present speed; None while the speed is unknown."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_second if self.bytes_per_second > 0 else None


class Meter:
    """Count bytes by file, and report at most every ``EVERY_S`` seconds."""

    def __init__(
        self,
        sizes: Mapping[str, int],
        total: int,
        report: Callable[[Progress], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with ``sizes``: bytes by file that are on the disk already. They do not count as speed."""
        self._sizes, self._total, self._report, self._clock = dict(sizes), total, report, clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), sum(self._sizes.values()))])
        self._reported, self._note = float("-inf"), ""

    def at(self, name: str, size: int, note: str = "") -> None:
        """Record that file ``name`` has ``size`` bytes now."""
        self._sizes[name] = size
        now = self._clock()
        if self._report is None or (now - self._reported < EVERY_S and note == self._note):
            return
        done = sum(self._sizes.values())
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        speed = max(done - before, 0) / (now - then) if now > then else 0.0
        self._reported, self._note = now, note
        self._report(Progress(done, self._total, speed, note))
