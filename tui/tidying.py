"""Memory of a long chat: hardly any reference cycles, collected when nobody waits; large texts leave no holes.

Looking through all objects for cycles takes as long as a key may at most, and by itself Python does it in the middle of
a drawing, the more often the more of them there are. Nearly all came from one place: a line that Textual draws keeps
itself, as one of its parts.

A text that grows is copied, each copy a little too large for the place of the one before. glibc gives such blocks pages
of their own, which go back to the system, but learns not to: 0.6 MiB a minute at 100 tokens a second (docs/log.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from textual.strip import Strip

Divide: TypeAlias = Callable[[Strip, Iterable[int]], Sequence[Strip]]

# Since the last key: a typist has pressed the next one by then; later in a pause the next may come any moment, until
# nobody types at all.
CALM_SECONDS, PAUSE_SECONDS, QUIET_SECONDS = 0.2, 0.3, 1.0
LOOK_SECONDS = 0.05
SOON_SECONDS, LATE_SECONDS = 30.0, 120.0  # between two collections, when it is calm, and when it never is
_NEVER = 1_000_000  # younger generations are cheap and stay automatic; the oldest is collected here
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 64 << 10  # malloc.h


class Tidying:
    """Decides when to collect; all methods belong to the screen's thread."""

    def __init__(self) -> None:
        """Nothing changes before :meth:`begin`."""
        self._began = False
        self._key_s = self._collected_s = time.monotonic()

    def begin(self) -> None:
        """Take over from Python. Objects that exist by now stay: they are never looked through again."""
        gc.collect()
        gc.freeze()
        with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        Strip.divide = without_cycles(Strip.divide)  # type: ignore[method-assign, assignment]
        first, second, _ = gc.get_threshold()
        gc.set_threshold(first, second, _NEVER)
        self._began, self._collected_s = True, time.monotonic()

    def key(self) -> None:
        """The user has pressed one."""
        self._key_s = time.monotonic()

    def look(self) -> bool:
        """Collect if it is time; whether it was. To be called every ``LOOK_SECONDS``."""
        now = time.monotonic()
        since, pause = now - self._collected_s, now - self._key_s
        calm = CALM_SECONDS <= pause < PAUSE_SECONDS or pause >= QUIET_SECONDS
        due = self._began and since >= (SOON_SECONDS if calm else LATE_SECONDS)
        if due:
            gc.collect()
            self._collected_s = time.monotonic()
        return due


def without_cycles(divide: Divide) -> Divide:
    """Textual's ``Strip.divide``, which would remember a whole line as a part of itself."""

    def divided(strip: Strip, cuts: Iterable[int]) -> Sequence[Strip]:
        inside = [cut for cut in cuts if cut <= strip.cell_length]
        return [strip] if inside == [strip.cell_length] else divide(strip, inside)

    return divided
