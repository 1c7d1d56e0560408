"""The length of a context by plan: as long as the model was trained for, while it costs little speed. Pure.

A longer context takes device memory from the experts, so that fewer of them are resident. The cost is a ratio of two
forecasts with typical rates, so that the choice does not depend on measurements: every command chooses alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .forecast import hit_rate, step_seconds
from .placement import MachineRates, ModelNeeds, Placement

# The shortest context that the planner chooses, if the model was trained for as much.
LEAST = 4096
# A chosen context is compared with this one.
SHORT = 8192
# Largest share of the speed that a longer context may cost.
LITTLE = 0.15
# Largest share of the RAM beside the model that a longer context may take.
RAM_SHARE = 1 / 2
# A smaller gain of a shorter context is not worth a word.
LEAST_SHOWN = 0.005
# Rates of a desktop with a card, for ratios only. Device and CPU count one after the other, as if they shared a core:
# within a layer, one mostly waits for the other.
TYPICAL = MachineRates(cpu_expert_rate=3e10, device_rate=3e11, join_ns=3e4, device_is_cpu=True)


@dataclass(frozen=True)
class ContextChoice:
    """The context that the planner chose.

    Attributes:
        placement: the placement with the chosen context.
        trained: tokens that the model was trained for.
        shorter: tokens of a shorter context for comparison; 0 if none is shorter.
        faster: share by which a token would take less time with the shorter context, 0..1.
    """

    placement: Placement
    trained: int
    shorter: int = 0
    faster: float = 0.0


def choose(needs: ModelNeeds, trained: int, machine: MachineRates, placed: Callable[[int], Placement]) -> ContextChoice:
    """Choose the longest context that costs little speed and little RAM.

    Args:
        needs: the model.
        trained: tokens that the model was trained for.
        machine: its free memory.
        placed: gives the placement with so many tokens.
    """
    lengths = steps(trained)
    least = placed(next(lengths))
    chosen, quickest = least, _seconds(machine, needs, least)
    tried = {least.context: quickest}
    for length in lengths:
        longer = placed(length)
        tried[length] = _seconds(machine, needs, longer)
        if not _costs_little(longer, least, machine) or quickest < (1 - LITTLE) * tried[length]:
            break
        chosen = longer
    shorter = max((length for length in tried if length < min(chosen.context, SHORT + 1)), default=0)
    faster = 1 - tried[shorter] / tried[chosen.context] if shorter and tried[chosen.context] else 0.0
    return ContextChoice(chosen, trained, shorter, max(0.0, faster))


def steps(trained: int) -> Iterator[int]:
    """List the lengths to try: doubling from the least, and at last the one that the model was trained for."""
    length = min(LEAST, trained)
    while length < trained:
        yield length
        length *= 2
    yield trained


def _costs_little(longer: Placement, least: Placement, machine: MachineRates) -> bool:
    """Tell whether a longer context stays in the same memory as the least one, and leaves enough RAM."""
    if (longer.dense_on_device, longer.kv_on_device) != (least.dense_on_device, least.kv_on_device):
        return False
    spare = machine.ram_free_bytes - least.ram_private_bytes - least.ram_mapped_bytes
    grown = longer.ram_private_bytes + longer.ram_mapped_bytes - least.ram_private_bytes - least.ram_mapped_bytes
    return grown <= max(0, spare) * RAM_SHARE


def _seconds(machine: MachineRates, needs: ModelNeeds, placed: Placement) -> float:
    """Compute the seconds of a token with typical rates."""
    hits = needs.pairs * hit_rate(placed, needs, None)
    seconds = step_seconds(
        replace(TYPICAL, device=machine.device), needs, hits, needs.pairs - hits, 0, placed.dense_on_device
    )
    assert seconds is not None
    return seconds


def in_words(choice: ContextChoice, needs: ModelNeeds, device: str, decode: float | None = None) -> str:
    """Say in one line which context was chosen and what it costs.

    Args:
        choice: the choice.
        needs: the model.
        device: ggml name of the device, empty for none.
        decode: forecast of tokens per second; None if unknown.
    """
    placed = choice.placement
    whole = placed.context == choice.trained
    trained = ", all that the model was trained for" if whole else f" (trained for {length_in_words(choice.trained)})"
    parts = [f"{length_in_words(placed.context)} context{trained}"]
    if needs.shape is not None and any(placed.slots):
        share = sum(placed.slots) / (needs.shape.layers * needs.shape.experts)
        parts.append(f"{share:.0%} of the experts on {device}")
    if decode is not None:
        parts.append(f"about {decode:.3g} tokens/s")
    text, shorter = ", ".join(parts), length_in_words(choice.shorter)
    if not choice.shorter or choice.faster < LEAST_SHOWN:
        return f"{text}."
    if decode is not None:
        return f"{text}; {shorter} would give {decode / (1 - choice.faster):.3g}."
    return f"{text}; {shorter} would be {choice.faster / (1 - choice.faster):.0%} faster."


def length_in_words(tokens: int) -> str:
    """Write a number of tokens as in ``32k``, if it is so many times 1024."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)
