"""The chat: turns what the user does into calls of the session, and what the session tells into widgets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import Markdown

from edgemoe.config import Budget
from edgemoe.errors import ConfigError

from .. import messages as told
from ..commands import COMMANDS, Call, Unknown, parse
from ..receipt import Receipt, counters
from ..records import Chat, ChatSettings, ModelCard, State
from ..session import ChatSession
from ..text import count, size
from ..widgets.answer_turn import AnswerTurn
from ..widgets.expert_panel import ExpertPanel
from ..widgets.note import Note
from ..widgets.prompt import Prompt
from ..widgets.status_line import StatusLine
from ..widgets.transcript import Transcript
from ..widgets.user_turn import UserTurn
from ..widgets.welcome import Welcome

_RATE_WINDOW = 16  # pieces: the live rate follows within a second and does not jump
_REASONS = {"stopped": "stopped · ", "length": "cut at the token limit · "}

_NOT_NOW: dict[State, str] = {
    "loading": "The model is loading; Enter again in a moment.",
    "failed": "There is no model to ask.",
}


class ChatScreen(Screen[None]):
    """One conversation with one model."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    AUTO_FOCUS = "Prompt"
    BINDINGS = [
        Binding("escape", "stop", "Stop the answer", id="chat.stop"),
        Binding("ctrl+n", "new_chat", "New chat", id="chat.new", priority=True),
        Binding("ctrl+e", "toggle_experts", "Experts", id="chat.experts", priority=True),
    ]

    def __init__(self, session: ChatSession, settings: ChatSettings) -> None:
        """Talk to ``session``, which the app owns."""
        super().__init__()
        self._session = session
        self._settings = settings
        self._chat = Chat(settings.system)
        self._card: ModelCard | None = None
        self._receipt: Receipt | None = None
        self._number = 0
        self._answer: AnswerTurn | None = None
        self._pieces: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self._experts_wanted: bool | None = None  # None until the user decides

    def compose(self) -> ComposeResult:
        """Conversation, experts, prompt, status."""
        with Transcript(id="transcript"):
            yield Welcome(self._settings.title)
        yield ExpertPanel(id="experts")
        yield Prompt(id="prompt")
        yield StatusLine(id="status")

    def on_mount(self) -> None:
        """Name the model at once; everything else comes with it."""
        self.query_one(ExpertPanel).display = False
        self.query_one(StatusLine).model = self._settings.title

    @property
    def state(self) -> State:
        """What the chat does now, as the status line says it."""
        return self.query_one(StatusLine).state

    def _enter(self, state: State) -> None:
        self.query_one(StatusLine).state = state
        prompt = self.query_one(Prompt)
        if self._busy:
            prompt.show_keys("Esc stop")
        else:
            prompt.show_keys()
        self._watch()

    @property
    def _busy(self) -> bool:
        return self.state in ("thinking", "answering", "stopping")

    def _watch(self) -> None:
        """Sample no more than somebody looks at."""
        panel = self.query_one(ExpertPanel)
        self._session.watch("maps" if panel.display else "counters" if self._busy else "off")

    async def _say(self, text: str, hint: str = "", wrong: bool = False) -> None:
        await self.query_one(Transcript).add(Note(text, hint, wrong))

    # What the session told.

    @on(told.ModelLoaded)
    def _model_loaded(self, event: told.ModelLoaded) -> None:
        card = self._card = event.card
        status = self.query_one(StatusLine)
        status.device, status.context_size = card.device, card.context
        for welcome in self.query(Welcome):
            welcome.loaded(card)
        self.query_one(ExpertPanel).open(card.shape, card.device, card.stats)
        self._enter("idle")
        self._place_experts()

    @on(told.ModelFailed)
    def _model_failed(self, event: told.ModelFailed) -> None:
        self._enter("failed")
        for welcome in self.query(Welcome):
            welcome.failed(event.failure)

    @on(told.EngineLost)
    async def _engine_lost(self, event: told.EngineLost) -> None:
        hint = event.failure.hint
        kept = "the conversation is kept; the engine starts again"
        await self._say(event.failure.text, f"{kept} ({hint})" if hint else kept, wrong=True)
        self._card = None
        self._enter("loading")

    @on(told.AnswerGrew)
    async def _answer_grew(self, event: told.AnswerGrew) -> None:
        answer = self._answer
        if answer is None or event.number != answer.number:
            return
        status = self.query_one(StatusLine)
        if self.state == "thinking":
            status.first_token_s = event.elapsed_s
            self._enter("answering")
        self._pieces.append((event.elapsed_s, event.tokens))
        (begin, before), (end, now) = self._pieces[0], self._pieces[-1]
        if end > begin:
            status.answer_rate = (now - before) / (end - begin)
        await answer.grow(event.text)

    @on(told.AnswerEnded)
    async def _answer_ended(self, event: told.AnswerEnded) -> None:
        answer = self._answer
        if answer is None or event.number != answer.number:
            return
        receipt = self._receipt = event.receipt
        if event.text:
            self._chat.add("assistant", event.text)
        else:
            self._chat.drop_unanswered()
        status = self.query_one(StatusLine)
        status.answer_rate, status.first_token_s = receipt.answer_rate, receipt.first_token_s
        status.context_used = receipt.context_tokens or status.context_used
        if receipt.pairs:
            status.hit_rate = receipt.hit_rate
        self._answer = None
        await answer.end(event.text, _REASONS.get(event.reason, "") + receipt.line())
        self._enter("stopped" if event.reason == "stopped" else "idle")

    @on(told.AnswerFailed)
    async def _answer_failed(self, event: told.AnswerFailed) -> None:
        answer = self._answer
        if answer is None or event.number != answer.number:
            return
        self._answer = None
        if event.text:
            self._chat.add("assistant", event.text)
        else:
            self._chat.drop_unanswered()
        await answer.end(event.text, "broke off")
        await self._say(event.failure.text, event.failure.hint, wrong=True)
        self._enter("idle")

    @on(told.ExpertsSampled)
    def _experts_sampled(self, event: told.ExpertsSampled) -> None:
        self.query_one(ExpertPanel).show(event.stats, event.maps)
        if event.stats.hits + event.stats.misses and self._busy:
            self.query_one(StatusLine).hit_rate = event.stats.hit_rate

    @on(told.SamplingFailed)
    def _sampling_failed(self, event: told.SamplingFailed) -> None:
        self.query_one(ExpertPanel).say(event.failure.text)

    @on(told.BudgetResized)
    async def _budget_resized(self, event: told.BudgetResized) -> None:
        stats = event.stats
        await self._say(f"{count(stats.slots)} experts fit now, in {size(stats.slot_bytes)} on the device")

    @on(told.ResizeFailed)
    async def _resize_failed(self, event: told.ResizeFailed) -> None:
        await self._say(event.failure.text, event.failure.hint, wrong=True)

    # What the user did.

    @on(Prompt.Submitted)
    async def _submitted(self, event: Prompt.Submitted) -> None:
        command = parse(event.text.rstrip())
        if isinstance(command, Call):
            await self._run(command)
        elif isinstance(command, Unknown):
            self.query_one(Prompt).give_back(event.text)
            await self._say(command.text, command.hint, wrong=True)
        elif self._busy or self._card is None:
            self.query_one(Prompt).give_back(event.text)
            self.notify(_NOT_NOW.get(self.state, "Esc stops the answer under way; then Enter sends."))
        else:
            await self._ask(event.text.strip())

    async def _ask(self, text: str) -> None:
        self._number += 1
        self._chat.add("user", text)
        self._answer = AnswerTurn(self._number)
        self._pieces.clear()
        self.query_one(StatusLine).answer_rate = 0.0
        await self.query_one(Transcript).add(UserTurn(text), self._answer)
        self._enter("thinking")
        self._session.ask(self._number, self._chat.messages(), self._settings.sampling or {})

    async def _run(self, call: Call) -> None:
        actions: dict[str, Callable[[], object]] = {
            "new": self.action_new_chat,
            "experts": self.action_toggle_experts,
            "quit": self.app.exit,
        }
        if call.name in actions:
            outcome = actions[call.name]()
            if hasattr(outcome, "__await__"):
                await outcome
        elif call.name == "help":
            await self._say(_HELP)
        elif call.name == "stats":
            await self._say(self._statistics())
        elif call.name == "system":
            await self._set_system(call.argument)
        elif call.name == "vram":
            await self._set_vram(call.argument)

    async def _set_system(self, text: str) -> None:
        if text:
            self._chat.system = "" if text.lower() == "none" else text
        if self._chat.system:
            await self._say(f"system prompt: {self._chat.system}")
        else:
            await self._say("there is no system prompt", "/system TEXT sets one")

    async def _set_vram(self, text: str) -> None:
        if self._card is None or self._card.shape is None:
            dense = "this model has no routed experts to place"
            await self._say(dense if self._card else "no model is loaded yet")
            return
        try:
            Budget.parse(text)
        except ConfigError as error:
            await self._say(str(error), error.hint, wrong=True)
            return
        if self._busy:
            self.notify("The budget changes when this answer is complete.")
        self._session.resize(text)

    def _statistics(self) -> str:
        last = [f"last answer: {self._receipt.statistics()}"] if self._receipt else []
        stats = self.query_one(ExpertPanel).stats
        return "\n".join(last + (counters(stats) if stats else [])) or "nothing has been counted yet"

    def action_stop(self) -> None:
        """Stop the answer under way; its text stays."""
        if self._busy:
            self._enter("stopping")
            self._session.stop()

    async def action_new_chat(self) -> None:
        """Forget the conversation and begin another; an answer under way is stopped and dropped."""
        if self._busy:
            self._session.stop()
        self._answer = None
        self._chat = Chat(self._chat.system)
        transcript, status = self.query_one(Transcript), self.query_one(StatusLine)
        await transcript.clear()
        welcome = Welcome(self._settings.title)
        await transcript.mount(welcome)
        if self._card is not None:
            welcome.loaded(self._card)
            status.context_used = 0
            self._enter("idle")

    def action_toggle_experts(self) -> None:
        """Show or hide the experts panel."""
        self._experts_wanted = not self.query_one(ExpertPanel).display
        self._place_experts()

    def action_scroll_transcript(self, pages: int) -> None:
        """Scroll the conversation by whole pages while the prompt keeps the focus."""
        transcript = self.query_one(Transcript)
        if pages < 0:
            transcript.scroll_page_up()
        else:
            transcript.scroll_page_down()

    def on_resize(self) -> None:
        """A wide screen has room for the experts, a narrow one shows them on demand."""
        self._place_experts()

    def _place_experts(self) -> None:
        routed = self._card is not None and self._card.shape is not None
        wanted = self._experts_wanted
        if wanted is None:
            wanted = routed and self.size.width >= 110
        panel = self.query_one(ExpertPanel)
        if panel.display != wanted:
            panel.display = wanted
            self.set_class(wanted, "-experts")
        self._watch()

    @on(Markdown.LinkClicked)
    def _link_clicked(self, event: Markdown.LinkClicked) -> None:
        """Open web pages only: an answer must not start anything else."""
        if event.href.startswith(("https://", "http://")):
            self.app.open_url(event.href)


_HELP = "\n".join(
    [
        "Enter send · Ctrl+J or Shift+Enter newline · Up last prompt · PageUp, PageDown scroll",
        "Esc stop · Ctrl+N new chat · Ctrl+E experts · Ctrl+P commands · Ctrl+Q quit",
        "",
        *(f"{command.usage:<16}{command.help}" for command in COMMANDS),
    ]
)
