"""The server by its paths: answers, streams, errors, limits, and what happens when an engine or a client goes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx2")

from serving import END, Served, build_model, serving  # noqa: E402

from edgemoe.serve.app import Settings  # noqa: E402

QUESTION = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": QUESTION, "max_tokens": 6, "temperature": 0}
# An answer that goes on until the context is full: its end token is not allowed.
ENDLESS = {**CHAT, "max_tokens": 7000, "stream": True, "logit_bias": {str(END): -100}}
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(build_model(tmp_path_factory.mktemp("model")), parallel=3) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[Any]:
    with httpx.Client(base_url=served.url, timeout=WAIT_SECONDS) as made:
        yield made


def events(lines: Iterator[str]) -> list[Any]:
    """Read the data of a stream's events; ``[DONE]`` stays text."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in data]


def until(condition: Any) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never happened"
        threading.Event().wait(0.01)


def test_a_chat_has_openais_shape(client: Any) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT | {"model": "tiny", "unknown": 1}).json()
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny" and answer["id"].startswith("chatcmpl-")
    usage = answer["usage"]
    assert usage["completion_tokens"] == 6 and usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["timings"]["predicted_n"] == 6


def test_a_stream_says_what_the_whole_answer_says(client: Any) -> None:
    whole = client.post("/v1/chat/completions", json=CHAT).json()
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, last, done = events(response.iter_lines())
    assert done == "[DONE]" and last["choices"] == [] and last["usage"]["completion_tokens"] == 6
    assert len({chunk["id"] for chunk in chunks}) == 1 and all(chunk["usage"] is None for chunk in chunks)
    message = whole["choices"][0]["message"]
    for name in ("content", "reasoning_content"):
        text = "".join(chunk["choices"][0]["delta"].get(name, "") for chunk in chunks)
        assert text == message.get(name, "")


def test_several_choices_have_seeds_of_their_own_and_one_prompt(client: Any) -> None:
    body = CHAT | {"n": 3, "temperature": 1.5, "seed": 7}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    texts = [json.dumps(choice["message"]) for choice in answer["choices"]]
    assert len(set(texts)) == 3 and answer["usage"]["completion_tokens"] == 18
    again = client.post("/v1/chat/completions", json=body).json()
    assert [json.dumps(choice["message"]) for choice in again["choices"]] == texts


def test_probabilities(client: Any) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT | {"logprobs": True, "top_logprobs": 2}).json()
    rows = answer["choices"][0]["logprobs"]["content"]
    assert len(rows) == 6 and all(row["logprob"] <= 0 and row["top_logprobs"] for row in rows)


def test_completions_of_texts_and_of_tokens(client: Any) -> None:
    body = {"prompt": ["Hello", "Good"], "max_tokens": 3, "temperature": 0}
    answer = client.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1] and answer["object"] == "text_completion"
    tokens = client.post("/v1/completions", json=body | {"prompt": [40, 41, 42]})
    assert tokens.status_code == 200
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        chunks = events(response.iter_lines())[:-1]
    for index in (0, 1):
        text = "".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == index)
        assert text == answer["choices"][index]["text"]


def test_json_of_a_schema(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = client.post("/v1/chat/completions", json=CHAT | {"response_format": wanted, "max_tokens": 200}).json()
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["a"], bool)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {**CHAT, "temperature": "warm"}, 400, "temperature"),
        ("chat/completions", {**CHAT, "model": "another"}, 404, "another"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 40000}]}, 400, "context"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image"),
        ("messages", {"messages": QUESTION}, 400, "max_tokens"),
        ("responses", {"input": "Hi", "previous_response_id": "resp_1"}, 400, "stores no responses"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input_image"),
        ("embeddings", {"input": "Hi"}, 400, "no embeddings"),
        ("completions", {"prompt": [10**8]}, 400, "not one of the model's"),
        ("completions", {"prompt": ""}, 400, "empty"),
        ("completions", {"prompt": "Hi", "echo": True, "logprobs": 1}, 400, "logits_all"),
    ],
)
def test_errors_have_a_status_and_a_sentence(client: Any, path: str, body: Any, status: int, words: str) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert words in error["message"] and error["type"]
    assert client.post(f"/v1/{path}", json={**body, "stream": True}).status_code == status


def test_a_broken_body_and_a_wrong_path(client: Any) -> None:
    broken = client.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert broken.status_code == 400 and broken.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/nothing").json()["error"]["message"]
    assert client.get("/v1/chat/completions").status_code == 405


def test_facts(client: Any) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json()["object"] == "model"
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/props").json()["n_ctx"] > 0
    metrics = client.get("/metrics").text
    assert "edgemoe_answers_total" in metrics and "edgemoe_engine_misses" in metrics


def test_answers_at_once_equal_answers_one_by_one(client: Any, served: Served) -> None:
    bodies = [CHAT | {"messages": [{"role": "user", "content": f"Question {n}"}]} for n in range(6)]
    one_by_one = [client.post("/v1/chat/completions", json=body).json()["choices"] for body in bodies]
    answers: list[Any] = [None] * len(bodies)

    def ask(number: int) -> None:
        answers[number] = httpx.post(f"{served.url}/v1/chat/completions", json=bodies[number], timeout=WAIT_SECONDS)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert [answer.json()["choices"] for answer in answers] == one_by_one


def test_a_client_that_goes_frees_its_place(client: Any, served: Served) -> None:
    with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
        lines = response.iter_lines()
        next(lines)
        assert served.desk.running == 1
    until(lambda: served.desk.running == 0)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{served.url}/v1/chat/completions", json=ENDLESS | {"stream": False}, timeout=0.5)
    until(lambda: served.desk.running == 0)
    until(lambda: client.get("/props").json()["running"] == 0)


def test_a_full_queue_refuses_with_a_time(tmp_path: Path) -> None:
    with (
        serving(build_model(tmp_path), parallel=1, queue=0) as served,
        httpx.Client(base_url=served.url, timeout=WAIT_SECONDS) as client,
    ):
        with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            refused = httpx.post(f"{served.url}/v1/chat/completions", json=CHAT)
            assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        until(lambda: served.desk.running == 0)
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_an_engine_that_dies_fails_its_answers_only(tmp_path: Path) -> None:
    with (
        serving(build_model(tmp_path), parallel=1) as served,
        httpx.Client(base_url=served.url, timeout=WAIT_SECONDS) as client,
    ):
        with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as response:
            lines = response.iter_lines()
            next(lines)
            waiting: list[Any] = []
            ask = threading.Thread(
                target=lambda: waiting.append(
                    httpx.post(f"{served.url}/v1/chat/completions", json=CHAT, timeout=WAIT_SECONDS)
                )
            )
            ask.start()
            until(lambda: served.desk.waiting == 1)
            engine = served.desk._engine
            assert engine is not None
            os.kill(engine.pid, signal.SIGKILL)
            assert "killed" in events(lines)[-1]["error"]["message"]
        ask.join(WAIT_SECONDS)
        assert waiting[0].status_code == 200 and served.desk.restarts == 1


def test_the_end_lets_answers_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    with (
        serving(build_model(tmp_path), parallel=1, seconds=WAIT_SECONDS) as served,
        httpx.Client(base_url=served.url, timeout=WAIT_SECONDS) as client,
    ):
        body = CHAT | {"max_tokens": 60, "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            served.server.should_exit = True
            assert events(lines)[-1] == "[DONE]"


def test_an_idle_engine_is_unloaded_and_comes_back(tmp_path: Path) -> None:
    with (
        serving(build_model(tmp_path), parallel=1, idle=0.2) as served,
        httpx.Client(base_url=served.url, timeout=WAIT_SECONDS) as client,
    ):
        first = client.post("/v1/chat/completions", json=CHAT).json()
        until(lambda: not served.desk.loaded)
        assert client.get("/health").json()["loaded"] is False
        assert client.post("/v1/chat/completions", json=CHAT).json()["choices"] == first["choices"]


def test_a_key_a_limit_and_no_pages_of_others(tmp_path: Path) -> None:
    settings = Settings(api_key="secret", body_bytes=2000, origins=("http://good",), usual={"temperature": 0.0})
    with (
        serving(build_model(tmp_path), parallel=1, settings=settings) as served,
        httpx.Client(base_url=served.url, timeout=WAIT_SECONDS) as client,
    ):
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 401
        wrong = client.post("/v1/messages", json=CHAT, headers={"x-api-key": "no"})
        assert wrong.status_code == 401 and wrong.json()["error"]["type"] == "authentication_error"
        key = {"Authorization": "Bearer secret"}
        large = {"messages": [{"role": "user", "content": "x" * 3000}]}
        assert client.post("/v1/chat/completions", json=large, headers=key).status_code == 413
        pieces = (b" " * 1000 for _ in range(5))
        assert client.post("/v1/chat/completions", content=pieces, headers=key).status_code == 413
        for origin, allowed in (("http://good", "http://good"), ("http://evil", None)):
            answer = client.get("/v1/models", headers=key | {"Origin": origin})
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        assert client.post("/v1/messages", json=CHAT, headers={"x-api-key": "secret"}).status_code == 200


def test_embeddings(tmp_path: Path) -> None:
    with (
        serving(build_model(tmp_path, keys={"pooling_type": 1}), parallel=1, n_ctx=512) as served,
        httpx.Client(base_url=served.url, timeout=WAIT_SECONDS) as client,
    ):
        data = client.post("/v1/embeddings", json={"input": ["ab", "ba"]}).json()["data"]
        assert len(data) == 2 and sum(x * x for x in data[0]["embedding"]) == pytest.approx(1, abs=1e-3)
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 400
