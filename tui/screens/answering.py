"""Answers one after the other: sending the question, drawing the answer as it comes, keeping it at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from edgemoe.answer.growth import Growing, Growth
from edgemoe.answer.receipt import Receipt, breaking_off
from edgemoe.answer.record import Answer
from edgemoe.answer.sampling import limit
from edgemoe.types import ExpertStats

from .. import context
from .. import messages as told
from ..attachments import Attachment, with_question
from ..context import Messages
from ..records import UNDER_WAY, State
from ..store import BROKE_OFF
from ..widgets.answer_turn import AnswerTurn
from ..widgets.user_turn import UserTurn
from .surface import Surface

DRAW_SECONDS = 0.14  # between two looks of an answer under way: text reads as flowing, and keys come first
_RATE_WINDOW = 12  # looks: the live rate follows within a second or so and does not jump
_RATE_SECONDS = (
    0.5  # seconds between two figures of it: nobody reads faster. A change down there draws every line in between.
)
_GO_ON = "Continue exactly where you stopped. Repeat nothing."
_THINK_ON = "{question}\n\nYou were cut off while you thought about it. Go on from there. You thought:\n\n{thought}"
_HELP = {
    "length": "/continue lets it go on; /set max_tokens, or --max-tokens at the start, allows more",
    "full": "a longer context (/ctx) makes room, or a new chat",
}
_CONTEXT = 4096  # tokens assumed before a model is there


class Answering:
    """The answer under way on one screen.

    Attributes:
        receipt: of the last complete answer.
        answers: complete ones since the start, with their ``prompt_tokens`` and ``answer_tokens``.
        attached: texts that go along with the next question.
    """

    def __init__(self, surface: Surface) -> None:
        """Nothing is asked yet."""
        self._surface = surface
        self.receipt: Receipt | None = None
        self.answers = self.prompt_tokens = self.answer_tokens = 0
        self.attached: list[Attachment] = []
        self._number = 0
        self._turn: AnswerTurn | None = None
        self._before = Answer()  # the beginning of a continued answer
        self._growing: Growing | None = None
        self._drawing = False  # a look is due
        self._asked: tuple[str, list[Attachment]] = ("", [])  # the question under way as it was typed
        self._restore: Callable[[], Awaitable[None]] | None = (
            None  # brings back the turns that made way for the answer under way
        )
        self._sent: list[dict[str, str]] = []
        self._looks: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self._rate_s = 0.0
        self._expected = 0  # tokens of the prompt, as estimated
        self._tokens_before: int | None = None  # computed before this prompt
        self._characters_per_token = context.CHARACTERS_PER_TOKEN
        self._warned = False

    # Asking.

    async def ask(self, text: str) -> None:
        """Ask ``text`` with its attachments, unless that alone is too long."""
        surface = self._surface
        question = with_question(self.attached, text)
        fitting = self._fit([*surface.conversation.messages(), {"role": "user", "content": question}])
        if not fitting.fits:
            surface.prompt.give_back(text)
            need = f"{fitting.share:.0%} of the context"
            hint = "/detach removes an attachment" if self.attached else "shorten it"
            await surface.say(f"this question alone would take {need}", f"{hint}, or /ctx a longer context", wrong=True)
            return
        self._asked, self._restore = (text, self.attached), None
        turn = surface.conversation.add("user", question, title=text)
        await self.attach([])
        await surface.transcript.add(UserTurn(question, turn.key))
        await self._answer()

    async def answer(self, restore: Callable[[], Awaitable[None]]) -> None:
        """Let the model answer the conversation again; ``restore`` brings the earlier answer back if none comes."""
        self._restore = restore
        await self._answer()

    async def _answer(self) -> None:
        self._before = Answer()
        await self._begin(AnswerTurn(self._number + 1), self._surface.conversation.messages())

    async def attach(self, attachments: list[Attachment]) -> None:
        """Let ``attachments`` go along with the next question."""
        self.attached = attachments
        await self._surface.attachments.show(
            [(attachment, self._is_too_long(attachment)) for attachment in attachments]
        )

    def _is_too_long(self, attachment: Attachment) -> bool:
        return not self._fit([{"role": "user", "content": attachment.text}]).fits

    def show_figures(self) -> None:
        """Show the figures of a conversation that was not answered here: nothing but how full the context is."""
        status, conversation = self._surface.status, self._surface.conversation
        status.answer_rate, status.first_token_s, status.hit_rate = 0.0, 0.0, None
        messages = conversation.messages() if conversation.turns else []
        status.context_used = context.tokens(messages, self._characters_per_token)

    async def go_on(self) -> bool:
        """Let the last answer go on; False when there is none."""
        conversation = self._surface.conversation
        shown = list(self._surface.transcript.query(AnswerTurn))
        if not conversation.turns or conversation.turns[-1].role != "assistant" or not shown:
            return False
        before, messages = conversation.turns[-1].answer, _going_on(conversation.messages())
        fitting = self._fit(messages)
        needed = messages[-2:] if messages[-1]["content"] == _GO_ON else messages[-1:]
        if not fitting.fits or fitting.messages[-len(needed) :] != needed:
            await self._surface.say("there is no room in the context to go on", _HELP["full"], wrong=True)
            return True
        self._before = before
        await shown[-1].remove()
        answer = AnswerTurn(self._number + 1)
        await self._begin(answer, messages)
        await answer.grow(before)
        return True

    async def _begin(self, turn: AnswerTurn, messages: list[dict[str, str]]) -> None:
        surface = self._surface
        self._number += 1
        self._turn, self._growing = turn, None
        self._looks.clear()
        surface.status.answer_rate = 0.0
        fitting = self._fit(messages)
        if fitting.left_out:
            gone = f"the oldest {fitting.left_out} messages no longer fit the context: the model does not see them"
            await surface.say(gone, "they stay in the conversation; a new chat or a longer context (/ctx)", wrong=True)
        elif fitting.share > context.WARN_SHARE and not self._warned:
            self._warned = True
            await surface.say(f"the context is about {fitting.share:.0%} full", "soon the oldest messages are left out")
        await surface.transcript.add(turn)
        surface.enter("reading")
        self._sent = fitting.messages
        self._expected = context.tokens(fitting.messages, self._characters_per_token)
        turn.expect(self._expected)
        surface.status.context_used = self._expected
        self._tokens_before = None
        surface.session.sample()
        surface.session.ask(self._number, fitting.messages, surface.sampling, surface.think)

    def _fit(self, messages: list[dict[str, str]]) -> context.Fit:
        card = self._surface.card
        most = limit(self._surface.sampling, card.thinking) if card else None
        return context.fit(messages, card.context if card else _CONTEXT, most, self._characters_per_token)

    # Drawing.

    def sampled(self, stats: ExpertStats) -> None:
        """Counters of the engine: while the prompt is read they tell how far that is."""
        if self._turn is None or self._surface.state != "reading":
            return
        if self._tokens_before is None:
            self._tokens_before = stats.tokens
        self._turn.read(stats.tokens - self._tokens_before)

    async def grew(self, growing: Growing) -> None:
        """There is something new to draw, now or at the next look."""
        if self._turn is None or growing.number != self._turn.number:
            return
        self._growing = growing
        if self._surface.state == "reading":
            await self._draw()
        elif not self._drawing:
            self._drawing = True
            self._surface.set_timer(DRAW_SECONDS, self._draw)

    async def _draw(self) -> None:
        self._drawing = False
        turn, growing = self._turn, self._growing
        if turn is None or growing is None or growing.number != turn.number:
            return
        growth = growing.take()
        self._show_rate(growth)
        state: State = "thinking" if growth.thinking else "answering"
        if self._surface.state in UNDER_WAY and self._surface.state != state:
            self._surface.enter(state)
        answer = self._before.followed_by(growth.answer)
        self._surface.conversation.grow(answer)
        await turn.grow(answer, growth.thinking)

    def _show_rate(self, growth: Growth) -> None:
        status = self._surface.status
        status.context_used = self._expected + growth.tokens
        if not self._looks:
            status.first_token_s, self._rate_s = growth.first_s, growth.elapsed_s
        self._looks.append((growth.elapsed_s, growth.tokens))
        (begin, before), (end, now) = self._looks[0], self._looks[-1]
        if end - self._rate_s >= _RATE_SECONDS:
            self._rate_s = end
            status.answer_rate = (now - before) / (end - begin)

    # Ending.

    async def ended(self, event: told.AnswerEnded) -> None:
        """The answer is complete."""
        if self._turn is None or event.number != self._turn.number:
            return
        receipt = self.receipt = event.receipt
        answer = self._before.followed_by(event.answer)
        self.answers += 1
        self.prompt_tokens += receipt.prompt_tokens
        self.answer_tokens += receipt.answer_tokens
        if receipt.context_tokens:
            written = context.length(event.answer.text) + context.length(event.answer.thought)
            characters = sum(context.length(message["content"]) for message in self._sent) + written
            self._characters_per_token = max(characters / receipt.context_tokens, 1.0)
        await self._finish(answer, _receipt(event.reason, answer, receipt))
        if not answer and event.reason != "stopped":
            await self._surface.say("the model gave an empty answer")
        status = self._surface.status
        status.answer_rate, status.first_token_s = receipt.answer_rate, receipt.first_token_s
        status.context_used = receipt.context_tokens or status.context_used
        self._surface.enter("stopped" if event.reason == "stopped" else "idle")

    async def failed(self, event: told.AnswerFailed) -> None:
        """The answer broke off."""
        if self._turn is None or event.number != self._turn.number:
            return
        await self._finish(self._before.followed_by(event.answer), BROKE_OFF)
        if event.failure is not None:
            await self._surface.say(event.failure.text, event.failure.hint, wrong=True)
        self._surface.enter("idle" if event.failure is not None else "loading")

    async def _finish(self, answer: Answer, line: str) -> None:
        turn, self._turn = self._turn, None
        assert turn is not None
        conversation = self._surface.conversation
        conversation.end(answer, line)
        if answer:
            turn.key = conversation.turns[-1].key
            await turn.end(answer, line)
        else:
            await turn.remove()
            await self._give_back()

    async def _give_back(self) -> None:
        """Nothing was answered: the chat is as it was before, a new question stands in the prompt again."""
        surface = self._surface
        if self._restore is not None:
            await self._restore()
            return
        question = surface.conversation.turns[-1].key
        surface.conversation.drop_unanswered()
        for turn in surface.transcript.query(UserTurn):
            if turn.key is question:
                await turn.remove()
        text, attachments = self._asked
        surface.prompt.give_back(text)
        await self.attach(attachments + self.attached)

    def leave(self) -> None:
        """Stop an answer under way and keep its text: another conversation opens."""
        surface = self._surface
        if surface.busy and self._turn is not None:
            surface.session.stop()
            last = surface.conversation.turns[-1]
            answer = last.answer if last.role == "assistant" else Answer()
            if self._growing is not None and self._growing.number == self._turn.number:
                answer = self._before.followed_by(self._growing.take().answer)
            surface.conversation.end(answer, "stopped")
        self._turn = self._growing = None
        self._warned = False
        surface.left()
        if surface.card is not None:
            surface.enter("idle")


def _receipt(reason: str, answer: Answer, receipt: Receipt) -> str:
    """Give the line under an answer: the reason for a cut, the figures; below it the remedy for a cut."""
    figures = [part for part in (breaking_off(reason, answer), receipt.line()) if part]
    return "\n".join(part for part in (" · ".join(figures), _HELP.get(reason, "")) if part)


def _going_on(messages: Messages) -> Messages:
    """The question to go on with the last of ``messages``, which is an answer.

    Templates leave out the thinking of an earlier answer, so a thought that was cut is repeated in the question.
    """
    *before, answer = messages
    if answer["content"] or not answer.get("reasoning_content") or not before:
        return [*messages, {"role": "user", "content": _GO_ON}]
    *before, question = before
    content = _THINK_ON.format(question=question["content"], thought=answer["reasoning_content"])
    return [*before, {"role": "user", "content": content}]
