"""Messages of the engine's threads to the screen: events in the past tense, and nothing else.

Messages that carry a whole state may replace an older one that still waits: a burst becomes one update.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from edgemoe.answer.growth import Growing
from edgemoe.answer.receipt import Receipt
from edgemoe.answer.record import Answer
from edgemoe.text.failures import Failure
from edgemoe.types import ExpertStats

from .records import ExpertMaps, ModelCard


@dataclass
class ModelLoaded(Message):
    """The model is ready."""

    card: ModelCard


@dataclass
class ModelReading(Message):
    """The model is being loaded; ``share`` of its files is in RAM."""

    share: float

    def can_replace(self, message: Message) -> bool:
        """Only the newest counts."""
        return isinstance(message, ModelReading)


@dataclass
class ModelFailed(Message):
    """The model could not be loaded."""

    failure: Failure


@dataclass
class EngineLost(Message):
    """The engine's process has died; it is being started again."""

    failure: Failure


@dataclass
class AnswerGrew(Message):
    """There is more of an answer; told once for all that comes until it is taken."""

    growing: Growing


@dataclass
class AnswerEnded(Message):
    """Answer ``number`` is complete: ``reason`` is ``stop``, ``length``, ``tool_calls``, ``stopped`` (by the user).

    It is ``full`` where the context ended before the answer did.
    """

    number: int
    answer: Answer
    reason: str
    receipt: Receipt


@dataclass
class AnswerFailed(Message):
    """Answer ``number`` broke off with an error; ``answer`` is its text so far.

    ``failure`` is None when the engine has died: ``EngineLost`` says how.
    """

    number: int
    answer: Answer
    failure: Failure | None


@dataclass
class ExpertsSampled(Message):
    """Counters, and the maps when somebody looks at them; ``in_ram`` is the share of the expert bytes that is there."""

    stats: ExpertStats
    maps: ExpertMaps | None
    in_ram: float | None = None

    def can_replace(self, message: Message) -> bool:
        """Only the newest sample counts."""
        return isinstance(message, ExpertsSampled)


@dataclass
class SamplingFailed(Message):
    """The experts could not be read; sampling has ended."""

    failure: Failure


@dataclass
class BudgetResized(Message):
    """The device memory for experts has changed to ``size``."""

    size: str
    stats: ExpertStats


@dataclass
class ResizeFailed(Message):
    """The device memory for experts could not be changed to ``size``."""

    size: str
    failure: Failure


@dataclass
class ArchiveSaid(Message):
    """The database of conversations has something to say, such as that it cannot write."""

    text: str


@dataclass
class Titled(Message):
    """The chat has another title, or another state, for the terminal's window."""

    title: str


@dataclass
class ExpertPinned(Message):
    """An expert stays on the device from now on, or no longer."""

    layer: int
    expert: int
    pinned: bool


@dataclass
class PinFailed(Message):
    """An expert could not be pinned."""

    failure: Failure
