"""Render chat templates as Hugging Face's tokenizers do, and find out which messages a template can express.

For this, small conversations are rendered, and their words are searched in the result. Nothing here needs a model.
Jinja is imported when a template is compiled.

**Source**: filters, functions and settings of the environment are those of transformers' ``apply_chat_template``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, TypeAlias

from ..errors import BadMessages, BadTemplate

Message: TypeAlias = dict[str, Any]

HINT = 'chat_format="chatml", or another name that llama_cpp knows, takes the place of the template'
LEVELS = ("on", "off", "low", "medium", "high")

TOOL = "weather_of"
KEY, VALUE = "town", "Nowhereville"
QUESTION, ANSWER, THOUGHT, SYSTEM = "Questionwords", "Answerwords", "Thoughtwords", "Systemwords"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": "A town."}}},
        },
    }
]


class Template:
    """Render one chat template, and tell its abilities.

    Attributes:
        text: Jinja source of the template.
        bos_token: text of the model's first token; empty if it has none.
        eos_token: text of the model's last token; empty if it has none.
    """

    def __init__(self, text: str, bos_token: str = "", eos_token: str = "") -> None:
        """Compile ``text``.

        Raises:
            BadTemplate: the text is no Jinja template.
        """
        self.text, self.bos_token, self.eos_token = text, bos_token, eos_token
        self._compiled = _compile(text)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None, generate: bool = True, **keywords: Any
    ) -> str:
        """Render the prompt for ``messages``.

        Args:
            messages: messages in the template's form, see :func:`edgemoe.formats.history.prepared`.
            tools: tools in OpenAI's shape.
            generate: True ends the prompt at the beginning of the model's answer.
            **keywords: variables of the template, such as ``enable_thinking``.

        Raises:
            BadMessages: the template refuses these messages.
            BadTemplate: the template fails.
        """
        return self._render(self._compiled, messages, tools, generate, self.defaults | keywords)

    def _render(self, compiled: Any, messages: Any, tools: Any, generate: bool, keywords: Mapping[str, Any]) -> str:
        try:
            text: str = compiled.render(
                messages=messages,
                tools=tools or None,
                functions=[tool.get("function", tool) for tool in tools] if tools else None,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                add_generation_prompt=generate,
                raise_exception=_refuse,
                strftime_now=lambda form: datetime.now().strftime(form),
                **keywords,
            )
        except BadMessages:
            raise
        except Exception as error:  # a template is a foreign program and may raise any error
            raise BadTemplate(f"the chat template failed: {type(error).__name__}: {error}", HINT) from error
        return text

    def attempt(self, messages: Sequence[Message], **keywords: Any) -> str:
        """Render the prompt; empty if the template refuses or fails."""
        try:
            return self.render(messages, **keywords)
        except (BadMessages, BadTemplate):
            return ""

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Find the keywords that the template expects to be defined.

        Some templates use ``enable_thinking`` without a check that it is defined. They were written for programs that
        always define it as true.
        """
        asked: set[str] = set()
        try:
            self._render(_compile(self.text, asked), [_user()], None, True, {})
        except (BadMessages, BadTemplate):
            return {}
        return {"enable_thinking": True} if "enable_thinking" in asked else {}

    def check(self) -> None:
        """Check the template with one question.

        Raises:
            BadTemplate: the prompt lacks the question, for example because the template is in another language.
        """
        with contextlib.suppress(BadMessages):
            if QUESTION not in self.render([_user()]):
                raise BadTemplate("the chat template leaves the messages out: it may be for another program", HINT)

    # The template's abilities.

    @cached_property
    def opening(self) -> str:
        """Give the text that the template writes before an answer."""
        whole, without = self.attempt([_user()]), self.attempt([_user()], generate=False)
        return whole[len(without) :] if whole.startswith(without) else whole

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """List the words of ``LEVELS`` that change the prompt."""
        shown = {level: self.attempt([_user()], **keywords_of(level)) for level in LEVELS}
        if len({shown[level] for level in ("low", "medium", "high")}) > 1:
            switched = ("on", "off") if shown["on"] != shown["off"] else ()
            return (*switched, "low", "medium", "high")
        return ("on", "off") if shown["on"] != shown["off"] else ()

    @cached_property
    def takes_system(self) -> bool:
        """Tell whether the template writes a system message."""
        return SYSTEM in self.attempt([{"role": "system", "content": SYSTEM}, _user()])

    @cached_property
    def takes_later_system(self) -> bool:
        """Tell whether the template writes both a first system message and one between other messages."""
        later = {"role": "system", "content": f"{SYSTEM} again"}
        shown = self.attempt([{"role": "system", "content": SYSTEM}, _user(), _assistant(), later, _user()])
        return shown.count(SYSTEM) == 2 and f"{SYSTEM} again" in shown

    @cached_property
    def call_form(self) -> tuple[bool, str | None] | None:
        """Find the form of a call that the template writes; None if it writes no calls.

        The form tells whether the arguments are an object, and which content goes with the call.
        """
        for content in ("", None):
            for as_object in (True, False):
                shown = self.attempt(self.called(as_object, content))
                if TOOL in shown and VALUE in shown and _is_plain(shown):
                    return as_object, content
        return None

    @cached_property
    def takes_content_with_calls(self) -> bool:
        """Tell whether the template writes both the text and the calls of an answer."""
        form = self.call_form
        shown = self.attempt(self.called(form[0], ANSWER)) if form else ""
        return ANSWER in shown and TOOL in shown

    @cached_property
    def takes_answers_in_a_row(self) -> bool:
        """Tell whether an answer in words and an answer with calls need no question between them."""
        form = self.call_form
        if form is None:
            return False
        messages = self.called(*form)
        shown = self.attempt([messages[0], _assistant(), *messages[1:], _assistant()])
        return ANSWER in shown and TOOL in shown

    @cached_property
    def takes_several_calls(self) -> bool:
        """Tell whether the template writes the second call of a message."""
        form = self.call_form
        return form is not None and f"{TOOL}_too" in self.attempt(self.called(*form, 2))

    @cached_property
    def takes_results(self) -> bool:
        """Tell whether the template writes a message of the role ``tool``."""
        form = self.call_form
        return "Resultwords" in (self.attempt(self.called(*form)) if form else "")

    @cached_property
    def turn_end(self) -> str:
        """Find the marker after an answer; empty if no text there looks like a marker."""
        shown = self.attempt([_user(), _assistant(), _user()])
        match = re.match(r"\s*(<\|?[^<>\s]{1,40}\|?>|\[[^\[\]\s]{1,20}\[?)", shown.partition(ANSWER)[2])
        return match[1] if match else ""

    def shown(self) -> str:
        """Render a conversation with thinking, a call and its result, to see markers that the template assembles."""
        as_object, content = self.call_form or (True, "")
        thinking = {"enable_thinking": True, "thinking": True}
        messages = self.called(as_object, content)
        messages[1]["reasoning_content"] = messages[1]["thinking"] = THOUGHT
        return "\n".join(
            self.attempt(given, tools=tools, **words)
            for given in ([_user()], messages[:2], messages)
            for tools in (None, TOOLS)
            for words in ({}, thinking)
        )

    def called(self, as_object: bool, content: str | None, count: int = 1) -> list[Message]:
        """Make a question, an answer that calls a tool ``count`` times, and the results."""
        arguments: Any = {KEY: VALUE} if as_object else json.dumps({KEY: VALUE})
        calls, results = [], []
        for number in range(1, count + 1):
            name, identity = TOOL + "_too" * (number - 1), f"call{number:05}"
            function = {"name": name, "arguments": arguments}
            calls.append({"id": identity, "type": "function", "function": function})
            results.append({"role": "tool", "tool_call_id": identity, "name": name, "content": "Resultwords"})
        return [_user(), {"role": "assistant", "content": content, "tool_calls": calls}, *results]


def keywords_of(level: str) -> dict[str, Any]:
    """Give the templates' variables for a level of thinking: ``on``, ``off``, ``none``, or an effort like ``low``."""
    thinks = level not in ("off", "none")
    keywords: dict[str, Any] = {"enable_thinking": thinks, "thinking": thinks}
    if level not in ("on", "off", "none"):
        keywords["reasoning_effort"] = keywords["thinking_effort"] = level
    return keywords


def _user() -> Message:
    return {"role": "user", "content": QUESTION}


def _assistant() -> Message:
    return {"role": "assistant", "content": ANSWER}


def _is_plain(shown: str) -> bool:
    """Tell whether the arguments are proper JSON: not a Python dictionary, and without a second layer of quotes."""
    return f"'{VALUE}'" not in shown and f'\\"{VALUE}' not in shown


def _refuse(reason: str) -> None:
    raise BadMessages(f"the model's chat template refuses these messages: {reason}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=list
    )


def _compile(text: str, asked: set[str] | None = None) -> Any:
    """Compile a template. ``asked`` collects undefined names that the template tests for truth."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import SandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """Support the tag that marks text for training. Its content is rendered as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """Drop the tag and keep its content."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Asked(jinja2.Undefined):
        def __bool__(self) -> bool:
            if asked is not None:
                asked.add(str(self._undefined_name))
            return False

    # Templates such as Kimi K2's change lists of their own. This is safe, because messages are copies.
    environment = SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=Asked, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.filters["from_json"] = json.loads
    try:
        return environment.from_string(text)
    except Exception as error:  # the compiler may raise any error for a damaged text
        where = f" in line {line}" if (line := getattr(error, "lineno", None)) else ""
        raise BadTemplate(f"the chat template cannot be compiled: {error}{where}", HINT) from error
