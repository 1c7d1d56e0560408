"""Readers: they take generated text in pieces, and give thinking, answer and tool calls.

A reader cannot take back a piece that it gave, so it holds text that may still become a marker. The result does not
depend on how the text was cut into pieces.

A marker counts only in places where models write markers. Inside quotes or backticks it is text. A marker made of
letters, such as ``<think>``, is text inside code, and opens thinking only at the start of a line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from .calls import Call, Schemas, anything
from .styles import ENDS, HARMONY, CallMarkers, Style

Kind = Literal["reasoning", "content", "tool_call"]

# If a call is still incomplete this many characters after its first end marker, its text is no call.
GIVE_UP = 4096
_QUOTES = "`\"'"
_BETWEEN = "\n\n"  # between two parts of one answer, or of its thinking
_BARE_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\(")
_BARE_OBJECT = re.compile(r'\{\s*"(?:name|type|function)"\s*:')


class Delta(NamedTuple):
    """Hold a new piece of an answer. For a ``tool_call``, ``text`` is the whole call in OpenAI's shape, as JSON."""

    kind: Kind
    text: str


class Reader:
    """Read one answer. Use :func:`edgemoe.formats.reader` to make a reader."""

    def __init__(self, prompt: str = "", tools: Iterable[Any] = (), ends: bool = True) -> None:
        """Begin with an empty answer.

        Args:
            prompt: the rendered prompt, or its end.
            tools: tools that the request offered, in OpenAI's shape. Their schemas give parameters their types.
            ends: True if the text may end with the token that ends an answer.
        """
        self._prompt, self._ends = prompt, ends
        self._schemas, self._buffer, self._ended = schemas_of(tools), "", False
        self._out: list[Delta] = []
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def feed(self, piece: str) -> list[Delta]:
        """Take the next piece of text, and give the pieces of the answer that are certain by now."""
        self._buffer += piece
        self._advance(final=False)
        return self._taken()

    def end(self) -> list[Delta]:
        """Give the text that was held back, because no more text will come."""
        if not self._ended:
            self._ended = True
            if self._ends:
                self._buffer = _without_ends(self._buffer)
            self._advance(final=True)
        return self._taken()

    def message(self) -> dict[str, Any]:
        """Give OpenAI's assistant message so far. ``reasoning_content`` is absent without thinking."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        message["tool_calls"] = [{**call, "function": dict(call["function"])} for call in self._calls]
        return message

    def _advance(self, final: bool) -> None:
        raise NotImplementedError

    def _taken(self) -> list[Delta]:
        out, self._out = self._out, []
        return out

    def _emit(self, kind: Kind, text: str) -> None:
        if not text:
            return
        (self._reasoning if kind == "reasoning" else self._content).append(text)
        if self._out and self._out[-1].kind == kind:
            self._out[-1] = Delta(kind, self._out[-1].text + text)
        else:
            self._out.append(Delta(kind, text))

    def _call(self, call: Call) -> None:
        whole = {
            "id": call.id or self._identity(call),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        self._calls.append(whole)
        self._out.append(Delta("tool_call", json.dumps(whole, ensure_ascii=False)))

    def _identity(self, call: Call) -> str:
        """Make an id for a call. It has nine letters and digits, because Mistral's templates insist on this length.

        Each call of a conversation gets another id.
        """
        content = f"{len(self._prompt)}{self._prompt[-2000:]}{len(self._calls)}{call.name}{call.arguments}"
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:9]


class TagReader(Reader):
    """Read answers with markers between their parts."""

    def __init__(self, style: Style, opened: str = "", *rest: Any, **keywords: Any) -> None:
        """Begin inside thinking if the prompt opened it. ``opened`` is the marker, or empty."""
        super().__init__(*rest, **keywords)
        self._style = style
        self._closing = dict(style.thinking).get(opened, "")
        self._opened = opened  # a model may write the marker once more
        self._in_call: CallMarkers | None = None
        self._openings = dict(style.thinking)
        self._starts = {call.start: call for call in style.calls}
        closings = tuple(self._openings.values())
        self._in_content = _search((*self._openings, *self._starts, *closings, *style.dropped))
        self._held_content = _prefixes((*self._openings, *self._starts, *closings, *style.dropped), ENDS)
        enders = tuple(self._starts) if style.call_ends_thinking else ()
        self._in_reasoning = {c: _search((c, *enders)) for c in closings}
        self._held_reasoning = {c: _prefixes((c, *self._starts), ENDS) for c in closings}
        wordy = [re.escape(start) for start in self._starts if _is_wordy(start)]
        self._calls_in_thinking = re.compile(rf"(?:^|\n)[ \t]*({'|'.join(wordy)})" if wordy else r"(?!)")
        self._part = _Part(self, "reasoning" if self._closing else "content")

    def _advance(self, final: bool) -> None:
        while self._step(final):
            pass
        if final:
            self._part.end(kept=not self._closing)

    def _step(self, final: bool) -> bool:
        """Read one part; False if the next part is not certain yet."""
        if self._in_call is not None:
            return self._step_call(self._in_call, final)
        if self._closing:
            return self._step_reasoning(final)
        return self._step_content(final)

    def _step_reasoning(self, final: bool) -> bool:
        if self._opened and not self._skip_opening(final):
            return False
        match = self._in_reasoning[self._closing].search(self._buffer)
        if match is None and (at := self._open_call(final)) is not None:
            if not final:
                return self._pass_to(at) and False
            self._pass_to(at)
            self._part.end(kept=False)
            self._closing, self._part = "", _Part(self, "content")
            return True
        if match is None:
            return self._pass_on(self._held_reasoning[self._closing], final)
        if (quoted := self._is_quoted(match, final)) is None:
            return self._pass_to(match.start() - 1)
        if quoted:
            return self._pass_to(match.end())
        self._pass_to(match.start())
        self._part.end(kept=False)
        self._closing = ""
        self._part = _Part(self, "content")
        if match[0] not in self._starts:
            self._buffer = self._buffer[len(match[0]) :]
        return True

    def _skip_opening(self, final: bool) -> bool:
        """Skip the opening marker if the model repeats it from the prompt; False while this is not certain."""
        text = self._buffer.lstrip()
        if text.startswith(self._opened):
            self._buffer = text[len(self._opened) :]
        elif not final and self._opened.startswith(text):
            return False
        self._opened = ""
        return True

    def _open_call(self, final: bool) -> int | None:
        """Find a call inside thinking that may end the answer; Qwen3.5 sometimes does not close its thinking.

        If other text follows the call, the call is part of the thinking.
        """
        for match in self._calls_in_thinking.finditer(self._buffer):
            begin = match.start(1)
            at_line_start = match[0].startswith("\n") or self._part.at_line_start
            call, rest = self._starts[match[1]], self._buffer[match.end() :]
            may = at_line_start and _can_begin_call(call, rest) is not False and _is_calls(call, rest)
            if may and (not final or self._reads_to_the_end(begin)):
                return begin
        return None

    def _reads_to_the_end(self, begin: int) -> bool:
        """Tell whether the buffer from ``begin`` on holds only calls."""
        trial = TagReader(self._style, "", self._prompt)
        trial._schemas = self._schemas
        trial.feed(self._buffer[begin:])
        trial.end()
        message = trial.message()
        return bool(message["tool_calls"]) and not message["content"].strip() and "reasoning_content" not in message

    def _step_content(self, final: bool) -> bool:
        if self._style.bare and not self._content and not self._part.started and self._may_be_bare():
            return self._step_bare(final)
        match = self._in_content.search(self._buffer)
        if match is None:
            return self._pass_on(self._held_content, final)
        if (quoted := self._is_quoted(match, final)) is None:
            return self._pass_to(match.start() - 1)
        self._pass_to(match.start())
        marker, self._buffer = match[0], self._buffer[len(match[0]) :]
        if quoted or not self._counts(marker):
            self._part.add(marker)
        elif marker in self._openings:
            self._part.end(kept=False)
            self._closing = self._openings[marker]
            self._part = _Part(self, "reasoning")
        elif marker in self._starts:
            self._in_call = self._starts[marker]
        return True  # any other marker has no meaning and is left out

    def _counts(self, marker: str) -> bool:
        """Tell whether a marker counts at this place, by the rules of the module's docstring."""
        if not _is_wordy(marker):
            return True
        if self._part.in_code:
            return False
        if marker in self._openings:
            return self._part.at_line_start
        if marker in self._starts:
            return _can_begin_call(self._starts[marker], self._buffer) is not False
        return not self._part.started

    def _step_call(self, call: CallMarkers, final: bool) -> bool:
        text = self._buffer
        if call.end:
            first = text.find(call.end)
            at = first
            while first >= 0 and 0 <= at < first + GIVE_UP:
                if read := call.parse(text[:at], self._schemas):
                    self._finish_call(read, text[at + len(call.end) :])
                    return True
                at = text.find(call.end, at + 1)
            given_up = first >= 0 and len(text) >= first + GIVE_UP + len(call.end)
            if not (final or given_up) and _can_begin_call(call, text) is not False:
                return False
        elif not final:
            return False
        if final and _may_end_here(call, text) and (read := call.parse(text, self._schemas)):
            self._finish_call(read, "")
            return True
        # The text is no call, so the marker is text.
        self._in_call = None
        self._part.add(call.start)
        return True

    def _finish_call(self, read: list[Call], rest: str) -> None:
        self._in_call = None
        self._part.end(kept=False)
        for call in read:
            self._call(call)
        self._buffer = rest
        self._part = _Part(self, "content")

    def _may_be_bare(self) -> bool:
        text = self._buffer.lstrip()
        shortened = re.sub(r"\s+", "", text[:80])
        return bool(_BARE_LIST.match(text) or _BARE_OBJECT.match(text) or _may_become_bare_call(shortened))

    def _step_bare(self, final: bool) -> bool:
        if not final:
            return False
        text, self._buffer = self._buffer, ""
        if read := anything(text, self._schemas):
            for call in read:
                self._call(call)
        else:
            self._part.add(text)
        return False

    # Passing text on.

    def _pass_on(self, held: _Prefixes, final: bool) -> bool:
        """Pass on all text except an end that may become a marker. The result is always False: no further step."""
        keep = 0 if final else _held(self._buffer, held)
        self._pass_to(len(self._buffer) - keep)
        return False

    def _pass_to(self, end: int) -> bool:
        end = max(end, 0)
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        self._part.add(text)
        return end > 0 and bool(self._buffer) and text != ""

    def _is_quoted(self, match: re.Match[str], final: bool) -> bool | None:
        """Tell whether the marker stands in quotes; None while the character after it has not arrived."""
        before = self._buffer[match.start() - 1] if match.start() else self._part.last
        if not before or before not in _QUOTES:
            return False
        if match.end() == len(self._buffer):
            return False if final else None
        return self._buffer[match.end()] == before


class _Part:
    """Pass on a stretch of thinking or answer. Blank lines before it are dropped; space at its end waits for text."""

    def __init__(self, reader: Reader, kind: Kind) -> None:
        """Begin without text."""
        self._reader, self._kind = reader, kind
        self._lead, self._space = "", ""
        self._line, self._fence = "", ""
        self.started, self.last = False, ""

    @property
    def at_line_start(self) -> bool:
        """Tell whether the current line is blank so far."""
        return not self._line.strip()

    @property
    def in_code(self) -> bool:
        """Tell whether the text is inside a fence or between backticks."""
        return bool(self._fence) or self._line.count("`") % 2 == 1

    def add(self, text: str) -> None:
        """Take the next text."""
        if not text:
            return
        self.last = text[-1]
        if not self.started:
            self._lead += text
            text = self._begun()
            if not text:
                return
            self.started = True
            before = self._reader._reasoning if self._kind == "reasoning" else self._reader._content
            if before:
                self._reader._emit(self._kind, _BETWEEN)
        self._follow(text)
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._reader._emit(self._kind, kept)

    def _begun(self) -> str:
        """Drop the space before the first word of the text. The result is empty before a word arrives."""
        text = self._lead.lstrip() if self._kind == "reasoning" else re.sub(r"^\s*\n", "", self._lead)
        if not text.strip():
            return ""
        # One space comes from the tokenizer; more spaces are indented code.
        return text[1:] if text[0] == " " and text[1:2] != " " else text

    def end(self, kept: bool) -> None:
        """End the stretch. ``kept`` passes on the space at its end."""
        if kept and self.started:
            self._reader._emit(self._kind, self._space)
        self._space = self._lead = ""

    def _follow(self, text: str) -> None:
        """Track the current line, and whether it is inside a fence."""
        *lines, rest = text.split("\n")
        for line in lines:
            self._close_line(self._line + line)
            self._line = ""
        self._line += rest

    def _close_line(self, line: str) -> None:
        match = re.match(r" {0,3}(`{3,}|~{3,})(.*)", line)
        if match is None:
            return
        if not self._fence:
            self._fence = match[1]
        elif match[1].startswith(self._fence) and not match[2].strip():
            self._fence = ""


class HarmonyReader(Reader):
    """Read gpt-oss's channels: thinking, answer and calls are separate messages."""

    def __init__(self, *rest: Any, **keywords: Any) -> None:
        """Begin at the end of the prompt, which may have opened a message."""
        super().__init__(*rest, **keywords)
        self._header: str | None = ""  # None in a body
        self._kind: Kind = "content"
        self._recipient, self._body = "", ""
        self._part: _Part | None = None
        self._between = False  # a message has ended, so space before the next one does not count
        tail = self._prompt.rpartition("<|start|>assistant")[2] if "<|start|>assistant" in self._prompt else ""
        if "<|message|>" in tail:
            self._open(tail.partition("<|message|>")[0])
        self._seen = bool(tail.strip())

    def _advance(self, final: bool) -> None:
        while self._step(final):
            pass
        if final:
            self._close()

    def _step(self, final: bool) -> bool:
        return self._step_header(final) if self._header is not None else self._step_body(final)

    def _step_header(self, final: bool) -> bool:
        text = self._buffer
        if not self._seen:  # an answer may begin without a header
            start = text.lstrip()
            begins = ("<|channel|>", "<|start|>", "<|message|>", "to=", "assistant")
            if start and not any(start.startswith(mark) for mark in begins):
                if not final and any(mark.startswith(start) for mark in begins):
                    return False
                self._open("")
                return True
            self._seen = bool(start)
        at = text.find("<|message|>")
        if at < 0:
            if final:
                self._buffer = ""
            return False
        self._buffer = text[at + len("<|message|>") :]
        self._open(text[:at])
        return True

    def _step_body(self, final: bool) -> bool:
        match = _HARMONY_ENDS.search(self._buffer)
        if match is None:
            keep = 0 if final else _held(self._buffer, _HARMONY_HELD)
            self._add(self._buffer[: len(self._buffer) - keep])
            self._buffer = self._buffer[len(self._buffer) - keep :]
            return False
        before = self._buffer[match.start() - 1] if match.start() else (self._part.last if self._part else "")
        if before and before in _QUOTES:
            if match.end() == len(self._buffer) and not final:
                return False
            if self._buffer[match.end() : match.end() + 1] == before:
                self._add(self._buffer[: match.end()])
                self._buffer = self._buffer[match.end() :]
                return True
        self._add(self._buffer[: match.start()])
        self._close()
        # A marker that begins another message is part of that message's header.
        self._buffer = self._buffer[match.start() if match[0] in ("<|start|>", "<|channel|>") else match.end() :]
        self._header, self._seen = "", True
        return True

    def _open(self, header: str) -> None:
        channels = re.findall(r"<\|channel\|>\s*(\w+)", header)
        recipients = [name for name in re.findall(r"to=([\w.:/-]+)", header) if name != "assistant"]
        self._header, self._recipient, self._body = None, recipients[-1] if recipients else "", ""
        self._kind = "reasoning" if channels[-1:] == ["analysis"] else "content"
        self._part = None if self._recipient else _Part(self, self._kind)

    def _add(self, text: str) -> None:
        if self._part is None:
            self._body += text
        else:
            self._part.add(text)

    def _close(self) -> None:
        if self._header is not None:
            return
        if self._part is not None:
            self._part.end(kept=self._kind == "content")
        elif self._recipient:
            self._call(Call(self._recipient.removeprefix("functions."), _arguments(self._body)))
        self._header = ""


def _arguments(body: str) -> str:
    """Give the arguments of a call as the model wrote them, even if they are no JSON: the channel marks a call."""
    return body.strip() or "{}"


def schemas_of(tools: Iterable[Any]) -> Schemas:
    """Collect the JSON schema of each parameter of each tool."""
    found: dict[str, Any] = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        parameters = function.get("parameters") or {}
        if isinstance(parameters, dict) and isinstance(function.get("name"), str):
            properties = parameters.get("properties")
            found[function["name"]] = properties if isinstance(properties, dict) else {}
    return found


# Markers in text.


def _search(markers: Iterable[str]) -> re.Pattern[str]:
    """Make a pattern that finds the first of ``markers``. If several begin at one place, it finds the longest."""
    ordered = sorted(set(markers), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


class _Prefixes(NamedTuple):
    """Hold the beginnings of markers, which the next piece of text could complete.

    Attributes:
        parts: the beginnings.
        longest: length of the longest one.
    """

    parts: frozenset[str]
    longest: int


def _prefixes(markers: Iterable[str], ends: Iterable[str] = ()) -> _Prefixes:
    """Collect the beginnings of ``markers``; ``ends`` are held whole, too."""
    parts = {marker[:length] for marker in markers for length in range(1, len(marker))}
    parts |= {marker[:length] for marker in ends for length in range(1, len(marker) + 1)}
    return _Prefixes(frozenset(parts), max(map(len, parts), default=0))


def _held(text: str, prefixes: _Prefixes) -> int:
    """Count the characters at the end of ``text`` that may begin a marker, with a quote before them."""
    for length in range(min(prefixes.longest, len(text)), 0, -1):
        if text[-length:] in prefixes.parts:
            return length + (text[-length - 1 : -length] in tuple(_QUOTES))
    return 0


_HARMONY_BODY = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_HARMONY_ENDS = _search(_HARMONY_BODY)
_HARMONY_HELD = _prefixes(HARMONY, ENDS)


def _without_ends(text: str) -> str:
    while True:
        found = next((end for end in ENDS if text.rstrip("\n").endswith(end)), None)
        if found is None:
            return text
        text = text.rstrip("\n")[: -len(found)]


def _is_wordy(marker: str) -> bool:
    """Tell whether a marker is made of letters, so that prose and code may contain it, too."""
    return bool(re.match(r"</?[A-Za-z]|\[", marker)) and "|" not in marker


def _can_begin_call(call: CallMarkers, text: str) -> bool | None:
    """Tell whether ``text`` after a marker may be a call; None while the text is too short."""
    if call.parse is not anything or not _is_wordy(call.start):
        return True
    body = text.lstrip()
    if not body:
        return None
    if body[0] in "{[<":
        return True
    name = re.match(r"[\w.$:/-]+", body)
    if name is None:
        return False
    follows = body[name.end() :]
    if not follows:
        return None
    return follows[0] == "<" or follows.lstrip(" ")[:1] in ("\n", "<", "")


def _is_calls(call: CallMarkers, text: str) -> bool:
    """Tell whether ``text`` after the start of a call may hold this call, further calls, and the end of the answer."""
    while (end := text.find(call.end) if call.end else -1) >= 0:
        text = text[end + len(call.end) :].lstrip()
        if not text.startswith(call.start):
            return any(marker.startswith(text) for marker in (call.start, *ENDS)) or not _without_ends(text).strip()
        text = text[len(call.start) :]
    return True


def _may_end_here(call: CallMarkers, text: str) -> bool:
    """Tell whether ``text`` may be a call without its end marker. A single word is no call."""
    return not (call.end and _is_wordy(call.start)) or text.lstrip()[:1] in "{[<" or "<arg_key" in text


def _may_become_bare_call(text: str) -> bool:
    """Tell whether ``text``, without spaces, is the beginning of a bare call."""
    return bool(re.fullmatch(r'\[([A-Za-z_][\w.]*)?|\{("?(n|na|nam|name|t|ty|typ|type|f\w*)?"?)?', text))
