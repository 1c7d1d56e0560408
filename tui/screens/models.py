"""The models there are: a list to choose from, with a field that narrows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ..records import ModelChoice
from ..text import one_line

Choices = Callable[[], list[ModelChoice]]


class ModelsScreen(ModalScreen[str | None]):
    """Gives the name of the model that was chosen, None for none."""

    BINDINGS = [
        Binding("escape", "dismiss(None)", "Back", id="models.back"),
        Binding("down", "move(1)", show=False),
        Binding("up", "move(-1)", show=False),
    ]

    def __init__(self, choices: Choices, current: str) -> None:
        """Offer ``choices``, called in a thread as it looks at disks; ``current`` is the title of the open one."""
        super().__init__()
        self._choices, self._current = choices, current
        self._models: list[ModelChoice] = []

    def compose(self) -> ComposeResult:
        """What narrows the list above, the list below."""
        with Vertical(classes="picker"):
            yield Input(placeholder="Narrow down, or type the path of a GGUF file")
            yield OptionList()
            yield Static(Content("Enter open · Up, Down choose · Esc back"), classes="picker-keys")

    def on_mount(self) -> None:
        """Look for the models."""
        self.query_one(Vertical).border_title = "models"
        self._find()

    @work
    async def _find(self) -> None:
        self._models = await asyncio.to_thread(self._choices)
        self._show(self.query_one(Input).value)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._show(event.value)

    @on(Input.Submitted)
    def _entered(self, event: Input.Submitted) -> None:
        found = self.query_one(OptionList)
        if found.highlighted is not None and found.option_count:
            self._open(found.get_option_at_index(found.highlighted))
        elif event.value.strip():
            self.dismiss(event.value.strip())

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self._open(event.option)

    def _open(self, option: Option) -> None:
        self.dismiss(option.id)

    def action_move(self, step: int) -> None:
        """Choose the next or the one before, while the field keeps the focus."""
        found = self.query_one(OptionList)
        if step > 0:
            found.action_cursor_down()
        else:
            found.action_cursor_up()

    def _show(self, text: str) -> None:
        found = self.query_one(OptionList)
        words = text.lower().split()
        fitting = [model for model in self._models if all(word in _line(model).plain.lower() for word in words)]
        found.clear_options()
        found.add_options([Option(_line(model, model.title == self._current), id=model.name) for model in fitting])
        found.highlighted = 0 if fitting else None


def _line(model: ModelChoice, is_open: bool = False) -> Content:
    return Content.assemble(
        (one_line(model.title, 60), "bold"),
        ("  (open)" if is_open else "", "$primary"),
        (f"\n  {one_line(model.detail, 90)}", "$muted"),
    )
