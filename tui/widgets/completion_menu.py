"""The menu above the prompt: completions of the text, as aligned columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import on
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from edgemoe.text.display import one_line

from ..completion import Candidate

WIDEST_LABEL = 40  # characters


class CompletionMenu(OptionList, can_focus=False):
    """Shows candidates; the prompt keeps the keys and moves the highlight."""

    @dataclass
    class Clicked(Message):
        """The user clicked ``candidate``."""

        candidate: Candidate

    def __init__(self) -> None:
        """Hide until there is something to show."""
        super().__init__(id="completions", markup=False)
        self._candidates: Sequence[Candidate] = ()

    def on_mount(self) -> None:
        """Hide."""
        self.display = False

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The candidates that are shown."""
        return self._candidates if self.display else ()

    @property
    def chosen(self) -> Candidate | None:
        """The highlighted candidate."""
        return self._candidates[self.highlighted] if self.display and self.highlighted is not None else None

    def show(self, candidates: Sequence[Candidate]) -> None:
        """Show ``candidates``, the first of them highlighted; hide without any."""
        was_shown, self.display = self.display, bool(candidates)
        if was_shown and candidates == self._candidates:
            return
        self._candidates = candidates
        width = min(max((len(candidate.label) for candidate in candidates), default=0), WIDEST_LABEL)
        self.clear_options()
        self.add_options([Option(_line(candidate, width)) for candidate in candidates])
        self.highlighted = 0 if candidates else None

    def move(self, step: int) -> None:
        """Highlight the next or the one before."""
        if step > 0:
            self.action_cursor_down()
        else:
            self.action_cursor_up()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Clicked(self._candidates[event.option_index]))


def _line(candidate: Candidate, width: int) -> Content:
    label = one_line(candidate.label, width)
    return Content.assemble((f"{label:<{width}}", "bold"), "  ", (candidate.detail, "$muted"))
