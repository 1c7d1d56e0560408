"""Programs that people use speak to our server: OpenAI's and Anthropic's clients, LangChain, LiteLLM, llm, curl.

The model is tiny and its answers are scripted; everything else is real. A client that is not installed is skipped by
name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from serving import build_model, serving

CITIES = ("Oslo", 'São "Paulo"', "Bergen")
ANSWER = "Rain in Oslo, grey elsewhere."
THOUGHT = "Let me see."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "The weather of a city", "parameters": SCHEMA}
QUESTION = "What is the weather like?"
PICTURE = "data:image/png;base64,iVBORw0KGgo="


def call(city: str) -> str:
    arguments = json.dumps({"city": city}, ensure_ascii=False)
    made = f'{{"name": "get_weather", "arguments": {arguments}}}'
    return f"<think>\n{THOUGHT}\n</think>\n\n<tool_call>\n{made}\n</tool_call>"


LOOP = [*map(call, CITIES), ANSWER]
THINKS = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def openai(path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Give OpenAI's client for a server whose answers are the test's parameter."""
    module = pytest.importorskip("openai")
    with serving(path, request.param) as served:
        yield module.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def anthropic(path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    module = pytest.importorskip("anthropic")
    with serving(path, request.param) as served:
        yield module.Anthropic(base_url=served.url, api_key="none", max_retries=0)


def scripts(*answers: str) -> Any:
    return pytest.mark.parametrize("openai", [list(answers)], indirect=True)


def messages_of(*answers: str) -> Any:
    return pytest.mark.parametrize("anthropic", [list(answers)], indirect=True)


@scripts(*LOOP, *LOOP)
def test_openai_calls_tools_in_a_loop_of_three_whole_and_streamed(openai: Any) -> None:
    tools: list[Any] = [{"type": "function", "function": FUNCTION}]
    for stream in (False, True):
        messages: list[Any] = [{"role": "user", "content": QUESTION}]
        for city in CITIES:
            message = ask(openai, messages, tools, stream)
            (made,) = message["tool_calls"]
            assert json.loads(made["function"]["arguments"]) == {"city": city}
            messages += [message, {"role": "tool", "tool_call_id": made["id"], "content": "Rain."}]
        assert ask(openai, messages, tools, stream)["content"] == ANSWER


def ask(client: Any, messages: list[Any], tools: list[Any], stream: bool) -> dict[str, Any]:
    if not stream:
        answer = client.chat.completions.create(model="tiny", messages=messages, tools=tools)
        message = answer.choices[0].message
        return {**message.model_dump(exclude_none=True), "content": message.content or ""}
    text, calls = "", []
    for chunk in client.chat.completions.create(model="tiny", messages=messages, tools=tools, stream=True):
        text += chunk.choices[0].delta.content or ""
        calls += chunk.choices[0].delta.tool_calls or []
    made = [{"id": c.id, "type": "function", "function": c.function.model_dump()} for c in calls]
    return {"role": "assistant", "content": text, "tool_calls": made}


@scripts(THINKS, THINKS)
def test_openai_shows_the_thinking_apart(openai: Any) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    message = openai.chat.completions.create(model="tiny", messages=messages).choices[0].message
    assert (message.content, message.reasoning_content) == (ANSWER, THOUGHT)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = openai.chat.completions.create(model="tiny", messages=messages, **options)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER and last.usage.completion_tokens > 0


@scripts('{"city": "Oslo"}')
def test_openai_parses_a_record(openai: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    record = pydantic.create_model("Town", city=(str, ...))
    messages: Any = [{"role": "user", "content": "Where?"}]
    answer = openai.chat.completions.parse(model="tiny", messages=messages, response_format=record)
    assert answer.choices[0].message.parsed.city == "Oslo"


@scripts()
def test_openai_hears_that_pictures_are_refused(openai: Any) -> None:
    import openai as package

    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    with pytest.raises(package.BadRequestError, match="image"):
        openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])


def test_openai_gets_embeddings(path: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("openai")
    model = build_model(tmp_path, keys={"pooling_type": 1})
    with serving(model, n_ctx=512) as served:
        client = package.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        (first, second) = client.embeddings.create(model="tiny", input=["ab", "cd"]).data  # the client asks for base64
        plain = client.embeddings.create(model="tiny", input="ab", encoding_format="float").data[0]
        assert first.embedding == pytest.approx(plain.embedding, abs=1e-6) and first.embedding != second.embedding


@scripts(call("Oslo"), THINKS, THINKS, call("Oslo"))
def test_openai_responses(openai: Any) -> None:
    tools: Any = [{"type": "function", "strict": False, **FUNCTION}]
    answer = openai.responses.create(model="tiny", input=QUESTION, tools=tools)
    thought, made = answer.output
    assert thought.content[0].text == THOUGHT and json.loads(made.arguments) == {"city": "Oslo"}
    given = [{"role": "user", "content": QUESTION}, *(item.model_dump() for item in answer.output)]
    given.append({"type": "function_call_output", "call_id": made.call_id, "output": "Rain."})
    assert (
        openai.responses.create(model="tiny", input=given, tools=tools, instructions="Be brief.").output_text == ANSWER
    )
    with openai.responses.stream(model="tiny", input=QUESTION) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == ANSWER
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    with openai.responses.stream(model="tiny", input=QUESTION, tools=tools) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
    assert json.loads(done[0].arguments) == {"city": "Oslo"}


@messages_of(*LOOP)
def test_anthropic_calls_tools_in_a_loop_of_three(anthropic: Any) -> None:
    tool = {"name": "get_weather", "description": "The weather", "input_schema": SCHEMA}
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for city in CITIES:
        answer = anthropic.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[tool], system="Hi")
        assert answer.stop_reason == "tool_use" and answer.content[0].thinking == THOUGHT
        assert answer.content[1].input == {"city": city}
        messages.append({"role": "assistant", "content": [block.model_dump() for block in answer.content]})
        result = {"type": "tool_result", "tool_use_id": answer.content[1].id, "content": "Rain."}
        messages.append({"role": "user", "content": [result]})
    answer = anthropic.messages.create(model="tiny", max_tokens=200, messages=messages, tools=[tool])
    assert answer.content[0].text == ANSWER and answer.stop_reason == "end_turn" and answer.usage.output_tokens > 0


@messages_of(THINKS, call("Oslo"))
def test_anthropic_streams(anthropic: Any) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": QUESTION}]}
    with anthropic.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert final.content[0].thinking == THOUGHT and final.stop_reason == "end_turn"
    tool = {"name": "get_weather", "input_schema": SCHEMA}
    with anthropic.messages.stream(**asked, tools=[tool]) as stream:
        final = stream.get_final_message()
    assert final.content[1].input == {"city": "Oslo"} and final.stop_reason == "tool_use"


@messages_of()
def test_anthropic_hears_that_pictures_are_refused(anthropic: Any) -> None:
    import anthropic as package

    source = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    messages: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    with pytest.raises(package.BadRequestError, match="images"):
        anthropic.messages.create(model="tiny", max_tokens=9, messages=messages)


def test_litellm(path: Path) -> None:
    litellm = pytest.importorskip("litellm")
    with serving(path, [ANSWER, ANSWER, call("Oslo")]) as served:
        given = {"model": "openai/tiny", "api_base": f"{served.url}/v1", "api_key": "none"}
        messages = [{"role": "user", "content": QUESTION}]
        assert litellm.completion(**given, messages=messages).choices[0].message.content == ANSWER
        chunks = litellm.completion(**given, messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
        tools = [{"type": "function", "function": FUNCTION}]
        made = litellm.completion(**given, messages=messages, tools=tools).choices[0].message.tool_calls[0]
        assert json.loads(made.function.arguments) == {"city": "Oslo"}


def test_langchain(path: Path) -> None:
    langchain = pytest.importorskip("langchain_openai")
    with serving(path, [ANSWER, ANSWER, call("Oslo")]) as served:
        chat = langchain.ChatOpenAI(model="tiny", base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        assert chat.invoke(QUESTION).content == ANSWER
        assert "".join(piece.content for piece in chat.stream(QUESTION)) == ANSWER
        made = chat.bind_tools([{"type": "function", "function": FUNCTION}]).invoke(QUESTION)
        assert made.tool_calls[0]["args"] == {"city": "Oslo"}


def test_llm(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    with serving(path, [ANSWER, ANSWER]) as served:
        models = [{"model_id": "tiny", "model_name": "tiny", "api_base": f"{served.url}/v1", "api_key_name": "tiny"}]
        (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models), encoding="utf-8")
        (tmp_path / "keys.json").write_text('{"tiny": "none"}', encoding="utf-8")
        for options in ([], ["--no-stream"]):
            command = [sys.executable, "-m", "llm", "-m", "tiny", *options, QUESTION]
            environment = {"LLM_USER_PATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert done.stdout.strip() == ANSWER, done.stderr


def test_curl(path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    with serving(path, [ANSWER]) as served:
        body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]})
        command = [curl, "-sS", f"{served.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ANSWER
