"""The settings of the next answers in a window: sampling, thinking, system prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input, Static

from edgemoe.answer import effort, sampling
from edgemoe.types import Thinking

from .window import Window

_THINK, _SYSTEM = "think", "system"
_KEYS = "Enter use · Ctrl+S keep for this model · Up, Down move · Esc back"


@dataclass(frozen=True)
class Chosen:
    """The settings in force: ``sampling`` keywords, level to ``think``, ``system`` prompt; ``keep`` for the model."""

    sampling: Mapping[str, sampling.Value] = field(default_factory=dict)
    think: str = ""
    system: str = ""
    keep: bool = False


class SettingsScreen(Window[Chosen | None]):
    """Gives the settings as the user left them, None for no change."""

    BINDINGS = [
        Binding("down", "app.focus_next", show=False),
        Binding("up", "app.focus_previous", show=False),
        Binding("ctrl+s", "use(True)", show=False, priority=True),
    ]

    def __init__(self, now: Chosen, thinking: Thinking) -> None:
        """Begin with ``now``; ``thinking`` names the levels that the model knows."""
        super().__init__()
        self._now, self._thinking = now, thinking

    def compose(self) -> ComposeResult:
        """One line for each setting: name, value, effect."""
        most = sampling.limit({}, self._thinking)
        with Vertical(classes="window -small -settings"):
            with VerticalScroll(can_focus=False):
                for setting in sampling.SETTINGS:
                    usual = "rest of context" if setting.name == "max_tokens" and most is None else "default"
                    usual = str(most) if setting.name == "max_tokens" and most is not None else usual
                    value = self._now.sampling.get(setting.name, "")
                    yield from self._line(setting.name, str(value), usual, _explained(setting))
                levels = ", ".join(self._thinking.levels)
                if levels:
                    yield from self._line(_THINK, self._now.think, "default", levels)
                yield from self._line(_SYSTEM, self._shown_system, "no system prompt", "")
            yield Static(id="settings-news", classes="window-news", markup=False)
            yield Static(_KEYS, classes="window-keys", markup=False)

    @property
    def _shown_system(self) -> str:
        return " ".join(self._now.system.split())

    def _line(self, name: str, value: str, usual: str, words: str) -> ComposeResult:
        with Horizontal(classes="setting"):
            yield Static(name, classes="setting-name", markup=False)
            yield Input(value, placeholder=usual, id=f"setting-{name}", classes="setting-value", select_on_focus=True)
            if words:
                yield Static(words, classes="setting-help", markup=False)

    def on_mount(self) -> None:
        """Name the window."""
        self.query_one(".window", Vertical).border_title = "settings"

    @on(Input.Submitted)
    def _entered(self) -> None:
        self.action_use(False)

    @on(Input.Changed)
    def _typed(self) -> None:
        self.query_one("#settings-news", Static).update(Content(""))

    def action_use(self, keep: bool) -> None:
        """Close with the settings, unless one of them is out of its range: then say so and go there."""
        chosen: dict[str, sampling.Value] = {}
        for setting in sampling.SETTINGS:
            if value := self._value(setting.name):
                try:
                    chosen = sampling.change(chosen, f"{setting.name} {value}")
                except ValueError as error:
                    self._complain(setting.name, str(error))
                    return
        think = self._value(_THINK).lower() if self._thinking.levels else self._now.think
        if think == effort.DEFAULT:
            think = ""
        if think and think != self._now.think and (why := effort.complaint(think, self._thinking)):
            self._complain(_THINK, why)
            return
        system = self._value(_SYSTEM)
        self.dismiss(Chosen(chosen, think, self._now.system if system == self._shown_system else system, keep))

    def _value(self, name: str) -> str:
        return self.query_one(f"#setting-{name}", Input).value.strip()

    def _complain(self, name: str, why: str) -> None:
        self.query_one("#settings-news", Static).update(Content(why))
        self.query_one(f"#setting-{name}", Input).focus()


def _explained(setting: sampling.Setting) -> str:
    wide = f"{setting.low:g} to {setting.high:g}" if setting.high < 1e6 else ""
    return " · ".join(filter(None, (wide, setting.help)))
