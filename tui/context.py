"""The part of a conversation that fits the context. Pure; token counts are estimates.

The estimate is calibrated by the last receipt: its tokens over the characters that made them.
"""

from __future__ import annotations

from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 3.5  # of English under today's tokenizers, before the first receipt
LONG_WORD = 40  # characters: with figures and letters of both cases it is base64, say, not language
MESSAGE_TOKENS = 5  # added by a chat template to each message
WARN_SHARE = 0.7
ANSWER_SHARE = 0.25  # of the context is kept free for the answer, or max_tokens if that is less

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Fit:
    """The ``messages`` to send, without ``left_out`` of the oldest; they take ``share`` of the room.

    ``fits`` is False when even the last question alone is too long.
    """

    messages: Messages
    left_out: int
    share: float
    fits: bool


def length(text: str) -> float:
    """Count the characters of ``text`` in those of English: a sign of another script is a token, an emoji is two."""
    most = CHARACTERS_PER_TOKEN
    foreign = sum((most if sign < "\U00010000" else 2 * most) - 1 for sign in text if sign > "\u02ff")
    encoded = sum(len(word) for word in text.split() if len(word) >= LONG_WORD and _mixed(word))
    return len(text) + encoded + foreign


def _mixed(word: str) -> bool:
    return word.isascii() and any(map(str.isdigit, word)) and not (word.islower() or word.isupper())


def tokens(messages: Messages, characters_per_token: float = CHARACTERS_PER_TOKEN) -> int:
    """An estimate for ``messages``."""
    characters = sum(length(message["content"]) for message in messages)
    return round(characters / characters_per_token) + MESSAGE_TOKENS * len(messages)


def fit(messages: Messages, context: int, max_tokens: int | None, characters_per_token: float) -> Fit:
    """Leave out the oldest question and answer pairs until the rest and an answer fit ``context`` tokens."""
    answer = int(context * ANSWER_SHARE)
    room = context - min(answer, max_tokens or answer)
    system = messages[:1] if messages and messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    left_out = 0
    while tokens(system + turns[left_out:], characters_per_token) > room and len(turns) - left_out > 2:
        left_out += 2
    sent = system + turns[left_out:]
    need = tokens(sent, characters_per_token)
    return Fit(sent, left_out, need / room, need <= room)
