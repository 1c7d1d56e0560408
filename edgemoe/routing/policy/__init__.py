"""The choice of experts for the device: pure decisions, without clocks, threads, files or randomness."""

from __future__ import annotations

from ...errors import ConfigError
from ...types import ModelShape
from .adaptive import DecayScorer
from .base import IntArray, Policy
from .demand import DemandPolicy
from .learned import Learned, Predictor
from .lfu import Frequency
from .lru import Recency
from .slots import least_slots, slots_for
from .static import Static

__all__ = ["IntArray", "Policy", "Predictor", "least_slots", "make", "slots_for"]

_SCORERS = {"lru": Recency, "lfu": Frequency, "adaptive": DecayScorer}


def make(name: str, shape: ModelShape, slots: IntArray, predictor: Predictor | None = None) -> Policy | None:
    """Make a policy by its user-facing name; None for ``off``.

    Args:
        name: ``adaptive``, ``static``, ``lru``, ``lfu`` or ``off``.
        shape: geometry of the model.
        slots: capacity of each layer, ``(layers,)``.
        predictor: scores experts for ``adaptive``, None when nothing was trained; no other policy uses it.

    Raises:
        ConfigError: there is no such policy.
    """
    if name == "off":
        return None
    if name == "static":
        return Static(shape, slots)
    if name == "adaptive" and predictor is not None:
        return DemandPolicy(name, shape, slots, Learned(shape, predictor))
    if name in _SCORERS:
        return DemandPolicy(name, shape, slots, _SCORERS[name](shape))
    raise ConfigError(f"policy={name!r} is unknown", f"one of: static, {', '.join(_SCORERS)}, off")
