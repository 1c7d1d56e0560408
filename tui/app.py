"""The terminal chat as an application: themes, the palette's commands, and the life of the session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.screen import Screen

from edgemoe.worker.protocol import EngineSource

from . import messages as told
from .archive import Archive
from .records import ChatSettings
from .screens.chat import ChatScreen, Services
from .session import ChatSession
from .theme import LOOKS, chosen, nearest, other
from .tidying import LOOK_SECONDS, Tidying


class ChatApp(App[None]):
    """Chat with the model that ``engines`` opens, once the screen is there."""

    TITLE = "EdgeMoE"
    CSS_PATH = "app.tcss"
    BINDINGS = [
        Binding("ctrl+q", "quit", "Quit", show=False, priority=True, id="app.quit"),
        Binding("ctrl+p", "command_palette", "Commands", show=False, priority=True, id="app.palette"),
    ]

    def __init__(
        self,
        engines: EngineSource | None,
        settings: ChatSettings | None = None,
        chats: Path | None = None,
        services: Services | None = None,
    ) -> None:
        """Nothing is loaded before the app runs.

        Args:
            engines: opens the model; without one the user chooses among the models there are.
            settings: what the command line decided.
            chats: database of conversations; nothing is kept without one.
            services: other models, presets, keys.
        """
        super().__init__()
        self._settings = settings or ChatSettings()
        self.session = ChatSession(engines, self._deliver)
        self._chats, self._services = chats, services or Services()
        self._archive: Archive | None = None
        self._chat_screen: ChatScreen | None = None
        self._tidying = Tidying()

    def on_mount(self) -> None:
        """Dress, show the chat, then load."""
        for theme in LOOKS.values():
            self.register_theme(theme)
        self.theme = chosen(self._settings.look, self.console.color_system).name
        if self._chats is not None:
            self._archive = Archive(self._chats, lambda text: self._deliver(told.ArchiveSaid(text)))
        self._chat_screen = ChatScreen(self.session, self._settings, self._archive, self._services)
        self.set_keymap(self._services.keys.keymap())
        self.push_screen(self._chat_screen)
        # After the first frame: the child's start would compete with it for the processor.
        self._chat_screen.call_after_refresh(self._begin)

    def _begin(self) -> None:
        if not self.is_headless:  # a process of its own
            self._tidying.begin()
            self.set_interval(LOOK_SECONDS, self._tidying.look)
        self.session.open()

    async def on_event(self, event: events.Event) -> None:
        """Note when a key comes."""
        if isinstance(event, events.Key):
            self._tidying.key()
        await super().on_event(event)

    def _deliver(self, message: Any) -> None:
        """Called in other threads: ``post_message`` is the one way out of them."""
        if self._chat_screen is not None:
            self._chat_screen.post_message(message)

    async def on_unmount(self) -> None:
        """Stop the engine and finish writing without holding up the last frame."""
        await asyncio.to_thread(self.session.close)
        if self._archive is not None:
            await asyncio.to_thread(self._archive.close)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette offers: the chat's own commands first."""
        if isinstance(screen, ChatScreen):
            yield SystemCommand("New chat", "Begin another conversation", screen.action_new_chat)
            yield SystemCommand("Stop", "Stop the answer under way", screen.action_stop)
            yield SystemCommand("History", "Open an earlier conversation, or search", screen.action_history)
            yield SystemCommand("Models", "Open another model", screen.action_models)
            yield SystemCommand("Thinking", "Show or hide the thinking", screen.action_toggle_thinking)
            yield SystemCommand("Copy", "Copy the last answer", screen.action_copy)
            yield SystemCommand("Experts", "Show or hide the expert map", screen.action_toggle_experts)
        yield SystemCommand("Light or dark", "Change between the two looks", self.action_toggle_look)
        yield from super().get_system_commands(screen)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own colours under a theme that is not ours: those of the look it is closest to."""
        return dict(nearest(self.current_theme).variables)

    def action_toggle_look(self) -> None:
        """Change between the dark and the light theme."""
        self.theme = other(self.current_theme).name
