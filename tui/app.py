"""The terminal chat as an application: themes, the palette's commands, and the life of the session."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from textual import events
from textual.app import App
from textual.binding import Binding
from textual.notifications import SeverityLevel
from textual.scrollbar import ScrollBar
from textual.theme import Theme

from edgemoe.worker.protocol import EngineSource

from . import messages as told
from .archive import Archive
from .look import Look
from .records import ChatSettings
from .screens.chat import ChatScreen, Services
from .screens.choice import ChoiceScreen, Row
from .session import ChatSession
from .theme import LOOKS, chosen, nearest, other
from .tidying import LOOK_SECONDS, Tidying
from .widgets.thin_bar import ThinBar

# Of the chat screen: label, action, key, purpose.
_COMMANDS = (
    ("New chat", "new_chat", "new", "begin another conversation"),
    ("Stop", "stop", "stop", "stop the answer under way"),
    ("History", "history", "history", "open an earlier conversation, or search"),
    ("Find", "find", "find", "find words in this chat"),
    ("Models", "models", "models", "open another model"),
    ("Settings", "settings", "", "temperature and the others, system prompt"),
    ("Thinking", "toggle_thinking", "thinking", "show or hide the thinking"),
    ("Copy", "copy", "copy", "copy the last answer"),
    ("Choose", "choose", "choose", "choose a message: copy, edit, answer it again"),
    ("Experts", "toggle_experts", "experts", "show or hide the expert map"),
    ("Pick", "pick", "pick", "pick an expert in the map"),
    ("Help", "help", "help", "all keys and commands"),
)


class ChatApp(App[None]):
    """Chat with the model that ``engines`` opens, once the screen is there."""

    TITLE = "EdgeMoE"
    CSS_PATH = "app.tcss"
    BINDINGS = [
        Binding("ctrl+q", "quit", "Quit", show=False, priority=True, id="app.quit"),
        Binding("ctrl+z", "suspend_process", "Suspend", show=False, priority=True, id="chat.suspend"),
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
            settings: choices of the command line.
            chats: database of conversations; nothing is kept without one.
            services: other models, presets, keys.
        """
        super().__init__()
        ScrollBar.renderer = ThinBar
        self._settings = settings or ChatSettings()
        self.session = ChatSession(engines, self._deliver)
        self._chats, self._services = chats, services or Services()
        self._archive: Archive | None = None
        self._chat_screen: ChatScreen | None = None
        self._tidying = Tidying()
        self._trying = False  # a theme is only looked at
        self._may_lose = False  # the user knows that something is not saved

    def on_mount(self) -> None:
        """Dress, show the chat, then load."""
        for theme in LOOKS.values():
            self.register_theme(theme)
        self._look = Look(self._chats.with_name("look")) if self._chats is not None else None
        self.theme = self._known_theme = self._first_theme()
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        if self._chats is not None:
            self._archive = Archive(self._chats, lambda text: self._deliver(told.ArchiveSaid(text)))
        self._chat_screen = ChatScreen(self.session, self._settings, self._archive, self._services)
        self.set_keymap(self._services.keys.keymap())
        self.push_screen(self._chat_screen)
        # After the first frame: the child's start would compete with it for the processor.
        self._chat_screen.call_after_refresh(self._begin)

    def _first_theme(self) -> str:
        """Choose the theme of the last time, unless the command line or the terminal asks for another."""
        fitting = chosen(self._settings.look, self.console.color_system)
        kept = self._look.read() if self._look is not None and self._settings.look == "auto" else ""
        theme = self.get_theme(kept)
        return kept if theme is not None and (theme.ansi or not fitting.ansi) else fitting.name

    def _theme_changed(self, theme: Theme) -> None:
        if not self._trying:
            self._keep_look(theme.name)

    def _keep_look(self, name: str) -> None:
        self._trying = False
        if self._look is not None and name != self._known_theme:  # Textual tells of the first one, too
            self._known_theme = name
            self._look.write(name)

    def notify(self, message: str, *, severity: SeverityLevel = "information", **more: Any) -> None:
        """Say a passing word in the edge of the prompt, where it covers nothing; over a window as a toast."""
        chat = self._chat_screen
        if chat is None or self.screen is not chat:
            super().notify(message, severity=severity, **more)
        elif len(message) < self.size.width - 6:
            chat.prompt.show_notice(message)
        else:
            self.run_worker(chat.say(message))

    async def action_quit(self) -> None:
        """Leave the chat; name unsaved messages once before."""
        archive = self._archive
        if archive is not None and archive.is_failing and not self._may_lose and self._chat_screen is not None:
            await asyncio.wrap_future(archive.save(lambda store: None))
            if archive.is_failing:
                self._may_lose = True
                hint = "/export FILE.md writes them; quit again leaves them"
                await self._chat_screen.say("The last messages are not saved.", hint, wrong=True)
                return
        self.exit()

    def on_titled(self, event: told.Titled) -> None:
        """Name the window of the terminal."""
        if not self.is_headless and self._driver is not None:
            self._driver.write(f"\x1b]2;{event.title}\x1b\\")

    def _begin(self) -> None:
        if not self.is_headless:  # a process of its own
            self._leave_on_signals()
            self._tidying.begin()
            self.set_interval(LOOK_SECONDS, self._tidying.look)
        self.session.open()

    def _leave_on_signals(self) -> None:
        """End as on the user's word when the system ends the process: the terminal gets its modes back."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else ():
            loop.add_signal_handler(number, self.exit, None, 128 + number)

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

    def action_command_palette(self) -> None:
        """Choose a command in a window."""
        if self.screen is self._chat_screen:
            self.push_screen(ChoiceScreen("commands", "Search for commands", self._commands()), self._run_command)

    def _commands(self) -> list[Row]:
        keys = self._services.keys
        rows = []
        for label, action, key, detail in _COMMANDS:
            rows.append(Row(f"screen.{action}", label, keys.shown(key) if key else "", detail))
        rows.append(Row("app.toggle_look", "Light or dark", "", "change between the two looks"))
        rows.append(Row("app.change_theme", "Theme", "", "choose other colours, and keep them"))
        return [*rows, Row("app.quit", "Quit", keys.shown("quit"), "leave the chat")]

    async def _run_command(self, name: str | None) -> None:
        if name is not None:
            await self.run_action(name)

    def search_themes(self) -> None:
        """Choose a theme in a window; the colours follow the highlighted one."""
        before = self.theme

        def choose(name: str | None) -> None:
            self.theme = name or before
            self._keep_look(self.theme)

        def try_on(name: str) -> None:
            self._trying, self.theme = True, name

        names = sorted(self.available_themes, key=lambda name: (not name.startswith("edgemoe"), name))
        kinds = {name: "dark" if theme.dark else "light" for name, theme in self.available_themes.items()}
        rows = [Row(name, name, "", kinds[name]) for name in names]
        self.push_screen(ChoiceScreen("themes", "Search for themes", rows, before, try_on), choose)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own colours under a theme that is not ours: those of the look it is closest to."""
        return dict(nearest(self.current_theme).variables)

    def action_toggle_look(self) -> None:
        """Change between the dark and the light theme."""
        self.theme = other(self.current_theme).name
