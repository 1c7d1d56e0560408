"""OpenAI's chat completions and completions: from a request to the engine's keywords, and back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from .desk import Desk
from .shapes import ChatRequest, CompletionRequest

# Fields of a request that the engine takes as they are.
_AS_THEY_ARE = (
    *("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "stop", "max_tokens"),
)
_OF_A_CHAT = ("tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "chat_template_kwargs")
EFFORTS = {"minimal": "low", "xhigh": "high"}

Chunks = AsyncGenerator[dict[str, Any] | None, None]


def chat_keywords(request: ChatRequest, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Make the keywords of the engine's chat.

    Args:
        request: of the client.
        usual: sampling that the model's publisher recommends, for fields that the request leaves out.
    """
    body = request.model_dump(exclude_none=True, by_alias=True)
    given = {name: body[name] for name in (*_AS_THEY_ARE, *_OF_A_CHAT) if name in body}
    if (most := request.max_completion_tokens) is not None:
        given["max_tokens"] = most
    if (effort := request.reasoning_effort) is not None:
        given["reasoning_effort"] = EFFORTS.get(effort, effort)
    return {**usual, **forced(given), "messages": body["messages"]}


def forced(given: dict[str, Any]) -> dict[str, Any]:
    """Name the tool that must be called, if a call is required and there is only one tool."""
    tools = given.get("tools") or []
    if given.get("tool_choice") != "required" or len(tools) != 1:
        return given
    return {**given, "tool_choice": {"type": "function", "function": {"name": tools[0]["function"]["name"]}}}


def completion_keywords(request: CompletionRequest) -> list[dict[str, Any]]:
    """Make the keywords of the engine's completions, one for each prompt."""
    body = request.model_dump(exclude_none=True)
    given = {name: body[name] for name in (*_AS_THEY_ARE, "suffix", "echo", "logprobs") if name in body}
    prompt = request.prompt
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    return [{"max_tokens": 16, **given, "prompt": one} for one in (prompt if several else [prompt])]


def seeded(given: dict[str, Any], seed: int | None, count: int) -> list[dict[str, Any]]:
    """Repeat the keywords for ``count`` choices, each with a seed of its own."""
    first = random.getrandbits(32) if seed is None else seed
    return [{**given, "seed": (first + number) % 2**32} for number in range(count)]


async def whole(desk: Desk, what: str, calls: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Make one answer of a call for each choice."""
    tasks = [asyncio.create_task(desk.result(what, call)) for call in calls]
    try:
        return joined(await asyncio.gather(*tasks), model)
    finally:
        for task in tasks:
            task.cancel()


def joined(answers: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Join the answers to one request: a choice each."""
    first = answers[0]
    choices = [{**answer["choices"][0], "index": index} for index, answer in enumerate(answers)]
    usages = [answer["usage"] | _cached(answer["timings"]) for answer in answers]
    return {**first, "model": model, "choices": choices, "usage": summed(usages)}


def summed(usages: list[dict[str, Any]]) -> dict[str, Any]:
    """Add the tokens of the choices; a prompt that all choices share counts once."""
    prompt, made = usages[0]["prompt_tokens"], sum(usage["completion_tokens"] for usage in usages)
    return {**usages[0], "completion_tokens": made, "total_tokens": prompt + made}


def usage_of(timings: Mapping[str, Any]) -> dict[str, Any]:
    """Count the tokens of a streamed answer by its figures."""
    prompt, made = timings["prompt_n"] + timings["cache_n"], timings["predicted_n"]
    counts = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return counts | _cached(timings)


def _cached(timings: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt_tokens_details": {"cached_tokens": timings["cache_n"]}}


async def chunks(desk: Desk, what: str, calls: list[dict[str, Any]], model: str, with_usage: bool) -> Chunks:
    """Yield None for each call that is sound, then the chunks of all choices, in the order in which they come."""
    name = "chatcmpl" if what == "chat" else "cmpl"
    identity = {"id": f"{name}-{uuid.uuid4()}", "created": int(time.time()), "model": model}
    extra, usages, last = {"usage": None} if with_usage else {}, [], {}
    async with contextlib.aclosing(_merged(desk, what, calls)) as merged:
        async for index, chunk in merged:
            if chunk is None:
                yield None
                continue
            if "timings" in chunk:
                usages.append(usage_of(chunk["timings"]))
            choices = [{**choice, "index": index} for choice in chunk["choices"]]
            last = {**chunk, **identity, "choices": choices, **extra}
            yield last
    if with_usage and usages:
        yield {**last, "choices": [], "usage": summed(usages)}


async def _merged(desk: Desk, what: str, calls: list[dict[str, Any]]) -> AsyncGenerator[tuple[int, Any], None]:
    """Yield the results of several calls as they come, each with its number."""
    queue: asyncio.Queue[tuple[int, str, Any]] = asyncio.Queue()

    async def collect(number: int, given: dict[str, Any]) -> None:
        try:
            async with contextlib.aclosing(desk.results(what, {**given, "stream": True})) as results:
                async for result in results:
                    queue.put_nowait((number, "item", result))
            queue.put_nowait((number, "done", None))
        except Exception as error:
            queue.put_nowait((number, "error", error))

    tasks = [asyncio.create_task(collect(number, given)) for number, given in enumerate(calls)]
    open_calls = len(calls)
    try:
        while open_calls:
            number, kind, value = await queue.get()
            if kind == "error":
                raise value
            if kind == "item":
                yield number, value
            open_calls -= kind == "done"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
