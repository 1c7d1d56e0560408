"""The surface of an engine that commands and the chat rely on, in this process or in a child."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape, Thinking


class Experts(Protocol):
    """What the chat reads of ``Llama.experts``."""

    @property
    def shape(self) -> ModelShape | None:
        """Geometry, None for a dense model."""

    @property
    def device(self) -> str:
        """Name of the device."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the user."""

    @property
    def free_before(self) -> tuple[int, int] | None:
        """Bytes of device memory and of RAM that were free before the model was loaded, None where not known."""

    def stats(self) -> ExpertStats:
        """Counters since the model was loaded."""

    def residency(self) -> BoolArray:
        """Shape ``(layers, experts)``."""

    def heat(self) -> FloatArray:
        """Shape ``(layers, experts)``."""

    def last(self) -> IdArray:
        """Shape ``(layers, k)``."""

    def in_ram(self) -> float | None:
        """Share of the expert bytes that is in RAM, None where that is not known."""

    def resize(self, vram: str) -> object:
        """Change the budget."""

    def pin(self, layer: int, expert: int, pinned: bool = True) -> object:
        """Keep an expert on the device; called only where :func:`can_pin`."""


class Engine(Protocol):
    """What the chat needs of :class:`edgemoe.Llama`."""

    @property
    def experts(self) -> Experts:
        """The expert side of the model."""

    @property
    def thinking(self) -> Thinking:
        """How the model thinks before it answers."""

    def n_ctx(self) -> int:
        """Context size in tokens."""

    def create_chat_completion(self, messages: list[Any], **keywords: Any) -> Any:
        """OpenAI chunks with ``stream=True``."""

    def cancel(self) -> None:
        """Stop the answer under way, from any thread."""

    def close(self) -> None:
        """Free the model."""


def can_pin(experts: Experts) -> bool:
    """Whether the engine offers pinning: not every one does."""
    return bool(getattr(experts, "can_pin", hasattr(experts, "pin")))


def thinking_of(engine: Engine) -> Thinking:
    """How the model thinks; an engine that does not say is taken for one that never does."""
    thinking: Thinking = getattr(engine, "thinking", Thinking())
    return thinking


class EngineSource(Protocol):
    """Where engines come from, again when one has died: :class:`edgemoe.worker.Worker`, or a test."""

    def open(self, died: Callable[[], None], read: Callable[[float], None]) -> Engine:
        """Load the model, telling ``read`` which share of its files is in RAM.

        Both may be called from any thread, ``died`` when the engine ends uninvited.
        """

    def abort(self) -> None:
        """Give up a load under way, for good, from any thread."""
