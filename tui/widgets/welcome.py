"""The first thing on the screen: the model that loads, then its card, first questions and the chats of before."""

from __future__ import annotations

import time
from collections.abc import Sequence

from textual.content import Content
from textual.geometry import Size
from textual.style import Style
from textual.timer import Timer
from textual.widgets import Static

from edgemoe.text.display import ago, count, one_line, percent, size, visible
from edgemoe.text.failures import Failure

from ..keys import Keys
from ..logo import LOGO, WORDS
from ..records import ModelCard
from ..store import Summary

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_KEYS = (("send", "send"), ("stop", "stop"), ("experts", "experts"), ("models", "models"), ("help", "help"))
STARTERS = (
    "Explain mixture-of-experts models in three sentences.",
    "Write a Python function that finds the primes below n.",
    "Plan a weekend in Lisbon for two people who like trains.",
)
_LOW, _HIGH = 20, 26  # lines of the screen: below the name is one line, from here the chats of before are there
_WIDEST = 72


class Welcome(Static):
    """Loading, loaded or failed, in words, in the middle of an empty chat."""

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
        self._card: ModelCard | None = None
        self._recent: Sequence[Summary] = ()
        self._starter = -1  # the last that the user asked for

    def on_mount(self) -> None:
        """Show that loading is alive, or how to choose a model."""
        if self._title:
            self.begin_loading(self._title)
        else:
            open_one = f"{self._keys.shown('models')} shows the models there are: open one, or download one.\n"
            small = "Try demo first: a small model, made in some seconds."
            advice = f"\n\n{self._advice}" if self._advice else ""
            self._say(Content.assemble("No model is open yet.\n", open_one, (small, "$muted"), advice))

    def begin_loading(self, title: str) -> None:
        """The model ``title`` is being loaded."""
        self._title, self._began, self._read, self._card = one_line(title, 60), time.monotonic(), 1.0, None
        self._tick()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(0.1, self._tick)

    def loaded(self, card: ModelCard) -> None:
        """Show the card of the model, which is ready."""
        self._card = card
        self._settle(self._whole(card))

    def show_recent(self, recent: Sequence[Summary]) -> None:
        """Offer the chats of before."""
        self._recent = recent
        if self._card is not None:
            self._say(self._whole(self._card))

    def next_starter(self) -> str:
        """Give the next of the first questions; empty while no model is there."""
        if self._card is None:
            return ""
        self._starter = (self._starter + 1) % len(STARTERS)
        return STARTERS[self._starter]

    def reading(self, share: float) -> None:
        """The model is being read from the disk."""
        self._read = share

    def failed(self, failure: Failure) -> None:
        """Tell why the model did not load, and the remedy."""
        hint = f"\n\nhint: {visible(failure.hint)}" if failure.hint else ""
        title = ("The model could not be loaded", "bold $error")
        self._settle(Content.assemble(title, "\n", visible(failure.text), (hint, "$muted")))

    def _whole(self, card: ModelCard) -> Content:
        parts = [self._about(card), self._starters()]
        if self._recent and self.app.size.height >= _HIGH:
            parts.append(self._chats())
        named = [(self._keys.shown(name), does) for name, does in _KEYS]
        parts.append(
            Content("   ").join(Content.assemble((key, "bold"), (f" {does}", "$muted")) for key, does in named)
        )
        return Content("\n\n").join(parts)

    def _about(self, card: ModelCard) -> Content:
        rows = [("model", self._title), ("device", _device(card)), ("context", f"{count(card.context)} tokens")]
        if (shape := card.shape) is not None:
            many = f"{count(shape.layers * shape.experts)} in {shape.layers} layers, {shape.used} per token"
            rows.insert(2, ("experts", f"{many}, {size(sum(shape.expert_bytes) * shape.experts)}"))
        lines = [Content.assemble((f"{name:<9}", "$muted"), visible(value)) for name, value in rows]
        lines += [Content.styled(visible(note), "$muted") for note in card.notes]
        return Content("\n").join(lines)

    def _starters(self) -> Content:
        lines = [Content.assemble(("ask", "bold $primary"), ("  Tab writes one of these into the prompt", "$muted"))]
        for number, starter in enumerate(STARTERS):
            lines.append(_link(f"  {starter}", f"screen.starter({number})"))
        return Content("\n").join(lines)

    def _chats(self) -> Content:
        key = self._keys.shown("history")
        lines = [Content.assemble(("go on", "bold $primary"), (f"  {key} shows all chats", "$muted"))]
        for chat in self._recent:
            title = one_line(chat.title, _WIDEST - 16)
            age = (f"  {ago(time.time() - chat.changed)}", "$muted")
            lines.append(Content.assemble(_link(f"  {title}", f"screen.resume({chat.id})"), age))
        return Content("\n").join(lines)

    def _tick(self) -> None:
        elapsed = time.monotonic() - self._began
        mark = _SPINNER[int(elapsed * 10) % len(_SPINNER)]
        words = f"  loading {self._title}  "
        read = f" · {percent(self._read)} read from the disk" if self._read < 1 else ""
        self._say(Content.assemble((mark, "$primary"), words, (f"{elapsed:.1f} s{read}", "$muted")))

    def _settle(self, content: Content) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._say(content)

    def _say(self, content: Content) -> None:
        name = Content("EdgeMoE") if self.app.size.height < _LOW else LOGO
        self.update(Content.assemble(name, "\n", WORDS, "\n\n", content))

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """As wide as the longest line, so that the block stands in the middle."""
        return min(super().get_content_width(container, viewport), container.width)

    def on_resize(self) -> None:
        """Keep to the upper third of a high screen."""
        room = self.screen.query_one("#transcript").size.height - self.size.height
        self.styles.margin = (max(room // 3, 0), 0, 1, 0)


def _link(text: str, action: str) -> Content:
    return Content.assemble((text, Style.from_meta({"@click": action})))


def _device(card: ModelCard) -> str:
    if card.device == "none":
        return "none, all on the CPU"
    if card.stats is None or not card.stats.slots:
        return card.device
    return f"{card.device}, {count(card.stats.slots)} experts fit in {size(card.stats.slot_bytes)}"
