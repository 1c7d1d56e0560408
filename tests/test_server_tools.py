"""OpenAI's client calls tools over llama_cpp's server, which runs our class, in every family's real format.

The model's raw text of a call must come back as ``tool_calls``. The client then sends the call back in OpenAI's form,
with arguments as a JSON string and without content. The template must see an object.

llama_cpp 0.3.36's server changes messages itself. It refuses an assistant message with a ``content`` of null, because
its type wants a string or no field. The field is left out here; the engine's own test below sends None. From requests
and whole answers it drops every field that its types do not name, such as ``reasoning_content``. Streams are passed on
as they are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
from openai import OpenAI
from scripted import CONTEXT, FAMILIES, ScriptedLlama, build_family, rendered

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city"},
                    "days": {"type": "integer", "description": "How many days ahead"},
                },
                "required": ["city"],
            },
        },
    }
]
QUESTION = "What is the weather like?"
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"city": "Oslo"},
    {"city": 'São "Paulo"', "days": 3},
    {"city": "Bergen\\Voss <b> & 5 > 4", "days": 0},
)
RESULTS = ("Rain.", '{"sky": "grey", "wind": "5 m/s"}', "Sun,\nlater rain.")
ANSWER = "Rain in Oslo, grey in São Paulo."


# The families' notations of a call.


def _json(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _hermes(arguments: dict[str, Any], _: int) -> str:
    return f'<tool_call>\n{{"name": "get_weather", "arguments": {_json(arguments)}}}\n</tool_call>'


def _xml(arguments: dict[str, Any], _: int) -> str:
    parameters = "".join(f"<parameter={key}>\n{_text(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function=get_weather>\n{parameters}</function>\n</tool_call>"


def _glm_lines(arguments: dict[str, Any], _: int) -> str:
    pairs = (f"<arg_key>{key}</arg_key>\n<arg_value>{_text(value)}</arg_value>\n" for key, value in arguments.items())
    return f"<tool_call>get_weather\n{''.join(pairs)}</tool_call>"


def _glm(arguments: dict[str, Any], number: int) -> str:
    return _glm_lines(arguments, number).replace("\n", "")


def _minimax(arguments: dict[str, Any], _: int) -> str:
    parameters = "".join(f'<parameter name="{key}">{_text(value)}</parameter>\n' for key, value in arguments.items())
    return f'<invoke name="get_weather">\n{parameters}</invoke>'


def _kimi(arguments: dict[str, Any], number: int) -> str:
    name = f"functions.get_weather:{number}"
    return f"<|tool_call_begin|>{name}<|tool_call_argument_begin|>{_json(arguments)}<|tool_call_end|>"


def _deepseek(arguments: dict[str, Any], _: int) -> str:
    return f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{_json(arguments)}<｜tool▁call▁end｜>"


def _deepseek_v3(arguments: dict[str, Any], _: int) -> str:
    fenced = f"```json\n{_json(arguments)}\n```"
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n{fenced}<｜tool▁call▁end｜>"


def _pythonic(arguments: dict[str, Any], _: int) -> str:
    pairs = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"get_weather({', '.join(pairs)})"


def _gemma(arguments: dict[str, Any], _: int) -> str:
    pairs = (
        f'{key}:<|"|>{value}<|"|>' if isinstance(value, str) else f"{key}:{json.dumps(value)}"
        for key, value in arguments.items()
    )
    return f"<|tool_call>call:get_weather{{{','.join(pairs)}}}<tool_call|>"


def _harmony(arguments: dict[str, Any], _: int) -> str:
    return f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{_json(arguments)}"


@dataclass(frozen=True)
class Form:
    """Describe a family's notation of calls.

    Attributes:
        before: text before the first call.
        call: one call, from its arguments and its number in the conversation.
        after: text after the last call.
        between: text between two calls of one answer; None if an answer holds only one call.
        answer: an answer without a call, with ``{a}`` for its text.
    """

    before: str
    call: Callable[[dict[str, Any], int], str]
    after: str
    between: str | None = ""
    answer: str = "{a}"

    def written(self, calls: Sequence[dict[str, Any]], first: int = 0) -> str:
        """Write the raw text of an answer with these calls."""
        texts = [self.call(arguments, number) for number, arguments in enumerate(calls, first)]
        return self.before + (self.between or "").join(texts) + self.after


_THINKS = "<think>\nLook it up.\n</think>\n\n"
_THOUGHT = "Look it up.\n</think>\n\n"  # the prompt has opened the thinking
_ENOUGH = "Enough.\n</think>\n\n{a}"
_V3_END = "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
_KIMI_SECTION = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|><|im_end|>")

FORMS: dict[str, Form] = {
    "gpt-oss": Form(
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant",
        _harmony,
        "<|call|>",
        None,
        "<|channel|>final<|message|>{a}<|return|>",
    ),
    "qwen3": Form(_THINKS, _hermes, "<|im_end|>", "\n", "<think>\n\n</think>\n\n{a}"),
    "qwen3-coder": Form("", _xml, "<|im_end|>", "\n"),
    "qwen3.5": Form(_THOUGHT, _xml, "<|im_end|>", "\n", _ENOUGH),
    "nemotron3": Form("Look it up.\n</think>\n", _xml, "\n<|im_end|>", "\n", "Enough.\n</think>\n{a}"),
    "glm-4.6": Form(
        "\n<think>Look it up.</think>\n", _glm_lines, "<|observation|>", "\n", "\n<think>Enough.</think>\n{a}"
    ),
    "glm-4.7": Form("Look it up.</think>", _glm, "<|observation|>", "", "Enough.</think>{a}"),
    "minimax-m2": Form(f"{_THOUGHT}<minimax:tool_call>\n", _minimax, "\n</minimax:tool_call>[e~[", "\n", _ENOUGH),
    "deepseek-v3": Form("<｜tool▁calls▁begin｜>", _deepseek_v3, _V3_END, "\n"),
    "deepseek-v3.1": Form("<｜tool▁calls▁begin｜>", _deepseek, _V3_END),
    "kimi-k2": Form(_KIMI_SECTION[0], _kimi, _KIMI_SECTION[1]),
    "kimi-k2-thinking": Form(
        f"<think>Look it up.</think>{_KIMI_SECTION[0]}", _kimi, _KIMI_SECTION[1], "", "<think>Enough.</think>{a}"
    ),
    "llama4": Form("[", _pythonic, "]<|eot|>", ", "),
    "gemma4": Form("", _gemma, "<|tool_response>"),
    "granite4": Form("", _hermes, "<|end_of_text|>", "\n"),
}
"""Every family of these tests."""

STREAMED = ("gpt-oss", "qwen3", "qwen3.5", "glm-4.7", "deepseek-v3.1", "kimi-k2", "gemma4", "llama4")


def scripts(family: str) -> list[str]:
    """Run a loop of three calls, one after another, and the answer."""
    form = FORMS[family]
    return [*(form.written([ARGUMENTS[number]], number) for number in range(3)), form.answer.replace("{a}", ANSWER)]


def as_the_template_wants(family: str, message: dict[str, Any]) -> dict[str, Any]:
    """Write a message of the loop in the form that the family's template expects: mostly an object and an empty text.

    A result carries the name of its function, which Kimi's template puts before it.
    """
    if message["role"] != "assistant":
        return message | ({"name": "get_weather"} if message["role"] == "tool" else {})
    if family == "deepseek-v3":  # the template takes arguments as text, and a call only if content is null
        return message | {"content": None}
    calls = [
        call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"content": message.get("content") or "", "tool_calls": calls}


def check_prompt(family: str, text: str, messages: list[dict[str, Any]]) -> None:
    wanted = [as_the_template_wants(family, message) for message in messages]
    assert text == rendered(FAMILIES[family], wanted, TOOLS)


# The server.


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, path: Path, answers: list[str]) -> Iterator[tuple[OpenAI, ScriptedLlama]]:
    """Start llama_cpp's server on a free port. Yield a client, and the engine that the server made of our class."""
    engines: list[ScriptedLlama] = []

    class Served(ScriptedLlama):
        def __init__(self, model_path: str, **keywords: Any) -> None:
            super().__init__(model_path, answers=answers, **keywords)
            engines.append(self)

    # Two modules of the server name the class, each time through the package.
    monkeypatch.setattr(llama_cpp, "Llama", Served)
    settings = ModelSettings(model=str(path), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, verbose=False)
    app = create_app(server_settings=ServerSettings(), model_settings=[settings])
    server = _Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    assert server.ready.wait(30), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            yield client, engines[0]
    finally:
        server.should_exit = True
        thread.join(30)
        for engine in engines:
            engine.close()


class _Server(uvicorn.Server):
    """Report when the server listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def whole(client: OpenAI, messages: list[Any]) -> tuple[str, list[dict[str, Any]], str | None]:
    """Give text, calls and the reason of the end of one answer."""
    choice = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS).choices[0]
    calls = [call.model_dump(exclude_none=True) for call in choice.message.tool_calls or ()]
    return choice.message.content or "", calls, choice.finish_reason


def streamed(client: OpenAI, messages: list[Any]) -> tuple[str, list[dict[str, Any]], str | None]:
    """Give the same for a stream, joined from its deltas as OpenAI describes."""
    text, calls, reason = "", [], None
    for chunk in client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            if part.index == len(calls):
                calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call = calls[part.index]
            call["id"] = part.id or call["id"]
            assert part.function is not None
            call["function"]["name"] += part.function.name or ""
            call["function"]["arguments"] += part.function.arguments or ""
    return text, calls, reason


Ask = Callable[[OpenAI, list[Any]], tuple[str, list[dict[str, Any]], str | None]]
LOOPS = [(family, whole) for family in FORMS] + [(family, streamed) for family in STREAMED]


@pytest.mark.parametrize(("family", "ask"), LOOPS, ids=[f"{family}-{ask.__name__}" for family, ask in LOOPS])
def test_three_calls_in_a_loop(family: str, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    path = build_family(tmp_path, family)
    with serving(monkeypatch, path, scripts(family)) as (client, llm):
        for number, (arguments, result) in enumerate(zip(ARGUMENTS, RESULTS, strict=True)):
            text, calls, reason = ask(client, messages)
            assert text == "" and reason == "tool_calls"
            assert [call["function"]["name"] for call in calls] == ["get_weather"]
            assert calls[0]["type"] == "function" and calls[0]["id"]
            assert json.loads(calls[0]["function"]["arguments"]) == arguments
            check_prompt(family, llm.asked[number].text, messages)
            messages.append({"role": "assistant", "tool_calls": calls})
            messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": result})
        text, calls, reason = ask(client, messages)
        assert (text, calls, reason) == (ANSWER, [], "stop")
        check_prompt(family, llm.asked[-1].text, messages)
        ids = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        assert len(set(ids)) == len(ids), "calls of one conversation share an id"


@pytest.mark.parametrize("family", FORMS)
def test_a_loop_without_a_server_with_null_contents(family: str, tmp_path: Path) -> None:
    """llama_cpp's server would refuse these messages: ``content`` is None, and the whole message is sent back."""
    llm = ScriptedLlama(build_family(tmp_path, family), answers=scripts(family))
    messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    for arguments, result in zip(ARGUMENTS, RESULTS, strict=True):
        choice = llm.create_chat_completion(messages, tools=TOOLS)["choices"][0]
        calls = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
        assert json.loads(calls[0]["function"]["arguments"]) == arguments
        check_prompt(family, llm.asked[-1].text, messages)
        messages.append({"role": "assistant", "content": None, "tool_calls": calls})
        messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": result})
        before = json.dumps(messages)
    message = llm.create_chat_completion(messages, tools=TOOLS)["choices"][0]["message"]
    assert message["content"] == ANSWER and not message.get("tool_calls")
    check_prompt(family, llm.asked[-1].text, messages)
    assert json.dumps(messages) == before, "the caller's messages were changed"
    llm.close()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("family", [family for family, form in FORMS.items() if form.between is not None])
def test_two_calls_in_one_answer(family: str, stream: bool, tmp_path: Path) -> None:
    form = FORMS[family]
    answers = [form.written(ARGUMENTS[:2]), form.answer.replace("{a}", ANSWER)]
    llm = ScriptedLlama(build_family(tmp_path, family), answers=answers)
    messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    answer = llm.create_chat_completion(messages, tools=TOOLS, stream=stream)
    calls: list[dict[str, Any]] = [] if stream else answer["choices"][0]["message"]["tool_calls"]
    for chunk in answer if stream else ():
        for part in chunk["choices"][0]["delta"].get("tool_calls") or ():
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "type": part["type"], "function": {"name": "", "arguments": ""}})
            for field in ("name", "arguments"):
                calls[part["index"]]["function"][field] += part["function"].get(field) or ""
    assert [json.loads(call["function"]["arguments"]) for call in calls] == list(ARGUMENTS[:2])
    assert len({call["id"] for call in calls}) == 2
    messages.append({"role": "assistant", "content": None, "tool_calls": calls})
    for call, result in zip(calls, RESULTS, strict=False):
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    assert llm.create_chat_completion(messages, tools=TOOLS)["choices"][0]["message"]["content"] == ANSWER
    check_prompt(family, llm.asked[-1].text, messages)
    llm.close()


WITH_WORDS = ("qwen3", "qwen3-coder", "qwen3.5", "glm-4.7", "minimax-m2", "deepseek-v3.1", "kimi-k2", "granite4")


@pytest.mark.parametrize("family", WITH_WORDS)
def test_words_before_a_call_are_the_answer_and_stay_in_the_history(family: str, tmp_path: Path) -> None:
    form, words = FORMS[family], "Let me look."
    thought, closing, section = form.before.rpartition("</think>\n\n" if "</think>\n" in form.before else "</think>")
    written = form.written(ARGUMENTS[:1]).removeprefix(form.before)
    answers = [f"{thought}{closing}{words}\n{section}{written}", form.answer.replace("{a}", ANSWER)]
    llm = ScriptedLlama(build_family(tmp_path, family), answers=answers)
    messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    message = llm.create_chat_completion(messages, tools=TOOLS)["choices"][0]["message"]
    assert message["content"] == words and len(message["tool_calls"]) == 1
    call = message["tool_calls"][0]
    messages.append({"role": "assistant", "content": words, "tool_calls": [call]})
    messages.append({"role": "tool", "tool_call_id": call["id"], "content": RESULTS[0]})
    assert llm.create_chat_completion(messages, tools=TOOLS)["choices"][0]["message"]["content"] == ANSWER
    check_prompt(family, llm.asked[-1].text, messages)
    llm.close()


@pytest.mark.parametrize("family", FORMS)
def test_a_call_that_is_cut_is_no_error(family: str, tmp_path: Path) -> None:
    form, question = FORMS[family], [{"role": "user", "content": QUESTION}]
    llm = ScriptedLlama(build_family(tmp_path, family), answers=[form.written(ARGUMENTS[1:2])] * 4)
    before = len(llm.tokenize(form.before.encode(), add_bos=False, special=True))
    for into_the_call in (4, 20):
        limit = before + into_the_call
        answer = llm.create_chat_completion(question, tools=TOOLS, max_tokens=limit)
        assert answer["choices"][0]["finish_reason"] == "length"
        chunks = list(llm.create_chat_completion(question, tools=TOOLS, max_tokens=limit, stream=True))
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    llm.close()
