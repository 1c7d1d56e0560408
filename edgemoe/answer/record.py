"""An answer as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCall:
    """Hold a model's call of a tool: the ``name``, and the ``arguments`` as JSON text."""

    name: str
    arguments: str = ""


@dataclass(frozen=True)
class Answer:
    """Hold an answer, complete or growing. It is true if the model gave any text, thinking or call.

    Attributes:
        text: text of the answer, without the thinking.
        thought: thinking before the answer.
        thought_s: seconds of the thinking; None without thinking or if the time is unknown.
        calls: calls of tools.
    """

    text: str = ""
    thought: str = ""
    thought_s: float | None = None
    calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is text, thinking or a call."""
        return bool(self.text or self.thought or self.calls)

    def followed_by(self, more: Answer) -> Answer:
        """Append ``more``, the continuation of this answer."""
        thought = "\n\n".join(part for part in (self.thought, more.thought) if part)
        known = [part for part in (self.thought_s, more.thought_s) if part is not None]
        return Answer(self.text + more.text, thought, sum(known) if known else None, self.calls + more.calls)
