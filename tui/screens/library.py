"""Conversations on the screen: opening, resuming, taking back, branches. The archive's thread reads them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..conversation import Conversation
from ..records import Key, Turn
from ..store import Saved, Store
from ..widgets.answer_turn import AnswerTurn
from ..widgets.transcript import Maker
from ..widgets.user_turn import UserTurn
from ..widgets.welcome import Welcome
from .answering import Answering
from .surface import Surface

Result = TypeVar("Result")


class Library:
    """Puts conversations on one screen."""

    def __init__(self, surface: Surface, answering: Answering) -> None:
        """Act on ``surface``."""
        self._surface, self._answering = surface, answering
        self._taken_back: tuple[Conversation, list[Turn], int] | None = None  # all its turns, how many were left

    async def show(self, conversation: Conversation) -> None:
        """Show ``conversation`` in the place of the open one."""
        surface = self._surface
        surface.conversation = conversation
        self._answering.show_figures()
        surface.show_head()
        transcript = surface.transcript
        await transcript.show([_maker(turn) for turn in conversation.turns])
        if not conversation.turns:
            await transcript.mount(welcome := Welcome(surface.model_name, surface.keys))
            if surface.card is not None:
                welcome.loaded(surface.card)

    async def open(self, conversation: Conversation) -> None:
        """Go on with ``conversation``; a last question that never got an answer stands in the prompt again."""
        self._answering.leave()
        unanswered = (
            conversation.turns.pop().text if conversation.turns and conversation.turns[-1].role == "user" else ""
        )
        await self.show(conversation)
        if unanswered:
            self._surface.prompt.give_back(unanswered)

    async def new(self) -> None:
        """Begin another conversation; an answer under way is stopped."""
        surface = self._surface
        self._answering.leave()
        await self.show(Conversation(surface.archive, surface.model_name, surface.conversation.system))

    async def resume(self, chosen: int | None) -> None:
        """Open conversation ``chosen`` of the database, None for none."""
        if self._surface.busy and chosen is not None and chosen == self._surface.conversation.key.id:
            return  # it is open, and knows more than the database
        if chosen is not None and (saved := await self._read(lambda store: store.read(chosen))) is not None:
            assert self._surface.archive is not None
            await self.open(Conversation.resumed(self._surface.archive, saved))

    async def resume_last(self) -> None:
        """Open the conversation that was used last."""
        last = await self._read(lambda store: store.recent(1))
        if last:
            await self.resume(last[0].id)
        elif last is not None:
            await self._surface.say("there is no conversation to resume yet")

    async def take_back(self, keep_question: bool = False, until: Key | None = None) -> str:
        """Remove the last answer and, unless ``keep_question``, its question; return the question, empty for none.

        With ``until`` all that follows this message, or its question, goes too. :meth:`restore` brings it back, and
        the database shows it until something else is asked or answered.
        """
        conversation = self._surface.conversation
        turns = conversation.turns
        last = next((index for index, turn in enumerate(turns) if turn.key is until), len(turns) - 1)
        at = next((index for index in range(last, -1, -1) if turns[index].role == "user"), None)
        if at is None:
            return ""
        self._taken_back = (conversation, list(turns), at)
        question = turns[at].text
        conversation.cut(at + keep_question)
        await self.show(conversation)
        return question

    async def edit(self, until: Key | None = None) -> bool:
        """Put the last question, or that of ``until``, into the prompt; False where there is none."""
        if not (question := await self.take_back(until=until)):
            return False
        self._surface.prompt.give_back(question)
        self._surface.enter(self._surface.state)
        return True

    @property
    def is_editing(self) -> bool:
        """A question was taken back and nothing else was asked in its place."""
        conversation = self._surface.conversation
        return self._taken_back is not None and (conversation, len(conversation.turns)) == self._taken_back[::2]

    async def restore(self) -> None:
        """Bring back the turns that :meth:`take_back` removed."""
        if self._taken_back is not None:
            conversation, turns, _ = self._taken_back
            self._taken_back = None
            conversation.turns = turns
            await self.show(conversation)

    def keep_undone(self) -> None:
        """Let the last question stay taken back."""
        self._taken_back = None
        self._surface.conversation.keep_branch()

    async def next_branch(self) -> None:
        """Show the answer after this one to the same question, or the question after this one in its place."""
        surface, conversation = self._surface, self._surface.conversation
        if surface.busy:
            await surface.say("Esc stops the answer first")
            return
        keys = [turn.key for turn in reversed(conversation.turns)]
        found = await self._read(lambda store: _next_branch(store, conversation.key, keys))
        if found is not None and surface.archive is not None:
            saved, place, many = found
            await self.show(Conversation.resumed(surface.archive, saved))
            await surface.say(f"branch {place} of {many}")
        else:
            await surface.say("there is only one branch", "/regen and /edit make others")

    async def _read(self, job: Callable[[Store], Result]) -> Result | None:
        """Return the result of ``job``; None, after telling why, when the database cannot be read."""
        if self._surface.archive is None:
            return None
        try:
            return await asyncio.wrap_future(self._surface.archive.do(job))
        except sqlite3.Error as error:
            await self._surface.say(f"conversations cannot be read: {error}", wrong=True)
            return None


def _maker(turn: Turn) -> Maker:
    if turn.role == "user":
        return partial(UserTurn, turn.text, turn.key)
    return partial(AnswerTurn, 0, turn.answer, turn.note, turn.key)


def _next_branch(store: Store, chat: Key, keys: list[Key]) -> tuple[Saved, int, int] | None:
    """Point ``chat`` at the next branch at the lowest fork of ``keys``: as it then reads, its place, how many.

    Without keys, after its first question was taken back, the branch that the database shows is the next.
    """
    if not keys and chat.id is not None and (saved := store.read(chat.id)) is not None and saved.turns:
        return saved, 1, 1
    for key in keys:
        beside = store.siblings(key.id) if key.id is not None else []
        if key.id is not None and chat.id is not None and len(beside) > 1:
            place = (beside.index(key.id) + 1) % len(beside)
            store.point(chat.id, store.leaf(beside[place]))
            saved = store.read(chat.id)
            return (saved, place + 1, len(beside)) if saved is not None else None
    return None
