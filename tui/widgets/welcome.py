"""The first thing on the screen: the model that loads, then its card and the first keys."""

from __future__ import annotations

import time

from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from edgemoe.text.display import count, one_line, percent, size, visible
from edgemoe.text.failures import Failure

from ..keys import Keys
from ..records import ModelCard

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_KEYS = (("send", "send"), ("stop", "stop"), ("experts", "experts"), ("models", "models"), ("palette", "commands"))


class Welcome(Static):
    """Loading, loaded or failed, in words."""

    def __init__(self, title: str, keys: Keys, advice: str = "") -> None:
        """Name the model that is being loaded, empty when none is, and ``keys`` once it is there.

        Args:
            title: model that is being loaded.
            keys: those in force.
            advice: tells how models would be faster here, shown while none is open; a model has it among its notes.
        """
        super().__init__(Content(""))
        self._keys, self._advice = keys, advice
        self._title = one_line(title, 60)
        self._began = time.monotonic()
        self._timer: Timer | None = None
        self._read = 1.0  # share of the files that is in RAM

    def on_mount(self) -> None:
        """Show that loading is alive, or how to choose a model."""
        if self._title:
            self.begin_loading(self._title)
        else:
            open_one = f"{self._keys.shown('models')} shows the models there are: open one, or download one.\n"
            small = "Try demo first: a small model, made in some seconds."
            advice = f"\n\n{self._advice}" if self._advice else ""
            self.update(Content.assemble(_NAME, "\n\nNo model is open yet.\n", open_one, (small, "$muted"), advice))

    def begin_loading(self, title: str) -> None:
        """The model ``title`` is being loaded."""
        self._title, self._began, self._read = one_line(title, 60), time.monotonic(), 1.0
        self._tick()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(0.1, self._tick)

    def loaded(self, card: ModelCard) -> None:
        """Show the card of the model, which is ready."""
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

    def reading(self, share: float) -> None:
        """The model is being read from the disk."""
        self._read = share

    def failed(self, failure: Failure) -> None:
        """Tell why the model did not load, and the remedy."""
        hint = f"\n\nhint: {visible(failure.hint)}" if failure.hint else ""
        title = ("The model could not be loaded", "bold $error")
        self._settle(Content.assemble(_NAME, "\n\n", title, "\n", visible(failure.text), (hint, "$muted")))

    def _tick(self) -> None:
        elapsed = time.monotonic() - self._began
        mark = _SPINNER[int(elapsed * 10) % len(_SPINNER)]
        words = f"  loading {self._title}  "
        read = f" · {percent(self._read)} read from the disk" if self._read < 1 else ""
        self.update(Content.assemble(_NAME, "\n\n", (mark, "$primary"), words, (f"{elapsed:.1f} s{read}", "$muted")))

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
