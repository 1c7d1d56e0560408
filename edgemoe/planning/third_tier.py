"""The third tier: experts of a model that is larger than the RAM live on the disk, and some of them in RAM of ours."""

from __future__ import annotations

from ..config import Budget
from .placement import MachineRates, ModelNeeds, Placement

# RAM that stays free for pages of the file, for the interpreter and for other programs.
SPARE_BYTES, SPARE_SHARE = 256 * 2**20, 0.05
# Experts that are on their way while others are computed. A larger number hides more of the disk's latency.
ON_THEIR_WAY = 16


def ram_for_experts(machine: MachineRates, needs: ModelNeeds, placed: Placement, asked: Budget) -> int | None:
    """Give the bytes of RAM for experts; None if all weights fit in RAM, and the system's file cache holds them.

    Args:
        machine: its free memory.
        needs: the model.
        placed: its placement.
        asked: the most RAM for experts; an automatic budget takes the RAM that is free.
    """
    if needs.shape is None:
        return None
    spare = spare_bytes(machine.ram_total_bytes)
    room = machine.ram_free_bytes - placed.ram_private_bytes - host_bytes(needs, placed)
    if not asked.automatic and asked.of(needs.expert_bytes) < min(room, needs.expert_bytes):
        return max(asked.of(needs.expert_bytes), at_once(needs) * max(needs.shape.expert_bytes))
    if room >= needs.expert_bytes:
        return None
    return max(room - spare, at_once(needs) * max(needs.shape.expert_bytes))


def spare_bytes(total: int) -> int:
    """Count the RAM that stays free on a machine, or in a container, of ``total`` bytes."""
    return max(SPARE_BYTES, int(total * SPARE_SHARE))


def fitted(budget: int, most: int, used: int, available: int, spare: int) -> int:
    """Give the bytes of RAM for experts after other programs took RAM or gave RAM back.

    Args:
        budget: the bytes until now.
        most: the bytes that were planned.
        used: the bytes that experts take.
        available: RAM that is free beside them.
        spare: RAM that should stay free. Half of it and twice as much change nothing.
    """
    if available < spare // 2:
        return max(0, min(budget, used - (spare - available)))
    if available > 2 * spare and budget < most:
        return min(most, budget + available - 2 * spare)
    return budget


def at_once(needs: ModelNeeds) -> int:
    """Count the experts of a layer that have room on their way from the disk: at least those of two tokens."""
    assert needs.shape is not None
    pair = 2 * needs.shape.used
    return min(needs.shape.experts, max(pair, ON_THEIR_WAY if needs.shape.experts >= 4 * ON_THEIR_WAY else pair))


def host_bytes(needs: ModelNeeds, placed: Placement) -> int:
    """Count the weights outside of routed experts that the CPU reads."""
    on_device = min(needs.dense_bytes, needs.dense_device_bytes) if placed.dense_on_device else 0
    return needs.dense_bytes - on_device
