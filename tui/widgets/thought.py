"""The thought before an answer: one line that lives while the model thinks, unfolded by a key or a click.

A thought is often longer than its answer. Folded or unfolded, a look wraps the text from the beginning of the last
line on, and draws the lines that are seen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from rich.cells import cell_len, chop_cells
from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.widgets import Static

from edgemoe.text.display import duration, one_line

from .code_lines import CodeLines

TAIL_CHARACTERS = 400  # at the end of a thought; a folded one shows nothing before them
LEAST_ROOM = 8  # cells for the words of a thought under way
_WORD = re.compile(r"\S+|\s+")


def wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of ``text`` that are at most ``width`` cells wide; together with the line ends they are ``text``.

    A line depends on nothing before it: appended text changes the last line only.
    """
    for paragraph in text.split("\n"):
        line, used = "", 0
        for word in _WORD.findall(paragraph):
            cells = cell_len(word)
            if not word.isspace():  # space at the end of a line is not seen, however much there is
                if line and used + cells > width:
                    yield line
                    line, used = "", 0
                if cells > width:
                    *whole, word = chop_cells(word, max(width, 2))
                    yield from whole
                    cells = cell_len(word)
            line, used = line + word, used + cells
        yield line


class ThoughtLines(CodeLines):
    """A thought in plain text, wrapped to the width there is."""

    def __init__(self) -> None:
        """Empty."""
        self._whole = ""
        self._wrapped_width = 0
        self._ends = 0  # of the text before the last line
        super().__init__("")

    def show(self, text: str) -> None:
        """Show ``text``, which continues the one on the screen."""
        self._whole = text.replace("\t", " ")
        if self._wrapped_width > 0:
            self._replace(*self._fresh())

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One for each wrapped line."""
        if width != self._wrapped_width:
            self._wrapped_width, self._ends = width, 0
            self._lines = self._fresh()[1]
            self._strips.clear()
        return len(self._lines)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """All there is."""
        return container.width

    def _fresh(self) -> tuple[int, list[Content]]:
        """Wrap the text from the beginning of the last line on: the number of that line, and the new lines."""
        kept = max(len(self._lines) - 1, 0)
        lines = list(wrapped(self._whole[self._ends :], self._wrapped_width))
        self._ends = len(self._whole) - len(lines[-1])
        return kept, [Content(line) for line in lines]


class _Fold(Static):
    """The line that is clicked."""

    def on_click(self, event: events.Click) -> None:
        """Fold or unfold this thought."""
        event.stop()
        assert isinstance(self.parent, Thought)
        self.parent.toggle()

    def on_resize(self) -> None:
        """Show as much of a thought under way as there is room for now."""
        assert isinstance(self.parent, Thought)
        self.parent.tick()


class Thought(Vertical):
    """One thought: hidden while there is none."""

    def __init__(self, text: str = "", seconds: float | None = None) -> None:
        """Show a complete thought, which took ``seconds``, None where that is not known."""
        super().__init__(classes="answer-thought")
        self._text, self._seconds = text, seconds
        self._live_since: float | None = None  # when ``_seconds`` was told, while the model thinks
        self._row, self._row_begins = "", 0  # the words of a thought under way, and where in the text they begin
        self._unfolded, self._key = False, ""
        self._fold = _Fold(Content(""), classes="answer-fold")
        self._body = ThoughtLines()
        self._body.display = False

    def compose(self) -> ComposeResult:
        """The line, and the text below it."""
        yield from (self._fold, self._body)

    def on_mount(self) -> None:
        """Show the text so far."""
        self._draw()

    def show(self, text: str, seconds: float | None, live: bool) -> None:
        """Show ``text``, thought for ``seconds`` by now; ``live`` while the model still thinks."""
        if (text, seconds, live) != (self._text, self._seconds, self._live_since is not None):
            self._text, self._seconds = text, seconds
            self._live_since = time.monotonic() if live else None
            self._draw()

    def unfold(self, unfolded: bool, key: str) -> None:
        """Unfold or fold it; ``key`` is named, which does that for all."""
        self._unfolded, self._key = unfolded, key
        self._draw()

    def toggle(self) -> None:
        """Unfold or fold this one."""
        self.unfold(not self._unfolded, self._key)

    def tick(self) -> None:
        """Time goes by while the model thinks and gives nothing new."""
        if self._live_since is not None:
            self._draw_fold()

    def _draw(self) -> None:
        self.display = bool(self._text)
        if self._text:
            self._body.display = self._unfolded
            if self._unfolded:
                self._body.show(self._text)
            self._draw_fold()

    def _draw_fold(self) -> None:
        title = f"{'▾' if self._unfolded else '▸'} {self._title()}"
        if self._live_since is not None and not self._unfolded:
            rest = f" · {self._newest(self._fold.size.width - len(title) - 3)}"
        else:
            rest = f"  ({self._key} {'hides' if self._unfolded else 'shows'} it)" if self._key else ""
        self._fold.update(Content.assemble((title, "bold"), rest), layout=False)

    def _title(self) -> str:
        if self._live_since is None:
            return "thought" if self._seconds is None else f"thought for {duration(self._seconds)}"
        spent = (self._seconds or 0.0) + time.monotonic() - self._live_since
        return f"thinking {duration(spent)}" if spent >= 1 else "thinking"

    def _newest(self, room: int) -> str:
        """The last line of the thought in ``room`` cells; a longer one begins anew where these are full."""
        if room < LEAST_ROOM:  # too narrow, or not laid out yet
            return ""
        begin = max(self._row_begins, len(self._text) - TAIL_CHARACTERS)
        rows = list(wrapped(self._text[begin:], room))
        self._row_begins = len(self._text) - len(rows[-1])
        self._row = next((row for row in reversed(rows) if row.strip()), self._row)
        return one_line(self._row, len(self._row))
