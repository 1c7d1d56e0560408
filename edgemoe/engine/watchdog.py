"""Watches the device's memory: the hot set shrinks when other programs take it, and grows when they give it back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..errors import EdgeMoEError
from ..planning.placement import reserve_of

PERIOD_S = 0.25
# The hot set grows after so many looks in a row that find enough free memory: this share of the reserve, above the
# reserve. So programs that come and go do not make experts come and go.
QUIET_LOOKS = 20
HYSTERESIS = 0.5
# A gain below this share of the reserve is never worth a change.
LEAST_GAIN = 1 / 16
WATCHDOG_SAYS = "Experts on the device "


@dataclass(frozen=True)
class BudgetChanged:
    """The watchdog resized the hot set; sizes are bytes of device memory."""

    before_bytes: int
    after_bytes: int
    free_bytes: int

    @property
    def sentence(self) -> str:
        """Give a sentence for the user."""
        verb = "shrank" if self.after_bytes < self.before_bytes else "grew"
        return (
            f"{WATCHDOG_SAYS}{verb} from {self.before_bytes / 2**20:.0f} to {self.after_bytes / 2**20:.0f} MiB: "
            f"{self.free_bytes / 2**20:.0f} MiB were free."
        )


class Watched(Protocol):
    """The hot set of a device, and the memory of the device now."""

    @property
    def automatic(self) -> bool:
        """Tell whether the budget follows the free memory."""

    def memory(self) -> tuple[int, int]:
        """Give the free and the total bytes of the device."""

    def held(self) -> int:
        """Count the bytes of the slots."""

    def fit_memory(self, vram: int) -> int:
        """Resize the hot set to ``vram`` bytes of device memory."""


class Watchdog:
    """Decides after each look whether to resize. The thread of `start` looks every `PERIOD_S`.

    Args:
        watched: the device and its hot set.
        wanted_bytes: most bytes of the hot set.
        changed: called with every resize, in the watching thread.
        spare_bytes: memory that a prefill will still take.
    """

    def __init__(
        self,
        watched: Watched,
        wanted_bytes: int,
        changed: Callable[[BudgetChanged], None] = lambda event: None,
        spare_bytes: int = 0,
    ) -> None:
        """Watch nothing before `start`."""
        self._watched, self._wanted, self._changed, self._spare = watched, wanted_bytes, changed, spare_bytes
        self._quiet = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look from now on, until `stop`."""
        self._thread = threading.Thread(target=self._run, name="edgemoe-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more; no resize is under way when this returns."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> BudgetChanged | None:
        """Look at the memory once; return the change of the budget, None without a change."""
        if not self._watched.automatic:
            return None
        free, total = self._watched.memory()
        held, reserve = self._watched.held(), reserve_of(total)
        room = held + free - reserve
        if free < reserve and held > 0:
            self._quiet = 0
            return self._resize(held, max(0, room), free)
        growth = min(self._wanted, room - self._spare) - held
        if growth < max(LEAST_GAIN * reserve, min(HYSTERESIS * reserve, self._wanted - held)):
            self._quiet = 0
            return None
        self._quiet += 1
        if self._quiet < QUIET_LOOKS:
            return None
        self._quiet = 0
        return self._resize(held, held + growth, free)

    def _resize(self, before: int, budget: int, free: int) -> BudgetChanged | None:
        self._watched.fit_memory(budget)
        after = self._watched.held()
        if after == before:
            return None
        event = BudgetChanged(before, after, free)
        self._changed(event)
        return event

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            try:
                self.look()
            except EdgeMoEError:
                return  # the engine was closed meanwhile
