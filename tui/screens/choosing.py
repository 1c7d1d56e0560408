"""One message chosen among those of the conversation: going from one to the next, and acting on it."""

from __future__ import annotations

from edgemoe.answer.calls import as_text
from edgemoe.text.display import count

from ..widgets.message import ChatMessage
from .actions import Commanded

_DOES = {
    "copy_message": "copy",
    "edit_message": "edit",
    "regenerate_message": "again",
    "continue_message": "continue",
    "stop": "",
}


class Choosing:
    """Acts on the messages of one screen."""

    def __init__(self, screen: Commanded) -> None:
        """Nothing is chosen."""
        self._screen = screen

    def begin(self) -> None:
        """Choose the newest message."""
        if messages := self._messages():
            self._screen.set_focus(messages[-1])
        else:
            self._screen.notify("there is no message to choose yet")

    def move(self, step: int) -> None:
        """Choose the one ``step`` after the chosen; after the newest comes the prompt."""
        screen, messages = self._screen, self._messages()
        if screen.focused not in messages:
            return
        at = messages.index(screen.focused) + step
        screen.set_focus(messages[max(at, 0)] if at < len(messages) else screen.prompt)

    def tell(self, message: ChatMessage | None) -> None:
        """Name the keys for ``message``, or those of the prompt when none is chosen."""
        screen = self._screen
        if message is None:
            screen.enter(screen.state)
            return
        keys = " · ".join(f"{screen.keys.shown(name)} {does}".rstrip() for name, does in _DOES.items())
        turns = screen.conversation.turns
        at = next((number for number, turn in enumerate(turns, 1) if turn.key is message.key), 0)
        screen.prompt.show_keys(f"message {at}/{len(turns)}: {keys}" if at else keys)

    async def do(self, message: ChatMessage, what: str) -> None:
        """Copy, edit, regenerate or continue ``message``, or leave it."""
        screen = self._screen
        turns = screen.conversation.turns
        at = next((index for index, turn in enumerate(turns) if turn.key is message.key), None)
        screen.prompt.focus()
        if what == "leave" or at is None:
            return
        if what == "copy":
            if text := as_text(turns[at].answer):
                screen.app.copy_to_clipboard(text)
            screen.notify(f"copied {count(len(text))} characters" if text else "there is no answer to copy")
        elif screen.busy or screen.card is None:
            await screen.say("Esc stops the answer first" if screen.busy else "there is no model to ask")
        elif what == "edit":
            await screen.library.edit(until=turns[at].key)
        elif what == "regenerate":
            await screen.library.take_back(keep_question=True, until=turns[at].key)
            await screen.answering.answer(screen.library.restore)
        elif at < len(turns) - 1 or not await screen.answering.go_on():
            await screen.say("only the last answer can be continued")

    def _messages(self) -> list[ChatMessage]:
        children = self._screen.transcript.children
        return [child for child in children if isinstance(child, ChatMessage) and child.key is not None]
