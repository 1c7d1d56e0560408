"""A fence of code: its language, a mark that copies it, and lines that cost nothing while they grow."""

from __future__ import annotations

import asyncio
from functools import partial

from textual.app import ComposeResult
from textual.content import Content
from textual.style import Style
from textual.widgets import Static
from textual.widgets.markdown import MarkdownFence

from edgemoe.text.display import count, one_line

from .code_lines import CodeLines
from .sideways import Sideways

LONG_CODE = 4000  # characters that are coloured in some milliseconds
_known_languages: set[str] = set()  # with compiled rules
_COPY = "copy"
# How lines of a difference begin, and their look.
_DIFFERENCES = (("+++", "bold"), ("---", "bold"), ("@@", "$secondary"), ("+", "$success"), ("-", "$error"))


class FenceHead(Static):
    """The language of the code on the left, the mark on the right."""

    def __init__(self, language: str) -> None:
        """Name ``language``, empty for none."""
        super().__init__(Content(""), classes="fence-head")
        self._language = one_line(language, 40)

    def render(self) -> Content:
        """The line for the width there is."""
        gap = " " * max(self.content_size.width - len(self._language) - len(_COPY), 1)
        copy = (_COPY, Style.from_meta({"@click": "copy"}))
        return Content.assemble((self._language, "$muted"), gap, copy)

    def action_copy(self) -> None:
        """Copy the code."""
        assert isinstance(self.parent, CodeBlock)
        self.app.copy_to_clipboard(self.parent.code)
        self.app.notify(f"copied {count(len(self.parent.code))} characters")


class CodeBlock(MarkdownFence):
    """A fence that costs nothing while it grows."""

    BLANK = True  # its lines draw themselves
    complete = False
    _theme = ""  # that it is coloured for

    @classmethod
    def highlight(cls, code: str, language: str, ansi: bool = False, dark: bool = False) -> Content:
        """Give plain text: Textual asks for it on every piece."""
        return Content(code)

    @property
    def allow_horizontal_scroll(self) -> bool:
        """Not this one: the lines in it scroll."""
        return False

    def compose(self) -> ComposeResult:
        """Lines instead of Textual's label, which draws all of them for each new one."""
        yield FenceHead(self.lexer)
        yield Sideways(CodeLines(self.code))

    def set_content(self, content: Content) -> None:
        """More of the code has come."""
        self._content = content
        for lines in self.query(CodeLines):
            lines.show(content.plain)

    @property
    def coloured(self) -> bool:
        """Whether any of it has colours."""
        return any(lines.spans for lines in self.query(CodeLines))

    def notify_style_update(self) -> None:
        """Another theme has other colours; any other change of style leaves them."""
        if self.complete and self._theme != self.app.theme:
            self.finish()
        super(MarkdownFence, self).notify_style_update()

    def finish(self) -> None:
        """Colour the complete code, after the messages that wait now."""
        self.complete, self._theme = True, self.app.theme
        self.call_later(self._colour)

    async def _colour(self) -> None:
        dark, ansi = self.app.current_theme.dark, self.app.native_ansi_color
        colour = partial(_coloured, self.code, self.lexer, ansi, dark)
        # In a thread where it takes long, as it does for a language's first: keys come in between.
        quick = len(self.code) < LONG_CODE and self.lexer in _known_languages
        content = colour() if quick else await asyncio.to_thread(colour)
        _known_languages.add(self.lexer)
        for lines in self.query(CodeLines):
            lines.colour(content)


def _coloured(code: str, language: str, ansi: bool, dark: bool) -> Content:
    if language.lower() not in ("diff", "patch"):
        return MarkdownFence.highlight(code, language, ansi=ansi, dark=dark)
    lines = code.split("\n")
    looks = [next((look for begin, look in _DIFFERENCES if line.startswith(begin)), "") for line in lines]
    return Content("\n").join(Content.styled(line, look) for line, look in zip(lines, looks, strict=True))
