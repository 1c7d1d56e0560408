"""An answer as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCall:
    """A tool that a model called: the ``name``, and the ``arguments`` as JSON text."""

    name: str
    arguments: str = ""


@dataclass(frozen=True)
class Answer:
    """An answer, complete or under way. It is true when the model gave anything at all.

    Attributes:
        text: the answer itself, without the thinking.
        thought: what the model thought before it answered.
        thought_s: seconds that it thought, None when it did not or when that is not known.
        calls: tools that it called.
    """

    text: str = ""
    thought: str = ""
    thought_s: float | None = None
    calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is text, thinking or a call."""
        return bool(self.text or self.thought or self.calls)

    def followed_by(self, more: Answer) -> Answer:
        """This answer with ``more`` of it, which the model gave when it was asked to go on."""
        thought = "\n\n".join(part for part in (self.thought, more.thought) if part)
        known = [part for part in (self.thought_s, more.thought_s) if part is not None]
        return Answer(self.text + more.text, thought, sum(known) if known else None, self.calls + more.calls)
