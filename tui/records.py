"""Plain records that cross from the engine's threads to the screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from edgemoe.answer.record import Answer, ToolCall
from edgemoe.types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape, Thinking

if TYPE_CHECKING:
    from edgemoe.worker.protocol import EngineSource

# ``reading``: the model reads the prompt; ``thinking``: thinking arrives; ``answering``: the answer itself arrives.
State = Literal["loading", "idle", "reading", "thinking", "answering", "stopping", "stopped", "failed", "no model"]
UNDER_WAY: tuple[State, ...] = ("reading", "thinking", "answering")
Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class ChatSettings:
    """Choices of the command line for this chat.

    Attributes:
        title: name of the model as shown.
        system: system prompt, empty for none.
        sampling: keywords for ``create_chat_completion``, such as ``max_tokens`` and ``temperature``.
        resume: open the conversation that was used last.
        look: a name of :data:`edgemoe.tui.theme.LOOKS`, or ``auto``.
        think: how much the model shall think, a word of :data:`edgemoe.answer.effort.LEVELS`; empty for the
            template's default.
    """

    title: str = "model"
    system: str = ""
    sampling: Mapping[str, float | int] | None = None
    resume: bool = False
    look: str = "auto"
    think: str = ""


@dataclass(frozen=True)
class Opened:
    """A model by its ``title``, where its ``engines`` come from, and the ``sampling`` that suits it; empty for none."""

    title: str = ""
    engines: EngineSource | None = None
    sampling: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelChoice:
    """A model that can be opened, or fetched first.

    Attributes:
        name: opens it.
        title: is shown.
        detail: says more in a line.
        size: of its file, in words.
        parameters: all and active ones, in words.
        here: it is on this disk.
        removable: it came from the hub and can go again.
    """

    name: str
    title: str
    detail: str = ""
    here: bool = True
    removable: bool = False
    size: str = ""
    parameters: str = ""


@dataclass(frozen=True)
class ModelCard:
    """A loaded model in figures.

    Attributes:
        device: device of the hot experts, ``none`` without one.
        shape: its experts, None for a dense model.
        context: size of the context in tokens.
        notes: remarks of the engine about it, one sentence each.
        stats: counters right after loading, None for a dense model.
        can_pin: experts can be pinned to the device.
        thinking: how the model thinks before it answers.
        free_before: bytes of device memory and of RAM that were free before it was loaded, None where not known.
    """

    device: str
    shape: ModelShape | None
    context: int
    notes: tuple[str, ...] = ()
    stats: ExpertStats | None = None
    can_pin: bool = False
    free_before: tuple[int, int] | None = None
    thinking: Thinking = field(default_factory=Thinking)


@dataclass(frozen=True)
class ExpertMaps:
    """The experts at one moment, all arrays owned by this record.

    Attributes:
        residency: bool, shape ``(layers, experts)``: on the device.
        heat: float, shape ``(layers, experts)``: how often routed to.
        last: int32, shape ``(layers, k)``: experts of the last token, -1 where unknown.
    """

    residency: BoolArray
    heat: FloatArray
    last: IdArray


@dataclass
class Key:
    """Where a row is in the database: ``id`` is filled in by the thread that owns it, None where it is not kept."""

    id: int | None = None


@dataclass(frozen=True)
class Turn:
    """One message of the conversation.

    Attributes:
        role: of its writer.
        text: the question, or the answer without the thinking.
        key: the row in the database.
        note: the receipt of an answer.
        thought: of the model before its answer.
        thought_s: seconds that it thought, None where that is not known.
        calls: tools that the model called.
    """

    role: Role
    text: str
    key: Key = field(default_factory=Key, compare=False)
    note: str = ""
    thought: str = ""
    thought_s: float | None = None
    calls: tuple[ToolCall, ...] = ()

    @property
    def answer(self) -> Answer:
        """The turn as an answer."""
        return Answer(self.text, self.thought, self.thought_s, self.calls)

    def with_answer(self, answer: Answer) -> Turn:
        """The turn with another answer in it."""
        return replace(self, text=answer.text, thought=answer.thought, thought_s=answer.thought_s, calls=answer.calls)
