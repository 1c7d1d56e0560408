"""The chat screen: turns the user's keys into calls of the session, and its messages into widgets."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import Markdown

from edgemoe.answer import effort
from edgemoe.answer.receipt import Receipt, counters
from edgemoe.errors import EdgeMoEError
from edgemoe.text.display import count, one_line, size
from edgemoe.types import Thinking

from .. import messages as told
from ..archive import Archive
from ..attachments import Attachment
from ..commands import Call, Unknown, parse
from ..completion import files_named
from ..conversation import Conversation
from ..editor import edited
from ..expert_map import Spot
from ..finding import places
from ..keys import Keys
from ..presets import Preset, Presets
from ..records import UNDER_WAY, ChatSettings, ModelCard, Opened, State
from ..session import ChatSession
from ..widgets.attachment_bar import AttachmentBar, Chip
from ..widgets.completion_menu import CompletionMenu
from ..widgets.expert_map import ExpertMap
from ..widgets.expert_panel import ExpertPanel
from ..widgets.find_bar import FindBar
from ..widgets.head_line import HeadLine
from ..widgets.message import ChatMessage
from ..widgets.note import Note
from ..widgets.prompt import Prompt
from ..widgets.queue_line import QueueLine
from ..widgets.status_line import StatusLine
from ..widgets.transcript import Transcript
from ..widgets.welcome import STARTERS, Welcome
from .actions import Actions
from .answering import Answering
from .choosing import Choosing
from .library import Library

if TYPE_CHECKING:
    from ..fetching import Fetcher
    from ..forecasts import Forecasts
    from .history import Found
    from .models import Choices, Remove
    from .settings import Chosen

WIDE = 110  # characters, from which the experts have room beside the chat
BELL_SECONDS = 20.0  # of an answer, after which people do something else
RECENT_CHATS = 3  # that an empty chat offers
_NO_MODEL: tuple[State, ...] = ("failed", "no model")


@dataclass(frozen=True)
class Services:
    """Services of the chat beyond its model and conversations.

    Attributes:
        open_model: opens a model by a name as typed.
        choices: the models there are to choose from; called in a thread.
        presets: the user's settings for each model.
        keys: in force.
        fetcher: downloads models.
        remove: bytes that removing a downloaded model frees; it is gone if the second argument says so.
        forecasts: tells how fast models would be here, in the memory that the open one leaves.
        advice: sentence that tells how models would be faster here, empty for none.
        with_context: opens the same model again with another length of its context: tokens, or ``auto``.
    """

    open_model: Callable[[str], Opened] | None = None
    choices: Choices | None = None
    presets: Presets | None = None
    keys: Keys = field(default_factory=Keys)
    fetcher: Fetcher | None = None
    remove: Remove | None = None
    forecasts: Callable[[Callable[[], ModelCard | None]], Forecasts] | None = None
    advice: str = ""
    with_context: Callable[[int | str], Opened] | None = None


class ChatScreen(Screen[None]):
    """One conversation with one model."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]
    AUTO_FOCUS = "Prompt"
    BINDINGS = [
        Binding("escape", "stop", "Stop the answer", id="chat.stop"),
        Binding("ctrl+c", "interrupt", "Copy, stop or quit", id="chat.interrupt"),
        Binding("tab,shift+tab", "to_prompt", show=False),
        Binding("pageup", "turn_page(-1)", show=False, id="chat.page_up"),
        Binding("pagedown", "turn_page(1)", show=False, id="chat.page_down"),
        Binding("ctrl+home", "top", "First message", id="chat.top"),
        Binding("ctrl+end", "bottom", "End", id="chat.bottom"),
        # Priority: the letters after it, which may come in one burst, are for its field.
        Binding("ctrl+f", "find", "Find in this chat", id="chat.find", priority=True),
        Binding("f1", "help", "Help", id="chat.help", priority=True),
        Binding("ctrl+n", "new_chat", "New chat", id="chat.new", priority=True),
        Binding("ctrl+r", "history", "History", id="chat.history", priority=True),
        Binding("ctrl+o", "models", "Models", id="chat.models", priority=True),
        Binding("ctrl+t", "toggle_thinking", "Thinking", id="chat.thinking", priority=True),
        Binding("ctrl+y", "copy", "Copy the answer", id="chat.copy", priority=True),
        Binding("ctrl+up", "choose", "Choose a message", id="chat.choose", priority=True),
        Binding("ctrl+g", "edit_outside", "Edit in $EDITOR", id="chat.editor", priority=True),
        Binding("f3", "pick", "Pick an expert", id="chat.pick", priority=True),
        Binding("ctrl+e", "toggle_experts", "Experts", id="chat.experts", priority=True),
    ]

    def __init__(
        self, session: ChatSession, settings: ChatSettings, archive: Archive | None, services: Services
    ) -> None:
        """Talk to ``session``, keep conversations in ``archive``."""
        super().__init__()
        self.session = session
        self.archive = archive
        self._services = services
        self.keys, self.presets = services.keys, services.presets
        self._resume = settings.resume
        self.model_name = settings.title
        self.sampling = dict(settings.sampling or {})
        self.suited = dict(self.sampling)
        self.think = settings.think
        self._forecasts: Forecasts | None = None
        self.conversation = Conversation(archive, settings.title, settings.system)
        self.card: ModelCard | None = None
        self.answering = Answering(self)
        self.library = Library(self, self.answering)
        self._actions, self._choosing = Actions(self), Choosing(self)
        self._experts_wanted: bool | None = None  # None until the user decides
        self._context_changes = False  # the model opens with another context
        self._quit_asked = False  # Ctrl+C quits when it is pressed again

    def compose(self) -> ComposeResult:
        """Conversation, experts, prompt, status."""
        yield HeadLine()
        with Transcript(id="transcript", thinking_key=self.keys.shown("thinking")):
            yield Welcome(self.model_name, self.keys, self._services.advice)
        yield ExpertPanel(id="experts")
        yield FindBar()
        yield AttachmentBar()
        yield QueueLine()
        yield (menu := CompletionMenu())
        yield Prompt(self.keys, menu, id="prompt")
        yield StatusLine(id="status")

    async def on_mount(self) -> None:
        """Name the model at once; everything else comes with it."""
        self.query_one(ExpertPanel).display = False
        self.status.model = self.model_name
        if not self.model_name:
            self.enter("no model")
            self.call_after_refresh(self.action_models)
        if self._resume:
            self.run_worker(self.library.resume_last())
        if self.archive is not None:
            self.run_worker(self._remember_prompts(self.archive))
            self.run_worker(self._offer_chats(self.archive))

    async def _offer_chats(self, archive: Archive) -> None:
        with contextlib.suppress(sqlite3.Error):  # said by the archive
            recent = await asyncio.wrap_future(archive.do(lambda store: store.recent(RECENT_CHATS)))
            for welcome in self.query(Welcome):
                welcome.show_recent(recent)

    async def _remember_prompts(self, archive: Archive) -> None:
        with contextlib.suppress(sqlite3.Error):  # said by the archive
            self.prompt.remember(await asyncio.wrap_future(archive.do(lambda store: store.prompts())))

    @property
    def transcript(self) -> Transcript:
        """Where turns and notes stand."""
        return self.query_one(Transcript)

    @property
    def status(self) -> StatusLine:
        """The last line."""
        return self.query_one(StatusLine)

    @property
    def prompt(self) -> Prompt:
        """Where the user writes."""
        return self.query_one(Prompt)

    @property
    def attachments(self) -> AttachmentBar:
        """The attachments of the next question."""
        return self.query_one(AttachmentBar)

    @property
    def state(self) -> State:
        """The state of the chat, as the status line shows it."""
        return self.status.state

    @property
    def busy(self) -> bool:
        """An answer is under way, or about to stop."""
        return self.state in UNDER_WAY or self.state == "stopping"

    def enter(self, state: State) -> None:
        """Be in another state."""
        self.status.state = state
        self._quit_asked = False
        self.show_head()
        stop = self.keys.shown("stop")
        if self.busy:
            self.prompt.show_keys(f"{stop} stop")
        elif self.library.is_editing:
            self.prompt.show_keys(f"editing · {self.keys.shown('send')} asks it instead · {stop} leaves it as it was")
        else:
            self.prompt.show_keys()
        self._watch()

    def show_head(self) -> None:
        """Show the title and the settings that change the answers."""
        head, chat = self.query_one(HeadLine), self.conversation
        said = ["system prompt"] if chat.system else []
        said += [f"thinking {self.think}"] if self.think else []
        for name, value in self.sampling.items():
            if name == "temperature" or self.suited.get(name) != value:
                said.append(f"{name} {value:g}")
        head.chat_title, head.settings = chat.title, " · ".join(said)
        name = one_line(chat.title, 60) or "EdgeMoE"
        self.post_message(told.Titled(f"{name} · {self.state}" if self.busy or self.state == "loading" else name))

    def _watch(self) -> None:
        """Sample no more than somebody looks at."""
        panel = self.query_one(ExpertPanel)
        self.session.watch("maps" if panel.display else "counters" if self.busy else "off")

    async def say(self, text: str, hint: str = "", wrong: bool = False) -> None:
        """A word from the program, in the transcript but not in the conversation."""
        await self.transcript.add(Note(text, hint, wrong))

    # Messages of the session and the archive.

    @on(told.ModelLoaded)
    async def _model_loaded(self, event: told.ModelLoaded) -> None:
        card = self.card = event.card
        self.status.device, self.status.context_size = card.device, card.context
        for welcome in self.query(Welcome):
            welcome.loaded(card)
        if self._context_changes:
            await self.say(f"the context has {count(card.context)} tokens", "\n".join(card.notes))
        self._context_changes = False
        self.query_one(ExpertPanel).open(card.shape, card.device, card.stats, card.can_pin)
        self.enter("idle")
        self._place_experts()
        if self.think and (why := effort.refusal(self.think, card.thinking)):
            dropped, self.think = self.think, ""
            await self.say(f"{why}: thinking {dropped} is dropped")
        await self._ask_next()

    @on(told.ModelReading)
    def _model_reading(self, event: told.ModelReading) -> None:
        self.status.loaded = event.share
        for welcome in self.query(Welcome):
            welcome.reading(event.share)

    @on(told.ModelFailed)
    async def _model_failed(self, event: told.ModelFailed) -> None:
        self.enter("failed")
        self._give_waiting_back()
        if self._context_changes:
            failure, self._context_changes = event.failure, False
            await self.say(failure.text, failure.hint or "/ctx auto lets the planner choose", wrong=True)
        for welcome in self.query(Welcome):
            welcome.failed(event.failure)

    @on(told.EngineLost)
    async def _engine_lost(self, event: told.EngineLost) -> None:
        failure = event.failure
        self.card = None
        kept = f"{failure.text}; the conversation is kept, the engine starts again"
        await self.say(kept, failure.hint, wrong=True)
        self.enter("loading")

    @on(told.AnswerGrew)
    async def _answer_grew(self, event: told.AnswerGrew) -> None:
        await self.answering.grew(event.growing)

    @on(told.AnswerEnded)
    async def _answer_ended(self, event: told.AnswerEnded) -> None:
        await self.answering.ended(event)
        self._tell_end(event.receipt)
        await self._ask_next()

    def _tell_end(self, receipt: Receipt) -> None:
        """Ring the bell after a long answer, or where the user looks elsewhere."""
        app = self.app
        spent = receipt.first_token_s + receipt.answer_tokens / receipt.answer_rate if receipt.answer_rate else 0.0
        if not app.app_focus or spent >= BELL_SECONDS:
            app.bell()

    @on(told.AnswerFailed)
    async def _answer_failed(self, event: told.AnswerFailed) -> None:
        await self.answering.failed(event)
        if event.failure is not None:
            self._give_waiting_back()

    @on(told.ArchiveSaid)
    async def _archive_said(self, event: told.ArchiveSaid) -> None:
        self.status.unsaved = self.archive is not None and self.archive.is_failing
        await self.say(event.text, wrong=True)

    @on(told.ExpertsSampled)
    def _experts_sampled(self, event: told.ExpertsSampled) -> None:
        panel = self.query_one(ExpertPanel)
        panel.show(event.stats, event.maps, event.in_ram)
        self.answering.sampled(event.stats)
        counted = self.busy and event.stats.hits + event.stats.misses > 0
        self.status.hit_rate = (
            event.stats.hit_rate if counted and not panel.display else None
        )  # the panel shows it, too

    @on(told.SamplingFailed)
    def _sampling_failed(self, event: told.SamplingFailed) -> None:
        self.query_one(ExpertPanel).say(event.failure.text)

    @on(told.ExpertPinned)
    def _expert_pinned(self, event: told.ExpertPinned) -> None:
        self.query_one(ExpertPanel).mark_pinned(Spot(event.layer, event.expert), event.pinned)

    @on(told.PinFailed)
    async def _pin_failed(self, event: told.PinFailed) -> None:
        await self.say(event.failure.text, event.failure.hint, wrong=True)

    @on(told.BudgetResized)
    async def _budget_resized(self, event: told.BudgetResized) -> None:
        stats = event.stats
        await self.say(f"{count(stats.slots)} experts fit now, in {size(stats.slot_bytes)} on the device")

    @on(told.ResizeFailed)
    async def _resize_failed(self, event: told.ResizeFailed) -> None:
        await self.say(event.failure.text, event.failure.hint, wrong=True)

    # Actions of the user.

    @on(Prompt.Submitted)
    async def _submitted(self, event: Prompt.Submitted) -> None:
        text = event.text
        if self.archive is not None:
            self.archive.save(lambda store: store.sent(text), passing=True)
        command = parse(text.rstrip())
        if isinstance(command, Call):
            await self._actions.run(command)
            self.show_head()
        elif isinstance(command, Unknown):
            self.prompt.give_back(text)
            await self.say(command.text, command.hint, wrong=True)
        elif self.state in _NO_MODEL:
            self.prompt.give_back(text)
            self.notify("There is no model to ask.")
        elif self.busy or self.card is None:
            self.query_one(QueueLine).put(text)
        else:
            await self._ask(text)

    async def _ask(self, text: str) -> None:
        for path in await asyncio.to_thread(files_named, text):
            if not await self._actions.attach_file(path):
                self.prompt.give_back(text)
                return
        await self.answering.ask(text.strip())

    async def _ask_next(self) -> None:
        """Send the message that waits for an answer to end or a model to load; after a stop it is a draft again."""
        queue = self.query_one(QueueLine)
        if self.state == "stopped":
            self._give_waiting_back()
        elif len(queue) and self.state == "idle" and self.card is not None:
            await self._ask(queue.take())

    def _give_waiting_back(self) -> None:
        queue = self.query_one(QueueLine)
        if waiting := [queue.take() for _ in range(len(queue))]:
            self.prompt.give_back("\n".join([*waiting, self.prompt.text]).rstrip("\n"), whole=True)

    @on(Prompt.Pasted)
    async def _pasted(self, event: Prompt.Pasted) -> None:
        await self.answering.attach([*self.answering.attached, Attachment("pasted text", event.text)])

    @on(Prompt.FileChosen)
    async def _file_chosen(self, event: Prompt.FileChosen) -> None:
        await self._actions.attach_file(event.path)

    @on(Prompt.StarterWanted)
    def _starter_wanted(self) -> None:
        for welcome in self.query(Welcome):
            if starter := welcome.next_starter():
                self.prompt.begin_with(starter)

    def action_starter(self, number: int) -> None:
        """Write one of the first questions into the prompt."""
        self.prompt.begin_with(STARTERS[number])
        self.prompt.focus()

    async def action_resume(self, chat: int) -> None:
        """Open a chat of before."""
        await self.library.resume(chat)

    @on(Prompt.ChipDeleted)
    async def _chip_deleted(self) -> None:
        if waiting := self.query_one(QueueLine).take_last():
            self.prompt.give_back(waiting)
        else:
            await self.answering.attach(self.answering.attached[:-1])

    @on(Chip.Removed)
    async def _chip_removed(self, event: Chip.Removed) -> None:
        rest = [attachment for attachment in self.answering.attached if attachment is not event.attachment]
        await self.answering.attach(rest)

    @on(CompletionMenu.Clicked)
    def _candidate_clicked(self, event: CompletionMenu.Clicked) -> None:
        self.prompt.accept(event.candidate)

    @on(Prompt.Changed)
    def _typed(self) -> None:
        if self._quit_asked:
            self.enter(self.state)

    def action_choose(self) -> None:
        """Go into the messages, to the newest."""
        self._choosing.begin()

    @on(ChatMessage.Chosen)
    def _message_chosen(self) -> None:
        # Not the event's word: that of the message that is left may come after that of the next.
        self._choosing.tell(self.focused if isinstance(self.focused, ChatMessage) else None)

    @on(ChatMessage.Moved)
    def _message_moved(self, event: ChatMessage.Moved) -> None:
        self._choosing.move(event.step)

    @on(ChatMessage.Wanted)
    async def _message_wanted(self, event: ChatMessage.Wanted) -> None:
        await self._choosing.do(event.message, event.what)

    def action_copy(self) -> None:
        """Copy the selection, else the last answer."""
        if not self._copy_selected():
            self._actions.copy("")

    def _copy_selected(self) -> bool:
        selected = self.prompt.selected_text or self.get_selected_text()
        if selected:
            self.app.copy_to_clipboard(selected)
            self.notify(f"copied {count(len(selected))} characters")
        return bool(selected)

    def action_interrupt(self) -> None:
        """Copy the selection, else stop the answer, else clear the prompt, else quit when pressed again."""
        if self._copy_selected():
            return
        if self.busy:
            self._stop()
        elif self.prompt.text:
            self.prompt.set_aside()
        elif self._quit_asked:
            self.run_worker(self.app.action_quit())
        else:
            self._quit_asked = True
            self.prompt.show_keys(f"{self.keys.shown('interrupt')} again quits")

    def action_history(self) -> None:
        """Open an earlier conversation."""
        if self.archive is None:
            self.notify("conversations are not kept in this chat")
        else:
            from .history import HistoryScreen  # its widgets are not needed for the first frame

            self.app.push_screen(HistoryScreen(self.archive, self.conversation.key.id), self._found)

    async def _found(self, found: Found | None) -> None:
        if found is not None:
            await self.library.resume(found.chat)
            if found.words:
                self.query_one(FindBar).open(found.words, take_keys=False)

    def action_toggle_thinking(self) -> None:
        """Unfold or fold the thinking of all answers."""
        self.transcript.show_thinking(not self.transcript.thinking_open)

    async def action_stop(self) -> None:
        """Stop the answer under way, its text stays; or leave an edit, and the chat is as it was."""
        if self.busy:
            self._stop()
            return
        if self.query_one(FindBar).display:
            self.query_one(FindBar).action_close()
        elif self.library.is_editing:
            self.prompt.set_aside()
            await self.library.restore()
            self.enter(self.state)
        self.prompt.focus()

    def _stop(self) -> None:
        self.enter("stopping")
        self.session.stop()

    def action_to_prompt(self) -> None:
        """Give the keys back to the prompt."""
        self.prompt.focus()

    async def action_edit_outside(self) -> None:
        """Edit the prompt in the user's editor."""
        try:
            with self.app.suspend():
                text = edited(self.prompt.text)
        except (OSError, SuspendNotSupported) as error:
            why = f"the editor did not start: {error.strerror}" if isinstance(error, OSError) else "no editor here"
            self.notify(why)
            return
        self.prompt.text = text
        self.prompt.move_cursor(self.prompt.document.end)
        self.prompt.focus()

    def action_help(self) -> None:
        """Show keys and commands."""
        from .help import HelpScreen  # as with the history

        self.app.push_screen(HelpScreen(self.keys))

    def action_settings(self) -> None:
        """Change the settings of the next answers."""
        from .settings import Chosen, SettingsScreen  # as with the history

        now = Chosen(self.sampling, self.think, self.conversation.system)
        thinking = self.card.thinking if self.card is not None else Thinking()
        self.app.push_screen(SettingsScreen(now, thinking), self._use_settings)

    async def _use_settings(self, chosen: Chosen | None) -> None:
        if chosen is None:
            return
        self.sampling, self.think = dict(chosen.sampling), chosen.think
        if chosen.system != self.conversation.system:
            self.conversation.system = chosen.system
        if chosen.keep:
            await self._actions.save()
        self.show_head()

    async def action_new_chat(self) -> None:
        """Begin another conversation; an answer under way is stopped."""
        await self.library.new()

    def action_turn_page(self, pages: int) -> None:
        """Scroll the conversation by whole pages while the prompt keeps the focus."""
        self.transcript.turn_page(pages)

    def action_top(self) -> None:
        """Go to the first message."""
        self.run_worker(self.transcript.to_top(), group="going", exclusive=True)

    def action_bottom(self) -> None:
        """Go to the end, and follow it."""
        self.transcript.to_end()

    async def action_find(self) -> None:
        """Find words in this chat."""
        await self.find("")

    async def find(self, text: str) -> None:
        """Open the field that finds words in this chat, with ``text`` in it."""
        self.query_one(FindBar).open(text, take_keys=True)

    @on(FindBar.Wanted)
    def _find_wanted(self, event: FindBar.Wanted) -> None:
        """Go to one of the messages with the words, and say which of how many it is."""
        bar = self.query_one(FindBar)
        turns = self.conversation.turns
        keys = [turns[index].key for index in places([turn.text for turn in turns], event.text)]
        at = event.number % len(keys) if keys else 0
        bar.tell(at, len(keys))
        if keys:
            # A worker: it waits for layouts, which this screen makes.
            self.run_worker(self.transcript.reveal(keys[at], event.text), group="going", exclusive=True)

    @on(FindBar.Closed)
    def _find_closed(self) -> None:
        self.prompt.focus()

    @on(Markdown.LinkClicked)
    def _link_clicked(self, event: Markdown.LinkClicked) -> None:
        """Open web pages only: an answer must not start anything else."""
        if event.href.startswith(("https://", "http://")):
            self.app.open_url(event.href)

    # The model and its experts.

    def action_models(self) -> None:
        """Choose another model."""
        services = self._services
        if services.choices is None:
            self.notify("this chat cannot open another model")
            return
        from .models import ModelsScreen  # as with the history

        if self._forecasts is None and services.forecasts is not None:
            self._forecasts = services.forecasts(lambda: self.card)
        found = ModelsScreen(services.choices, self.model_name, services.fetcher, services.remove, self._forecasts)
        self.app.push_screen(found, self._chosen)

    def on_unmount(self) -> None:
        """No forecast goes on without its chat."""
        if self._forecasts is not None:
            self._forecasts.close()

    def _chosen(self, name: str | None) -> None:
        if name is not None:
            self.switch_model(name)

    def switch_model(self, name: str) -> None:
        """Open another model in the place of this one, with its preset; the conversation goes on."""
        # In a worker: building the demo takes a while, and keys must not wait for it.
        self.notify(f"opening {name} …")
        if self.state == "no model":
            self._begin_loading(name)
        opener = self._services.open_model
        self.run_worker(self._switch_model(opener and partial(opener, name)), group="model", exclusive=True)

    def change_context(self, length: int | str) -> None:
        """Open the same model with a context of another length; the conversation goes on."""
        self.notify(f"opening {self.model_name} with another context …")
        self._context_changes = True
        opener = self._services.with_context if self.model_name else None
        self.run_worker(self._switch_model(opener and partial(opener, length)), group="model", exclusive=True)

    async def _switch_model(self, opener: Callable[[], Opened] | None) -> None:
        if opener is None:
            await self.say("this chat cannot open another model", wrong=True)
            return
        try:
            # In a thread: a name may have to be built first, such as the demo's.
            opened = await asyncio.to_thread(opener)
        except EdgeMoEError as error:
            self._context_changes = False
            await self.say(str(error), error.hint, wrong=True)
            if not self.model_name:
                self.enter("no model")
            return
        if self.presets is not None and self.think in ("", self.presets.of(self.model_name).think):
            self.think = self.presets.of(opened.title).think  # nothing else was said in this chat
        self.model_name = opened.title
        if not self.conversation.turns:
            self.conversation.model = opened.title
        preset = self.presets.of(opened.title) if self.presets is not None else Preset()
        said = {name: value for name, value in self.sampling.items() if self.suited.get(name) != value}
        self.suited = dict(opened.sampling)
        self.sampling = self.suited | said
        if preset.system and not self.conversation.system:
            self.conversation.system = preset.system
        self.card = None
        self.status.model = self.model_name
        if self.busy:
            self.session.stop()
        self._begin_loading(opened.title)
        assert opened.engines is not None
        self.session.switch(opened.engines)

    def _begin_loading(self, title: str) -> None:
        self.status.loaded = 1.0
        self.enter("loading")
        for welcome in self.query(Welcome):
            welcome.begin_loading(title)

    def cannot_place(self) -> str | None:
        """Why a budget cannot be set, None when it can."""
        if self.card is None:
            return "no model is loaded yet"
        return None if self.card.shape is not None else "this model has no routed experts to place"

    def resize(self, size: str) -> None:
        """Change the budget."""
        if self.busy:
            self.notify("The budget changes when this answer is complete.")
        self.session.resize(size)

    def statistics(self) -> str:
        """Counters in words."""
        receipt, stats = self.answering.receipt, self.query_one(ExpertPanel).stats
        last = [f"last answer: {receipt.statistics()}"] if receipt else []
        if self.answering.answers > 1:
            spent = f"{count(self.answering.prompt_tokens)} read, {count(self.answering.answer_tokens)} written"
            last.append(f"since the start: {self.answering.answers} answers, tokens: {spent}")
        return "\n".join(last + (counters(stats) if stats else [])) or "nothing has been counted yet"

    def left(self) -> None:
        """Take the use of experts up to now as the usual one: another conversation begins, and nothing waits."""
        self._give_waiting_back()
        self.query_one(ExpertPanel).begin()
        self.session.sample()

    def action_pick(self) -> None:
        """Go into the expert map, or back."""
        if self.query_one(ExpertMap).has_focus:
            self.prompt.focus()
            return
        if not self.query_one(ExpertPanel).display:
            self.action_toggle_experts()
        self.query_one(ExpertMap).focus()

    @on(ExpertMap.PinToggled)
    def _pin_toggled(self, event: ExpertMap.PinToggled) -> None:
        if self.card is not None and self.card.can_pin:
            pinned = not self.query_one(ExpertPanel).is_pinned(event.spot)
            self.session.pin(event.spot.layer, event.spot.expert, pinned)

    def action_toggle_experts(self) -> None:
        """Show or hide the experts panel."""
        self._experts_wanted = not self.query_one(ExpertPanel).display
        if not self._experts_wanted:
            self.prompt.focus()
        self._place_experts()

    def on_resize(self) -> None:
        """A wide screen has room for the experts, a narrow one shows them on demand."""
        self._place_experts()

    def _place_experts(self) -> None:
        routed = self.card is not None and self.card.shape is not None
        wanted = self._experts_wanted
        if wanted is None:
            wanted = routed and self.size.width >= WIDE
        panel = self.query_one(ExpertPanel)
        if panel.display != wanted:
            panel.display = wanted
            self.set_class(wanted, "-experts")
        is_beside = self.size.width >= WIDE
        panel.styles.width = panel.columns(self.size.width, self.size.height) if is_beside else None
        self._watch()
