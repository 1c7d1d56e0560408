"""The methods of an engine that commands and the chat use, in this process or in a child."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape, Thinking


class Experts(Protocol):
    """Describe the part of ``Llama.experts`` that the chat reads."""

    @property
    def shape(self) -> ModelShape | None:
        """Describe the routed experts; None for a dense model."""

    @property
    def device(self) -> str:
        """Give the name of the device."""

    @property
    def notes(self) -> list[str]:
        """List sentences for the user."""

    @property
    def free_before(self) -> tuple[int, int] | None:
        """Give the bytes of device memory and of RAM that were free before the load; None if unknown."""

    def stats(self) -> ExpertStats:
        """Read the counters since the model was loaded."""

    def residency(self) -> BoolArray:
        """Tell which experts are resident, ``(layers, experts)``."""

    def heat(self) -> FloatArray:
        """Read how often each expert was routed to, ``(layers, experts)``."""

    def last(self) -> IdArray:
        """Read the expert ids of the last token, ``(layers, k)``."""

    def in_ram(self) -> float | None:
        """Measure the share of the expert bytes in RAM; None if the system does not report it."""

    def resize(self, vram: str) -> object:
        """Change the budget."""

    def pin(self, layer: int, expert: int, pinned: bool = True) -> object:
        """Keep an expert on the device, or release it. Call it only if :func:`can_pin` is True."""


class Engine(Protocol):
    """Describe the part of :class:`edgemoe.Llama` that the chat needs."""

    @property
    def experts(self) -> Experts:
        """Give the expert side of the model."""

    @property
    def thinking(self) -> Thinking:
        """Describe the model's thinking before it answers."""

    def n_ctx(self) -> int:
        """Give the context size in tokens."""

    def create_chat_completion(self, messages: list[Any], **keywords: Any) -> Any:
        """Yield OpenAI chunks if ``stream=True`` is among the keywords."""

    def cancel(self) -> None:
        """Stop the current answer; any thread may call this."""

    def close(self) -> None:
        """Free the model."""


def can_pin(experts: Experts) -> bool:
    """Tell whether the engine can pin experts; not every engine can."""
    return bool(getattr(experts, "can_pin", hasattr(experts, "pin")))


def thinking_of(engine: Engine) -> Thinking:
    """Describe the model's thinking. An engine without this property counts as one without thinking."""
    thinking: Thinking = getattr(engine, "thinking", Thinking())
    return thinking


class EngineSource(Protocol):
    """Describe a source of engines, such as :class:`edgemoe.worker.Worker`. A chat opens a new engine after a crash."""

    def open(self, died: Callable[[], None], read: Callable[[float], None]) -> Engine:
        """Load the model.

        Args:
            died: called from any thread if the engine ends without a request to do so.
            read: called from any thread with the share of the model's files in RAM.
        """

    def abort(self) -> None:
        """Stop a load in progress; any thread may call this. Afterwards no engine can be opened."""
