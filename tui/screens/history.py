"""Earlier conversations: a list, and a search through every word of them."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from dataclasses import dataclass

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgemoe.text.display import ago, one_line, visible

from ..archive import Archive
from ..store import Summary
from .window import Picks, PickWindow

_SHOWN = 60
_AGE, _MODEL = 11, 20  # characters of the columns


@dataclass(frozen=True)
class Found:
    """A conversation of the database by its id, and the ``words`` that were searched for."""

    chat: int
    words: str = ""


class HistoryScreen(PickWindow[Found | None]):
    """Gives the conversation that was chosen, None for none.

    Attributes:
        news: the last word about deleting.
    """

    BINDINGS = [
        Binding("ctrl+r", "dismiss(None)", show=False),
        # Before the field above, which would delete a letter.
        Binding("ctrl+d", "delete", "Delete", id="history.delete", priority=True),
    ]

    def __init__(self, archive: Archive, open_chat: int | None) -> None:
        """Look into ``archive``; ``open_chat`` is on the screen and cannot be deleted."""
        super().__init__()
        self._archive, self._open_chat = archive, open_chat
        self._doomed = ""  # the option that Ctrl+D deletes when it is pressed again
        self.news = ""

    def compose(self) -> ComposeResult:
        """The words to search for above, the conversations below."""
        with Vertical(classes="window"):
            yield Input(placeholder="Search all conversations")
            yield Picks(markup=False)
            yield Static("", id="history-news", classes="window-news", markup=False)
            yield Static("Enter open · Up, Down choose · Ctrl+D delete · Esc back", classes="window-keys", markup=False)

    def on_mount(self) -> None:
        """Begin with the newest."""
        self.query_one(".window", Vertical).border_title = "conversations"
        self._show("")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._show(event.value)

    @on(Input.Submitted)
    def _chosen(self) -> None:
        if (option := self._highlighted()) is not None:
            self._open(option)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self._open(event.option)

    def _open(self, option: Option) -> None:
        if option.id is not None:
            self.dismiss(Found(int(option.id), self.query_one(Input).value.strip()))

    def _highlighted(self) -> Option | None:
        found = self.query_one(Picks)
        at = found.highlighted
        return found.get_option_at_index(at) if at is not None and found.option_count else None

    def action_delete(self) -> None:
        """Ask whether the highlighted conversation shall be forgotten; the second time, forget it."""
        option = self._highlighted()
        if option is None or option.id is None:
            return
        if option.id == str(self._open_chat):
            self._say("this conversation is open: Ctrl+N begins another one first")
        elif option.id != self._doomed:
            self._doomed = option.id
            self._say("Ctrl+D again deletes it for ever, with all its branches")
        else:
            chat, self._doomed = int(option.id), ""
            self._archive.save(lambda store: store.delete(chat))
            self._say("deleted")
            self._show(self.query_one(Input).value)

    @on(OptionList.OptionHighlighted)
    def _moved(self, event: OptionList.OptionHighlighted) -> None:
        if event.option.id != self._doomed:
            self._doomed = ""
            self._say("")

    def _say(self, text: str) -> None:
        self.news = text
        self.query_one("#history-news", Static).update(Content(text))

    @work(exclusive=True)  # a search that another letter has overtaken is not shown
    async def _show(self, text: str) -> None:
        found = self.query_one(Picks)
        try:
            summaries = await asyncio.wrap_future(self._archive.do(lambda store: store.search(text, _SHOWN)))
        except sqlite3.Error as error:
            self.notify(str(error), severity="error")
            return
        words, room = text.split(), max(found.size.width - 4, 40)
        found.clear_options()
        found.add_options([Option(_line(summary, words, room), id=str(summary.id)) for summary in summaries])
        if summaries:
            found.highlighted = 0
        else:
            found.add_option(Option(Content("nothing found" if text else "no conversations yet"), disabled=True))


def _line(summary: Summary, words: list[str], room: int) -> Content:
    """Give three columns in ``room`` characters, and below them the surroundings of the words that were found."""
    width = max(room - _AGE - _MODEL - 2, _MODEL)
    age = f"{ago(time.time() - summary.changed):>{_AGE}}  {one_line(summary.model, _MODEL)}"
    line = Content.assemble((f"{one_line(summary.title, width):<{width}}", "bold"), (age, "$text-muted"))
    if not summary.excerpt:
        return line
    return Content.assemble(line, "\n  ", marked(visible(summary.excerpt), words))


def marked(text: str, words: list[str]) -> Content:
    """``text`` with every one of ``words`` in it marked."""
    content = Content.styled(text, "$text-muted")
    for word in filter(None, words):
        for found in re.finditer(re.escape(word), text, re.IGNORECASE):
            content = content.stylize("bold $primary", *found.span())
    return content
