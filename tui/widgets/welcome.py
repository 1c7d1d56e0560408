"""The first thing on the screen: the model that loads, then what it is and how to begin."""

from __future__ import annotations

import time

from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from ..failures import Failure
from ..keys import Keys
from ..records import ModelCard
from ..text import count, one_line, size, visible

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_KEYS = (("send", "send"), ("stop", "stop"), ("experts", "experts"), ("models", "models"), ("palette", "commands"))


class Welcome(Static):
    """Loading, loaded or failed, in words."""

    def __init__(self, title: str, keys: Keys) -> None:
        """Name the model that is being loaded, and ``keys`` once it is there."""
        super().__init__(Content(""))
        self._keys = keys
        self._title = one_line(title, 60)
        self._began = time.monotonic()
        self._timer: Timer | None = None

    def on_mount(self) -> None:
        """Show that loading is alive."""
        self._tick()
        self._timer = self.set_interval(0.1, self._tick)

    def loaded(self, card: ModelCard) -> None:
        """The model is ready: say what it is."""
        rows = [
            ("model", self._title),
            ("device", _device(card)),
            ("context", f"{count(card.context)} tokens"),
        ]
        if (shape := card.shape) is not None:
            many = f"{count(shape.layers * shape.experts)} in {shape.layers} layers, {shape.used} per token"
            rows.insert(2, ("experts", f"{many}, {size(sum(shape.expert_bytes) * shape.experts)}"))
        table = Content("\n").join(Content.assemble((f"{name:>8}  ", "$muted"), visible(value)) for name, value in rows)
        notes = [Content.assemble("\n", (visible(note), "$muted")) for note in card.notes]
        named = [*((self._keys.shown(name), does) for name, does in _KEYS), ("/help", "")]
        keys = Content("   ").join(Content.assemble((key, "bold"), f" {does}".rstrip()) for key, does in named)
        self._settle(Content.assemble(_NAME, "\n\n", table, "\n", *notes, "\n", keys))

    def failed(self, failure: Failure) -> None:
        """The model did not load: say why and what to do."""
        hint = f"\n\nhint: {visible(failure.hint)}" if failure.hint else ""
        title = ("The model could not be loaded", "bold $error")
        self._settle(Content.assemble(_NAME, "\n\n", title, "\n", visible(failure.text), (hint, "$muted")))

    def _tick(self) -> None:
        elapsed = time.monotonic() - self._began
        mark = _SPINNER[int(elapsed * 10) % len(_SPINNER)]
        words = f"  loading {self._title}  "
        self.update(Content.assemble(_NAME, "\n\n", (mark, "$primary"), words, (f"{elapsed:.1f} s", "$muted")))

    def _settle(self, content: Content) -> None:
        if self._timer is not None:
            self._timer.stop()
        self.update(content)


_NAME = Content.assemble(
    ("Edge", "bold"),
    ("MoE", "bold $primary"),
    ("   hot experts on the device, cold ones on the CPU", "$muted"),
)


def _device(card: ModelCard) -> str:
    if card.device == "none":
        return "none, all on the CPU"
    if card.stats is None or not card.stats.slots:
        return card.device
    return f"{card.device}, {count(card.stats.slots)} experts fit in {size(card.stats.slot_bytes)}"
