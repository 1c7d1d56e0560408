"""An answer: Markdown that grows while the model writes, and the receipt of what it cost."""

from __future__ import annotations

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from ..text import visible


def _parser() -> MarkdownIt:
    # HTML would be dropped from the screen; as text it is seen, "<think>" and all.
    return MarkdownIt("gfm-like", {"html": False})


class AnswerTurn(Vertical):
    """Owns one Markdown document and its stream; texts come whole and only what is new is drawn."""

    def __init__(self, number: int) -> None:
        """Empty answer ``number``, waiting."""
        super().__init__(classes="-waiting")
        self.number = number
        self.text = ""
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        """A waiting mark, the document, the receipt."""
        yield Static(Content("▍"), classes="answer-waiting")
        yield Markdown(parser_factory=_parser, open_links=False)
        yield Static(Content(""), classes="answer-receipt")

    async def grow(self, text: str) -> None:
        """Show ``text``, which begins with what is shown already."""
        shown = visible(text)
        fresh, self.text = shown[len(self.text) :], shown
        if not fresh:
            return
        self.remove_class("-waiting")
        if self._stream is None:
            self._stream = Markdown.get_stream(self.query_one(Markdown))
        await self._stream.write(fresh)

    async def end(self, text: str, receipt: str) -> None:
        """The answer is complete: draw what is left of ``text`` and the ``receipt``."""
        await self.grow(text)
        self.remove_class("-waiting")
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        self.query_one(Markdown).display = bool(self.text)
        self.query_one(".answer-receipt", Static).update(Content(visible(receipt)))
        self.add_class("-ended")
