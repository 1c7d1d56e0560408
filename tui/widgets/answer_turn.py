"""An answer: Markdown that grows while the model writes, and the receipt of what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from ..records import Key
from ..text import count, seconds, visible
from ..thinking import split
from .markdown import GrowingMarkdown
from .message import ChatMessage
from .receipt_line import ReceiptLine

PATIENCE_SECONDS = 1.0  # shorter waits need no words
TICK_SECONDS = 0.5


class AnswerTurn(Vertical, ChatMessage, can_focus=True):
    """Owns one Markdown document and its stream; texts come whole and only what is new is drawn."""

    BLANK = True  # as in :class:`~tui.widgets.markdown.Section`

    def __init__(
        self,
        number: int,
        text: str = "",
        receipt: str = "",
        thought_s: float | None = None,
        key: Key | None = None,
    ) -> None:
        """Answer ``number``, empty and waiting; or complete with its ``text`` and ``receipt``."""
        super().__init__(classes="-ended" if text or receipt else "-waiting")
        self.number, self.key = number, key
        self.text = visible(text)
        self._receipt = visible(receipt)
        self._shown = split(self.text).answer  # without the thinking
        self._began = time.monotonic()
        self._thought_s = thought_s
        self._unfolded, self._thinking_key = False, ""
        self._raw_length = len(text)  # of the text before it was cleaned
        self._prompt_tokens = self._tokens_read = 0
        self._ticker: Timer | None = None
        # Held, not queried: the transcript asks about a turn before Textual has composed it.
        self._waiting = Static(Content("▍"), classes="answer-waiting")
        self._thought = Static(Content(""), classes="answer-thought")
        self._document = GrowingMarkdown(self._shown)
        self._receipt_line = ReceiptLine(Content(self._receipt), classes="answer-receipt")

    def compose(self) -> ComposeResult:
        """A waiting mark, the thinking, the document, the receipt."""
        yield from (self._waiting, self._thought, self._document, self._receipt_line)

    def on_mount(self) -> None:
        """Show what there is already."""
        self._draw_thought()
        if self.has_class("-ended"):
            self._document.display = bool(self._shown)

    def watch_has_focus(self, has_focus: bool) -> None:
        """Chosen, it has an edge that must be drawn."""
        self.BLANK = not has_focus  # type: ignore[misc]
        super().watch_has_focus(has_focus)

    def maker(self) -> Callable[[], AnswerTurn]:
        """What makes it again, complete."""
        return partial(AnswerTurn, self.number, self.text, self._receipt, self._thought_s, self.key)

    def expect(self, prompt_tokens: int) -> None:
        """About ``prompt_tokens`` have to be read first: say how that goes, where it takes a while."""
        self._prompt_tokens = prompt_tokens
        self._ticker = self.set_interval(TICK_SECONDS, self._tick)

    def read(self, tokens: int) -> None:
        """The model has read ``tokens`` of the prompt by now; never called where that is not known."""
        self._tokens_read = tokens

    def _tick(self) -> None:
        elapsed = time.monotonic() - self._began
        if elapsed < PATIENCE_SECONDS:
            return
        about = f"about {count(self._prompt_tokens)} tokens"
        done = f"{count(min(self._tokens_read, self._prompt_tokens))} of {about}" if self._tokens_read else about
        self._waiting.update(
            Content.assemble("▍", (f" reading the prompt · {done} · {elapsed:.0f} s", "$muted")), layout=False
        )

    async def grow(self, text: str) -> None:
        """Show ``text``, which begins with what is shown already."""
        if len(text) == self._raw_length:
            return
        # Only what is new is cleaned: the cost of a piece must not grow with the answer.
        self.text += visible(text[self._raw_length :])
        self._raw_length = len(text)
        self._settle()
        parts = split(self.text)
        if parts.thought:
            if parts.closed and self._thought_s is None:
                self._thought_s = time.monotonic() - self._began
            self._draw_thought()
        fresh, self._shown = parts.answer[len(self._shown) :], parts.answer
        if fresh:
            await self._document.grow(fresh)

    def _settle(self) -> None:
        if self.has_class("-waiting"):
            self.remove_class("-waiting")
            self._began = time.monotonic()  # of the thinking, if there is any: reading the prompt was none
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None

    def show_thinking(self, unfolded: bool, key: str) -> None:
        """Unfold or fold the thinking; ``key`` does that."""
        self._unfolded, self._thinking_key = unfolded, key
        self._draw_thought()

    def _draw_thought(self) -> None:
        thought = split(self.text).thought
        self._thought.display = bool(thought)
        if not thought:
            return
        live = self._thought_s is None and not self.has_class("-ended")
        long = f" for {seconds(self._thought_s)}" if self._thought_s is not None else ""
        title = "thinking …" if live else f"thought{long}"
        mark = "▾" if self._unfolded else "▸"
        key = f"  ({self._thinking_key} shows it)" if self._thinking_key else ""
        self._thought.update(Content.assemble((f"{mark} {title}", "bold"), f"\n{thought}" if self._unfolded else key))

    async def end(self, text: str, receipt: str) -> None:
        """The answer is complete: draw what is left of ``text`` and the ``receipt``."""
        await self.grow(text)
        self._settle()
        self._document.finish()
        self._document.display = bool(self._shown)
        self._receipt = visible(receipt)
        self._receipt_line.update(Content(self._receipt))
        self.add_class("-ended")
        self._draw_thought()

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
