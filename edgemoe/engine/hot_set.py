"""The device memory of a model's hot experts: allocated within a budget, resized, looked up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import limits
from ..config import Budget
from ..errors import DoesNotFit
from ..planning.placement import MachineRates, ModelNeeds, Placement, bytes_for_experts, reserve_of, with_slots
from ..types import BoolArray, IdArray, ModelShape
from .binding import PENDING, RESIDENT, NativeEngine

# Attempts with half the bytes each when the device refuses an allocation.
ALLOCATION_ATTEMPTS = 5

NO_EXPERTS = ModelShape(0, 0, 1, ())


class HotSet:
    """The slots of one model on its device.

    Attributes:
        shape: geometry of the routed experts; no layers for a dense model.
        device: ggml name of the device, empty for none.
        placement: the placement; its slots are the ones that are set.
    """

    def __init__(
        self, native: NativeEngine, machine: MachineRates, needs: ModelNeeds, placement: Placement, notes: list[str]
    ) -> None:
        """Begin without slots.

        Args:
            native: the core's engine, with the model loaded.
            machine: the device, and whether its memory is RAM.
            needs: the model.
            placement: the placement that the model was loaded by.
            notes: gets a sentence for the user when the device has too little room.
        """
        self._native, self._needs, self._notes = native, needs, notes
        self.shape = needs.shape or NO_EXPERTS
        self.device, self.placement, self._shares_ram = machine.device, placement, machine.device_shares_ram

    def memory(self) -> tuple[int, int]:
        """Give the free and the total bytes of the device; of memory that it shares, no more than the free RAM."""
        free, total = self._native.device_memory()
        return min(free, limits.memory().available) if self._shares_ram else free, total

    def place(self, budget: Budget) -> IdArray:
        """Allocate slots within the budget and the memory that is free now; return the slots of each layer."""
        wanted, asked = bytes_for_experts(self._needs, self._room(budget), budget), budget.of(self._needs.expert_bytes)
        if wanted < asked and not budget.automatic:
            self._notes.append(
                f"{self.device} had no room for {asked / 2**20:.0f} MiB of experts: they get {wanted / 2**20:.0f} MiB."
            )
        return self.allocate(wanted)

    def allocate(self, wanted: int) -> IdArray:
        """Allocate slots of ``wanted`` bytes, or fewer where the device refuses; return the slots of each layer.

        The core empties a layer when its number of slots changes.
        """
        for _ in range(ALLOCATION_ATTEMPTS):
            self.placement = with_slots(self.placement, self._needs, wanted)
            try:
                self._native.set_slots(self.slots)
                break
            except DoesNotFit as error:
                self._notes.append(f"{self.device} had no room for {wanted / 2**20:.0f} MiB of experts ({error}).")
                wanted //= 2
        else:
            self.placement = with_slots(self.placement, self._needs, 0)
            self._native.set_slots(self.slots)
        if not self.placement.slots:
            self._notes.append(
                f"No expert is on {self.device}: the budget of {wanted / 2**20:.0f} MiB is below 2 x top-k experts of "
                "any layer. All experts stay on the CPU."
            )
        return self.slots

    @property
    def slots(self) -> IdArray:
        """Give the slots of each layer, ``(layers,)``."""
        return np.array(self.placement.slots or [0] * self.shape.layers, dtype=np.int32)

    @property
    def is_whole(self) -> bool:
        """Tell whether every expert has a slot."""
        return bool(self.placement.slots) and all(layer.slots == layer.experts for layer in self._native.layers())

    def _room(self, budget: Budget) -> int:
        """Count the device memory that experts may take, with the slots that they have now."""
        free, total = self.memory()
        stats = self._native.stats()
        stage = max(0, self.placement.staging_of(self._needs) - stats.stage_bytes)  # a prefill will take this much
        return free + stats.slot_bytes - stage - (reserve_of(total) if budget.automatic else 0)

    def states(self) -> npt.NDArray[np.uint8]:
        """Give the state of each expert, ``(layers, experts)``: COLD, PENDING or RESIDENT."""
        if not self.shape.layers:
            return np.zeros((0, 0), dtype=np.uint8)
        return self._native.residency(self.shape.layers, self.shape.experts)

    def resident(self) -> BoolArray:
        """Mark the experts that are in device memory, ``(layers, experts)``."""
        resident: BoolArray = self.states() == RESIDENT
        return resident

    def pending(self) -> BoolArray:
        """Mark the experts that are on their way to device memory, ``(layers, experts)``."""
        pending: BoolArray = self.states() == PENDING
        return pending
