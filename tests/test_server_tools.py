"""OpenAI's client calls tools over llama_cpp's server, which runs our class, in every family's real format.

The model's raw text of a call has to come back as ``tool_calls``; the client then sends the call back as OpenAI writes
it, with arguments as a JSON string and without content, and the template has to see an object.

What llama_cpp 0.3.36's server itself does to the messages: it refuses an assistant message whose ``content`` is null
(its type wants a string or nothing, so the field is left out here; the engine's own test below sends None). It drops
``reasoning_content``, ``timings`` and every other field that its types do not name, from requests and from whole
answers. Streams are passed on as they are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


# How the families write a call.


def _json(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _hermes(arguments: dict[str, Any]) -> str:
    return f'<tool_call>\n{{"name": "get_weather", "arguments": {_json(arguments)}}}\n</tool_call>'


def _xml(arguments: dict[str, Any]) -> str:
    parameters = "".join(f"<parameter={key}>\n{_text(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function=get_weather>\n{parameters}</function>\n</tool_call>"


def _glm(arguments: dict[str, Any], between: str) -> str:
    pairs = (
        f"<arg_key>{key}</arg_key>{between}<arg_value>{_text(value)}</arg_value>{between}"
        for key, value in arguments.items()
    )
    return f"<tool_call>get_weather{between}{''.join(pairs)}</tool_call>"


def _minimax(arguments: dict[str, Any]) -> str:
    parameters = "".join(f'<parameter name="{key}">{_text(value)}</parameter>\n' for key, value in arguments.items())
    return f'<minimax:tool_call>\n<invoke name="get_weather">\n{parameters}</invoke>\n</minimax:tool_call>'


def _kimi(arguments: dict[str, Any], number: int) -> str:
    return (
        f"<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:{number}<|tool_call_argument_begin|>"
        f"{_json(arguments)}<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
    )


def _deepseek(call: str) -> str:
    return (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    )


def _pythonic(arguments: dict[str, Any]) -> str:
    return f"[get_weather({', '.join(f'{key}={json.dumps(value)}' for key, value in arguments.items())})]<|eot|>"


def _gemma(arguments: dict[str, Any]) -> str:
    pairs = (
        f'{key}:<|"|>{value}<|"|>' if isinstance(value, str) else f"{key}:{json.dumps(value)}"
        for key, value in arguments.items()
    )
    return f"<|tool_call>call:get_weather{{{','.join(pairs)}}}<tool_call|><|tool_response>"


def _harmony(arguments: dict[str, Any]) -> str:
    return (
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_weather <|constrain|>json<|message|>{_json(arguments)}<|call|>"
    )


Writer = Callable[[dict[str, Any], int], str]

CALLS: dict[str, Writer] = {
    "gpt-oss": lambda arguments, _: _harmony(arguments),
    "qwen3": lambda arguments, _: f"<think>\nLook it up.\n</think>\n\n{_hermes(arguments)}<|im_end|>",
    "qwen3-coder": lambda arguments, _: f"{_xml(arguments)}<|im_end|>",
    "qwen3.5": lambda arguments, _: f"Look it up.\n</think>\n\n{_xml(arguments)}<|im_end|>",
    "nemotron3": lambda arguments, _: f"Look it up.\n</think>\n{_xml(arguments)}\n<|im_end|>",
    "glm-4.6": lambda arguments, _: f"\n<think>Look it up.</think>\n{_glm(arguments, chr(10))}<|observation|>",
    "glm-4.7": lambda arguments, _: f"Look it up.</think>{_glm(arguments, '')}<|observation|>",
    "minimax-m2": lambda arguments, _: f"Look it up.\n</think>\n\n{_minimax(arguments)}[e~[",
    "deepseek-v3": lambda arguments, _: _deepseek(
        f"function<｜tool▁sep｜>get_weather\n```json\n{_json(arguments)}\n```"
    ),
    "deepseek-v3.1": lambda arguments, _: _deepseek(f"get_weather<｜tool▁sep｜>{_json(arguments)}"),
    "kimi-k2": _kimi,
    "kimi-k2-thinking": lambda arguments, number: f"<think>Look it up.</think>{_kimi(arguments, number)}",
    "llama4": lambda arguments, _: _pythonic(arguments),
    "gemma4": lambda arguments, _: _gemma(arguments),
    "granite4": lambda arguments, _: f"{_hermes(arguments)}<|end_of_text|>",
}
"""Raw text of a call in each family, from its arguments and its number."""

ANSWERED = {
    "gpt-oss": "<|channel|>final<|message|>{a}<|return|>",
    "qwen3": "<think>\n\n</think>\n\n{a}<|im_end|>",
    "qwen3.5": "Enough.\n</think>\n\n{a}<|im_end|>",
    "nemotron3": "Enough.\n</think>\n{a}<|im_end|>",
    "glm-4.6": "\n<think>Enough.</think>\n{a}<|user|>",
    "glm-4.7": "Enough.</think>{a}<|user|>",
    "minimax-m2": "Enough.\n</think>\n\n{a}[e~[",
    "kimi-k2-thinking": "<think>Enough.</think>{a}<|im_end|>",
}
"""Raw text of the answer at last, where there is more than its text."""

STREAMED = ("gpt-oss", "qwen3", "qwen3.5", "glm-4.7", "deepseek-v3.1", "kimi-k2", "gemma4", "llama4")


def scripts(family: str) -> list[str]:
    calls = [CALLS[family](arguments, number) for number, arguments in enumerate(ARGUMENTS)]
    return [*calls, ANSWERED.get(family, "{a}").replace("{a}", ANSWER)]


def as_the_template_wants(family: str, message: dict[str, Any]) -> dict[str, Any]:
    """A message of the loop with what the family's template expects: mostly an object and an empty text."""
    if message["role"] != "assistant":
        return message
    if family == "deepseek-v3":  # it takes the arguments as text, and a call only where content is null
        return message | {"content": None}
    calls = [
        call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return message | {"content": "", "tool_calls": calls}


def check_prompt(family: str, text: str, messages: list[dict[str, Any]]) -> None:
    wanted = [as_the_template_wants(family, message) for message in messages]
    assert text == rendered(FAMILIES[family], wanted, TOOLS)


# The server.


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, path: Path, answers: list[str]) -> Iterator[tuple[OpenAI, ScriptedLlama]]:
    """A client of llama_cpp's server on a free port, and the engine that the server made of our class."""
    engines: list[ScriptedLlama] = []

    class Served(ScriptedLlama):
        def __init__(self, model_path: str, **keywords: Any) -> None:
            super().__init__(model_path, answers=answers, **keywords)
            engines.append(self)

    # The server names the class in two of its modules, each time through the package.
    monkeypatch.setattr(llama_cpp, "Llama", Served)
    settings = ModelSettings(model=str(path), n_ctx=CONTEXT, verbose=False)
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
    """Tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def whole(client: OpenAI, messages: list[Any]) -> tuple[str, list[dict[str, Any]], str | None]:
    """Text, calls and the reason of the end of one answer."""
    choice = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS).choices[0]
    calls = [call.model_dump(exclude_none=True) for call in choice.message.tool_calls or ()]
    return choice.message.content or "", calls, choice.finish_reason


def streamed(client: OpenAI, messages: list[Any]) -> tuple[str, list[dict[str, Any]], str | None]:
    """The same, put together from the deltas as OpenAI describes it."""
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
LOOPS = [(family, whole) for family in CALLS] + [(family, streamed) for family in STREAMED]


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


@pytest.mark.parametrize("family", CALLS)
def test_a_loop_without_a_server_with_null_contents(family: str, tmp_path: Path) -> None:
    """What llama_cpp's server does not let through: ``content`` is None, and the whole message is sent back."""
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
