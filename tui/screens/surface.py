"""The chat screen as its parts see it: the seam that keeps them from knowing each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from textual.app import App
from textual.notifications import SeverityLevel
from textual.timer import Timer

from ..archive import Archive
from ..conversation import Conversation
from ..keys import Keys
from ..records import ModelCard, State
from ..session import ChatSession
from ..widgets.attachment_bar import AttachmentBar
from ..widgets.prompt import Prompt
from ..widgets.status_line import StatusLine
from ..widgets.transcript import Transcript


class Surface(Protocol):
    """The chat screen, as its parts see it.

    Attributes:
        session: runs the model.
        archive: keeps conversations, None where nothing is kept.
        conversation: the one that is open.
        card: the model, None while there is none.
        model_name: as it is shown.
        sampling: keywords of the next answers.
        think: how much the model shall think, empty for the template's default.
        keys: in force.
    """

    session: ChatSession
    archive: Archive | None
    conversation: Conversation
    card: ModelCard | None
    model_name: str
    sampling: dict[str, float | int]
    think: str
    keys: Keys

    @property
    def app(self) -> App[object]:
        """The application."""

    @property
    def state(self) -> State:
        """The state of the chat."""

    @property
    def busy(self) -> bool:
        """An answer is under way, or about to stop."""

    @property
    def transcript(self) -> Transcript:
        """Where turns and notes stand."""

    @property
    def status(self) -> StatusLine:
        """The last line."""

    @property
    def prompt(self) -> Prompt:
        """Where the user writes."""

    @property
    def attachments(self) -> AttachmentBar:
        """The attachments of the next question."""

    def enter(self, state: State) -> None:
        """Be in another state."""

    def show_head(self) -> None:
        """Show the title of the conversation and the settings in force."""

    def left(self) -> None:
        """Another conversation begins."""

    async def say(self, text: str, hint: str = "", wrong: bool = False) -> None:
        """A word from the program, in the transcript but not in the conversation."""

    def notify(self, message: str, *, severity: SeverityLevel = "information") -> None:
        """A passing word."""

    def set_timer(self, delay: float, callback: Callable[[], Any]) -> Timer:
        """Call back after ``delay`` seconds."""
