"""An answer: Markdown that grows while the model writes, and the receipt of what it cost."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from ..text import count, seconds, visible
from ..thinking import split
from .markdown import GrowingMarkdown

PATIENCE_SECONDS = 1.0  # shorter waits need no words
TICK_SECONDS = 0.5


class AnswerTurn(Vertical):
    """Owns one Markdown document and its stream; texts come whole and only what is new is drawn."""

    BLANK = True  # as in :class:`~tui.widgets.markdown.Section`

    def __init__(self, number: int) -> None:
        """Empty answer ``number``, waiting."""
        super().__init__(classes="-waiting")
        self.number = number
        self.text = ""
        self._shown = ""  # of the answer without the thinking
        self._began = time.monotonic()
        self._thought_s: float | None = None
        self._unfolded = False
        self._raw_length = 0  # of the text before it was cleaned
        self._prompt_tokens = self._tokens_read = 0
        self._ticker: Timer | None = None

    def compose(self) -> ComposeResult:
        """A waiting mark, the document, the receipt."""
        yield Static(Content("▍"), classes="answer-waiting")
        yield Static(Content(""), classes="answer-thought")
        yield GrowingMarkdown()
        yield Static(Content(""), classes="answer-receipt")

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
        self.query_one(".answer-waiting", Static).update(
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
            await self.query_one(GrowingMarkdown).grow(fresh)

    def _settle(self) -> None:
        self.remove_class("-waiting")
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None

    def show_thinking(self, unfolded: bool) -> None:
        """Unfold or fold the thinking."""
        self._unfolded = unfolded
        self._draw_thought()

    def _draw_thought(self) -> None:
        thought = split(self.text).thought
        label = self.query_one(".answer-thought", Static)
        label.display = bool(thought)
        if not thought:
            return
        live = self.number > 0 and self._thought_s is None
        long = f" for {seconds(self._thought_s)}" if self._thought_s is not None and self.number else ""
        title = "thinking …" if live else f"thought{long}"
        mark = "▾" if self._unfolded else "▸"
        body = f"\n{thought}" if self._unfolded else ""
        label.update(
            Content.assemble((f"{mark} {title}", "bold"), "" if self._unfolded else "  (Ctrl+T shows it)", body)
        )

    async def end(self, text: str, receipt: str) -> None:
        """The answer is complete: draw what is left of ``text`` and the ``receipt``."""
        await self.grow(text)
        self._settle()
        document = self.query_one(GrowingMarkdown)
        document.finish()
        document.display = bool(self._shown)
        self.query_one(".answer-receipt", Static).update(Content(visible(receipt)))
        self.add_class("-ended")
