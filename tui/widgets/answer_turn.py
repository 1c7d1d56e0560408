"""An answer: Markdown that grows while the model writes, and the receipt of its cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from edgemoe.answer.calls import in_words
from edgemoe.answer.record import Answer
from edgemoe.text.display import count, visible

from ..records import Key
from .markdown import GrowingMarkdown
from .message import ChatMessage
from .receipt_line import ReceiptLine
from .thought import Thought

PATIENCE_SECONDS = 1.0  # shorter waits need no words
TICK_SECONDS = 0.5
NOTHING = Answer()


class AnswerTurn(Vertical, ChatMessage, can_focus=True):
    """Owns a thought and one Markdown document; answers come whole and only the new part is drawn."""

    BLANK = True  # as in :class:`~edgemoe.tui.widgets.markdown.Section`

    def __init__(
        self,
        number: int,
        answer: Answer = NOTHING,
        receipt: str = "",
        key: Key | None = None,
    ) -> None:
        """Answer ``number``, empty and waiting; or complete with its ``answer`` and ``receipt``."""
        super().__init__(classes="-ended" if answer or receipt else "-waiting")
        self.number, self.key = number, key
        self._answer = replace(answer, text=visible(answer.text), thought=visible(answer.thought))
        self._receipt = visible(receipt)
        self._began = time.monotonic()
        self._text_length, self._thought_length = len(answer.text), len(answer.thought)  # before they were cleaned
        self._prompt_tokens = self._tokens_read = 0
        self._ticker: Timer | None = None
        # Held, not queried: the transcript asks about a turn before Textual has composed it.
        self._waiting = Static(Content("▍"), classes="answer-waiting")
        self._thought = Thought(self._answer.thought, answer.thought_s)
        self._document = GrowingMarkdown(self.text)
        self._calls = Static(Content(""), classes="answer-calls")
        self._receipt_line = ReceiptLine(Content(self._receipt), classes="answer-receipt")

    def compose(self) -> ComposeResult:
        """A waiting mark, the thinking, the document, the tool calls, the receipt."""
        yield from (self._waiting, self._thought, self._document, self._calls, self._receipt_line)

    def on_mount(self) -> None:
        """Show the answer so far."""
        self._draw_calls()
        if self.has_class("-ended"):
            self._document.display = bool(self.text)

    @property
    def text(self) -> str:
        """The answer as it is shown, without the thinking."""
        return self._answer.text

    @property
    def thought(self) -> str:
        """The thinking as it is shown."""
        return self._answer.thought

    def watch_has_focus(self, has_focus: bool) -> None:
        """Chosen, it has an edge that must be drawn."""
        self.BLANK = not has_focus  # type: ignore[misc]
        super().watch_has_focus(has_focus)

    def maker(self) -> Callable[[], AnswerTurn]:
        """Return a function that makes it again, complete."""
        return partial(AnswerTurn, self.number, self._answer, self._receipt, self.key)

    def expect(self, prompt_tokens: int) -> None:
        """About ``prompt_tokens`` have to be read first: say how that goes, where it takes a while."""
        self._prompt_tokens = prompt_tokens
        self._ticker = self.set_interval(TICK_SECONDS, self._tick)

    def read(self, tokens: int) -> None:
        """The model has read ``tokens`` of the prompt by now; never called where that is not known."""
        self._tokens_read = tokens

    def _tick(self) -> None:
        self._thought.tick()
        elapsed = time.monotonic() - self._began
        if not self.has_class("-waiting") or elapsed < PATIENCE_SECONDS:
            return
        about = f"about {count(self._prompt_tokens)} tokens"
        done = f"{count(min(self._tokens_read, self._prompt_tokens))} of {about}" if self._tokens_read else about
        self._waiting.update(
            Content.assemble("▍", (f" reading the prompt · {done} · {elapsed:.0f} s", "$muted")), layout=False
        )

    async def grow(self, answer: Answer, thinking: bool = False) -> None:
        """Show ``answer``, which continues the one on the screen; ``thinking`` while more thinking may come."""
        shown = self._answer
        # Only the new part is cleaned: the cost of a piece must not grow with the answer.
        fresh = visible(answer.text[self._text_length :])
        thought = shown.thought + visible(answer.thought[self._thought_length :])
        self._text_length, self._thought_length = len(answer.text), len(answer.thought)
        self._answer = Answer(shown.text + fresh, thought, answer.thought_s, answer.calls)
        if answer:
            self.remove_class("-waiting")
        self._thought.show(thought, answer.thought_s, thinking)
        if fresh:
            await self._document.grow(fresh)
        if len(answer.calls) > len(shown.calls):
            self._draw_calls()

    def show_thinking(self, unfolded: bool, key: str) -> None:
        """Unfold or fold the thinking; ``key`` does that."""
        self._thought.unfold(unfolded, key)

    def _draw_calls(self) -> None:
        calls = self._answer.calls
        self._calls.display = bool(calls)
        if calls:
            self._calls.update(Content("\n".join(in_words(call) for call in calls)))

    async def end(self, answer: Answer, receipt: str) -> None:
        """Draw the rest of the complete answer and the ``receipt``."""
        await self.grow(answer)
        self.remove_class("-waiting")
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None
        self._document.finish()
        self._document.display = bool(self.text)
        self._receipt = visible(receipt)
        self._receipt_line.update(Content(self._receipt))
        self.add_class("-ended")

    # Of a long answer only the last sections are there as widgets.

    @property
    def first_section(self) -> Widget | None:
        """The first section that is drawn, if others would be left without it."""
        drawn = self._document.drawn
        return drawn[0] if len(drawn) > 2 else None

    @property
    def has_more(self) -> bool:
        """There are sections above."""
        return self._document.has_more

    async def shorten(self) -> None:
        """Keep only the text of the first section that is drawn."""
        await self._document.shorten()

    async def lengthen(self) -> None:
        """Draw one more section."""
        await self._document.lengthen()
