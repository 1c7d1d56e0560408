"""The chat: turns what the user does into calls of the session, and what the session tells into widgets."""

from __future__ import annotations

import re
import sqlite3
from collections import deque
from collections.abc import Callable

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import Markdown

from .. import context
from .. import messages as told
from ..attachments import Attachment, with_question
from ..commands import Call, Unknown, parse
from ..conversation import Conversation
from ..receipt import Receipt, counters
from ..records import ChatSettings, ModelCard, State
from ..session import ChatSession, EngineSource
from ..store import Store
from ..text import count, size
from ..widgets.answer_turn import AnswerTurn
from ..widgets.expert_panel import ExpertPanel
from ..widgets.note import Note
from ..widgets.prompt import Prompt
from ..widgets.status_line import StatusLine
from ..widgets.transcript import Transcript
from ..widgets.user_turn import UserTurn
from ..widgets.welcome import Welcome
from .actions import Actions
from .history import HistoryScreen

_DRAW_SECONDS = 0.1  # between two looks of an answer under way: text reads as flowing, and keys come first
_LONG_TEXT = 40_000  # characters; from here on it is drawn half as often
_RATE_WINDOW = 12  # looks: the live rate follows within a second or so and does not jump
_GO_ON = "Continue exactly where you stopped. Repeat nothing."
_CODE = re.compile(r"^(`{3,})[^\n`]*\n(.*?)^\1`*[ ]*$", re.MULTILINE | re.DOTALL)
_REASONS = {"stopped": "stopped · ", "length": "cut at the token limit · "}

_NOT_NOW: dict[State, str] = {
    "loading": "The model is loading; Enter again in a moment.",
    "failed": "There is no model to ask.",
}


Models = Callable[[str], tuple[str, EngineSource]]  # a name as typed gives a title and where to open it


class ChatScreen(Screen[None]):
    """One conversation with one model."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    AUTO_FOCUS = "Prompt"
    BINDINGS = [
        Binding("escape", "stop", "Stop the answer", id="chat.stop"),
        Binding("ctrl+n", "new_chat", "New chat", id="chat.new", priority=True),
        Binding("ctrl+r", "history", "History", id="chat.history", priority=True),
        Binding("ctrl+t", "toggle_thinking", "Thinking", id="chat.thinking", priority=True),
        Binding("ctrl+y", "copy", "Copy the answer", id="chat.copy", priority=True),
        Binding("ctrl+e", "toggle_experts", "Experts", id="chat.experts", priority=True),
    ]

    def __init__(
        self, session: ChatSession, settings: ChatSettings, store: Store | None = None, models: Models | None = None
    ) -> None:
        """Talk to ``session``, keep conversations in ``store``, open other models through ``models``."""
        super().__init__()
        self._session = session
        self._settings = settings
        self.store = store
        self._models = models
        self.model_name = settings.title
        self.sampling = dict(settings.sampling or {})
        self.conversation = Conversation(store, settings.title, settings.system)
        self.receipt: Receipt | None = None
        self._actions = Actions(self)
        self._attached: list[Attachment] = []
        self._before = ""  # what a continued answer begins with
        self._characters_per_token = context.CHARACTERS_PER_TOKEN
        self._warned = False
        self._problem = ""
        self._thinking_open = False
        self._grown: told.AnswerGrew | None = None  # not drawn yet
        self._sent: list[dict[str, str]] = []
        self._card: ModelCard | None = None
        self._number = 0
        self._answer: AnswerTurn | None = None
        self._pieces: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self._experts_wanted: bool | None = None  # None until the user decides

    def compose(self) -> ComposeResult:
        """Conversation, experts, prompt, status."""
        with Transcript(id="transcript"):
            yield Welcome(self.model_name)
        yield ExpertPanel(id="experts")
        yield Prompt(id="prompt")
        yield StatusLine(id="status")

    def on_mount(self) -> None:
        """Name the model at once; everything else comes with it."""
        self.query_one(ExpertPanel).display = False
        self.query_one(StatusLine).model = self.model_name
        for note in self.store.notes if self.store else []:
            self.call_after_refresh(self.say, note, wrong=True)

    @property
    def state(self) -> State:
        """What the chat does now, as the status line says it."""
        return self.query_one(StatusLine).state

    def _enter(self, state: State) -> None:
        self.query_one(StatusLine).state = state
        prompt = self.query_one(Prompt)
        if self.busy:
            prompt.show_keys("Esc stop")
        else:
            prompt.show_keys()
        self._watch()

    @property
    def busy(self) -> bool:
        """An answer is under way."""
        return self.state in ("thinking", "answering", "stopping")

    def _watch(self) -> None:
        """Sample no more than somebody looks at."""
        panel = self.query_one(ExpertPanel)
        self._session.watch("maps" if panel.display else "counters" if self.busy else "off")

    async def say(self, text: str, hint: str = "", wrong: bool = False) -> None:
        """A word from the program, in the transcript but not in the conversation."""
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
        failure = event.failure
        self._card = None
        kept = f"{failure.text}; the conversation is kept, the engine starts again"
        await self.say(kept, failure.hint, wrong=True)
        self._enter("loading")

    @on(told.AnswerGrew)
    async def _answer_grew(self, event: told.AnswerGrew) -> None:
        if self._answer is None or event.number != self._answer.number:
            return
        waiting, self._grown = self._grown, event
        if self.state == "thinking":
            self.query_one(StatusLine).first_token_s = event.elapsed_s
            self._enter("answering")
            await self._draw_growth()
        elif waiting is None:
            # A long answer costs more to append to, and is read by nobody at that speed.
            slower = min(len(event.text) / _LONG_TEXT, 1.0)
            self.set_timer(_DRAW_SECONDS * (1 + slower), self._draw_growth)

    async def _draw_growth(self) -> None:
        """Draw the newest of what came since the last time."""
        event, self._grown = self._grown, None
        answer = self._answer
        if event is None or answer is None or event.number != answer.number:
            return
        self._pieces.append((event.elapsed_s, event.tokens))
        (begin, before), (end, now) = self._pieces[0], self._pieces[-1]
        if end > begin:
            self.query_one(StatusLine).answer_rate = (now - before) / (end - begin)
        self.conversation.grow(self._before + event.text)
        await answer.grow(self._before + event.text)

    @on(told.AnswerEnded)
    async def _answer_ended(self, event: told.AnswerEnded) -> None:
        answer = self._answer
        if answer is None or event.number != answer.number:
            return
        receipt = self.receipt = event.receipt
        text, line = self._before + event.text, _REASONS.get(event.reason, "") + receipt.line()
        if remark := receipt.remark():
            line = f"{line}\n{remark}"
        if receipt.context_tokens:
            characters = sum(len(message["content"]) for message in self._sent) + len(event.text)
            self._characters_per_token = max(characters / receipt.context_tokens, 1.0)
        await self._finish(text, line)
        status = self.query_one(StatusLine)
        status.answer_rate, status.first_token_s = receipt.answer_rate, receipt.first_token_s
        status.context_used = receipt.context_tokens or status.context_used
        if receipt.pairs:
            status.hit_rate = receipt.hit_rate
        self._enter("stopped" if event.reason == "stopped" else "idle")

    @on(told.AnswerFailed)
    async def _answer_failed(self, event: told.AnswerFailed) -> None:
        answer = self._answer
        if answer is None or event.number != answer.number:
            return
        await self._finish(self._before + event.text, "broke off")
        if event.failure is not None:
            await self.say(event.failure.text, event.failure.hint, wrong=True)
        self._enter("idle" if event.failure is not None else "loading")

    async def _finish(self, text: str, line: str) -> None:
        """The answer under way is complete, whole or not: keep it."""
        answer, self._answer = self._answer, None
        assert answer is not None
        self.conversation.end(text, line)
        if not text:
            self.conversation.drop_unanswered()
        await answer.end(text, line)
        if self.conversation.problem != self._problem:
            self._problem = self.conversation.problem
            await self.say(self._problem, "/export writes it to a file", wrong=True)

    @on(told.ExpertsSampled)
    def _experts_sampled(self, event: told.ExpertsSampled) -> None:
        self.query_one(ExpertPanel).show(event.stats, event.maps)
        if event.stats.hits + event.stats.misses and self.busy:
            self.query_one(StatusLine).hit_rate = event.stats.hit_rate

    @on(told.SamplingFailed)
    def _sampling_failed(self, event: told.SamplingFailed) -> None:
        self.query_one(ExpertPanel).say(event.failure.text)

    @on(told.BudgetResized)
    async def _budget_resized(self, event: told.BudgetResized) -> None:
        stats = event.stats
        await self.say(f"{count(stats.slots)} experts fit now, in {size(stats.slot_bytes)} on the device")

    @on(told.ResizeFailed)
    async def _resize_failed(self, event: told.ResizeFailed) -> None:
        await self.say(event.failure.text, event.failure.hint, wrong=True)

    # What the user did.

    @on(Prompt.Submitted)
    async def _submitted(self, event: Prompt.Submitted) -> None:
        command = parse(event.text.rstrip())
        if isinstance(command, Call):
            await self._run(command)
        elif isinstance(command, Unknown):
            self.query_one(Prompt).give_back(event.text)
            await self.say(command.text, command.hint, wrong=True)
        elif self.busy or self._card is None:
            self.query_one(Prompt).give_back(event.text)
            self.notify(_NOT_NOW.get(self.state, "Esc stops the answer under way; then Enter sends."))
        else:
            await self._ask(event.text.strip())

    async def _ask(self, text: str) -> None:
        question = with_question(self._attached, text)
        fitting = self._fit([*self.conversation.messages(), {"role": "user", "content": question}])
        if not fitting.fits:
            self.prefill(text)
            need = f"{fitting.share:.0%} of the context"
            await self.say(f"this question alone would take {need}", "shorten it, or a larger --ctx", wrong=True)
            return
        self._attached = []
        await self.query_one(Transcript).add(UserTurn(question))
        self.conversation.add("user", question)
        await self.answer()

    async def answer(self) -> None:
        """Let the model answer the conversation, which ends with a question."""
        self._before = ""
        await self._begin(AnswerTurn(self._number + 1), self.conversation.messages())

    async def go_on(self) -> bool:
        """Let the last answer go on; False when there is none."""
        turns = self.conversation.turns
        shown = list(self.query(AnswerTurn))
        if not turns or turns[-1].role != "assistant" or not shown:
            return False
        self._before = turns[-1].text
        messages = [*self.conversation.messages(), {"role": "user", "content": _GO_ON}]
        await shown[-1].remove()
        answer = AnswerTurn(self._number + 1)
        await self._begin(answer, messages)
        await answer.grow(self._before)
        return True

    async def _begin(self, answer: AnswerTurn, messages: list[dict[str, str]]) -> None:
        self._number += 1
        self._answer = answer
        self._pieces.clear()
        self.query_one(StatusLine).answer_rate = 0.0
        fitting = self._fit(messages)
        if fitting.left_out:
            gone = f"the oldest {fitting.left_out} messages no longer fit the context: the model does not see them"
            await self.say(gone, "they stay in the conversation; a new chat or a larger --ctx", wrong=True)
        elif fitting.share > context.WARN_SHARE and not self._warned:
            self._warned = True
            await self.say(f"the context is about {fitting.share:.0%} full", "soon the oldest messages are left out")
        await self.query_one(Transcript).add(answer)
        answer.show_thinking(self._thinking_open)
        self._enter("thinking")
        self._sent = fitting.messages
        self._session.ask(self._number, fitting.messages, self.sampling)

    def _fit(self, messages: list[dict[str, str]]) -> context.Fit:
        size = self._card.context if self._card else 4096
        limit = self.sampling.get("max_tokens")
        return context.fit(messages, size, int(limit) if limit else None, self._characters_per_token)

    async def _run(self, call: Call) -> None:
        await self._actions.run(call)

    # What commands do with the screen.

    def can_ask(self) -> bool:
        """Whether a model is there."""
        return self._card is not None

    def attach(self, attachment: Attachment) -> None:
        """Let ``attachment`` go along with the next question."""
        self._attached.append(attachment)

    @on(Prompt.Pasted)
    async def _pasted(self, event: Prompt.Pasted) -> None:
        self.attach(Attachment("pasted text", event.text))
        await self.say(f"attached: a paste of {count(len(event.text))} characters", "it goes along with your question")

    def prefill(self, text: str) -> None:
        """Put ``text`` back where the user writes."""
        self.query_one(Prompt).give_back(text)

    def cannot_place(self) -> str | None:
        """Why a budget cannot be set, None when it can."""
        if self._card is None:
            return "no model is loaded yet"
        return None if self._card.shape is not None else "this model has no routed experts to place"

    def resize(self, size: str) -> None:
        """Change the budget."""
        if self.busy:
            self.notify("The budget changes when this answer is complete.")
        self._session.resize(size)

    def statistics(self) -> str:
        """Counters in words."""
        last = [f"last answer: {self.receipt.statistics()}"] if self.receipt else []
        stats = self.query_one(ExpertPanel).stats
        return "\n".join(last + (counters(stats) if stats else [])) or "nothing has been counted yet"

    async def take_back(self, keep_question: bool = False) -> str:
        """Remove the last answer, and its question unless told to keep it; returns the question, empty for none."""
        turns = self.conversation.turns
        at = next((index for index in range(len(turns) - 1, -1, -1) if turns[index].role == "user"), None)
        if at is None:
            return ""
        question = turns[at].text
        self.conversation.cut(at + keep_question)
        await self.show(self.conversation)
        return question

    async def next_branch(self) -> None:
        """Show the answer after this one to the same question, or the question after this one in its place."""
        for turn in reversed(self.conversation.turns):
            beside = self.store.siblings(turn.id) if self.store and turn.id is not None else []
            if self.store is not None and turn.id is not None and len(beside) > 1 and self.conversation.id is not None:
                place = (beside.index(turn.id) + 1) % len(beside)
                self.store.point(self.conversation.id, self.store.leaf(beside[place]))
                again = Conversation.resume(self.store, self.conversation.id)
                if again is not None and not self.busy:
                    await self.show(again)
                    await self.say(f"branch {place + 1} of {len(beside)}")
                return
        await self.say("there is only one branch", "/regen and /edit make others")

    async def switch_model(self, name: str) -> None:
        """Open another model in the place of this one; the conversation goes on.

        Raises:
            EdgeMoEError: there is no such model.
            ValueError: this chat cannot open others.
        """
        if self._models is None:
            raise ValueError("this chat cannot open another model")
        self.model_name, source = self._models(name)
        self._card = None
        self.query_one(StatusLine).model = self.model_name
        if self.busy:
            self._session.stop()
        self._enter("loading")
        self._session.switch(source)

    async def show(self, conversation: Conversation) -> None:
        """Open ``conversation`` in the place of this one."""
        self.conversation = conversation
        transcript = self.query_one(Transcript)
        await transcript.clear()
        if not conversation.turns:
            await self._welcome()
        for turn in conversation.turns:
            if turn.role == "user":
                await transcript.add(UserTurn(turn.text))
            else:
                await transcript.add(answer := AnswerTurn(0))
                answer.show_thinking(self._thinking_open)
                await answer.end(turn.text, turn.note)

    async def open(self, conversation: Conversation) -> None:
        """Go on with ``conversation``; a last question that never got an answer stands in the prompt again."""
        self._leave()
        unanswered = (
            conversation.turns.pop().text if conversation.turns and conversation.turns[-1].role == "user" else ""
        )
        await self.show(conversation)
        if unanswered:
            self.prefill(unanswered)

    async def _welcome(self) -> None:
        welcome = Welcome(self.model_name)
        await self.query_one(Transcript).mount(welcome)
        if self._card is not None:
            welcome.loaded(self._card)

    def copy(self, number: str) -> None:
        """Copy the last answer, or its code block ``number`` (from 1), to the clipboard of the terminal."""
        text = next((turn.text for turn in reversed(self.conversation.turns) if turn.role == "assistant"), "")
        blocks = [match[2] for match in _CODE.finditer(text)]
        if number:
            if not number.isdigit() or not 0 < int(number) <= len(blocks):
                self.notify(f"the answer has {len(blocks)} code blocks", severity="warning")
                return
            text = blocks[int(number) - 1]
        if text:
            self.app.copy_to_clipboard(text)
        self.notify(f"copied {count(len(text))} characters" if text else "there is no answer to copy")

    def action_copy(self) -> None:
        """Copy what is selected, else the last answer."""
        if selected := self.get_selected_text():
            self.app.copy_to_clipboard(selected)
            self.notify(f"copied {count(len(selected))} characters")
        else:
            self.copy("")

    def action_history(self) -> None:
        """Open an earlier conversation."""
        if self.store is None:
            self.notify("conversations are not kept in this chat")
        else:
            self.app.push_screen(HistoryScreen(self.store), self._resume)

    async def _resume(self, chosen: int | None) -> None:
        if chosen is None or self.store is None:
            return
        try:
            conversation = Conversation.resume(self.store, chosen)
        except sqlite3.Error as error:
            await self.say(f"the conversation cannot be read: {error}", wrong=True)
            return
        if conversation is not None:
            await self.open(conversation)

    def action_toggle_thinking(self) -> None:
        """Unfold or fold the thinking of all answers."""
        self._thinking_open = not self._thinking_open
        for answer in self.query(AnswerTurn):
            answer.show_thinking(self._thinking_open)

    def action_stop(self) -> None:
        """Stop the answer under way; its text stays."""
        if self.busy:
            self._enter("stopping")
            self._session.stop()

    def _leave(self) -> None:
        """Stop an answer under way; what there is of it is saved already."""
        if self.busy and self._answer is not None:
            self._session.stop()
            last = self.conversation.turns[-1]
            text = self._before + self._grown.text if self._grown else last.text if last.role == "assistant" else ""
            self.conversation.end(text, "stopped")
        self._answer = self._grown = None
        self._attached, self._warned = [], False
        if self._card is not None:
            self.query_one(StatusLine).context_used = 0
            self._enter("idle")

    async def action_new_chat(self) -> None:
        """Begin another conversation; an answer under way is stopped."""
        self._leave()
        await self.show(Conversation(self.store, self.model_name, self.conversation.system))

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
