"""The application: its paths, and the checks before them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..errors import EdgeMoEError
from . import chat, messages, responses
from .desk import Desk
from .failures import Refused, anthropic_error, headers, openai_error, refusal
from .metrics import Metrics
from .parts import Answer, parts
from .shapes import (
    MOST_CHOICES,
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    MessagesRequest,
    ResponsesRequest,
)

# A comment goes to the client at this interval while it waits for the next piece, so that no proxy gives up.
PING_SECONDS = 15.0
OPEN_PATHS = ("/health", "/v1/health")

_log = logging.getLogger("edgemoe.serve")
T = TypeVar("T")
Chunks = AsyncGenerator[dict[str, Any] | None, None]


@dataclass(frozen=True)
class Settings:
    """Settings of the server.

    Attributes:
        api_key: key that every request must give; empty for none.
        body_bytes: largest body of a request.
        origins: web pages of these origins may use the server.
        usual: sampling for fields that a request leaves out.
    """

    api_key: str = ""
    body_bytes: int = 16 << 20
    origins: tuple[str, ...] = ()
    usual: Mapping[str, Any] = field(default_factory=dict)


def make_app(desk: Desk, settings: Settings) -> FastAPI:
    """Make the application in front of ``desk``."""
    app = FastAPI(title="EdgeMoE", version=__version__, docs_url=None, redoc_url=None, responses=_ERRORS)
    server = _Server(desk, settings)
    server.add_paths(app)
    app.add_exception_handler(Exception, _fail)
    app.add_exception_handler(Refused, _fail)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    if settings.origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(_Gate, settings=settings)
    return app


_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error in OpenAI's shape, under /v1/messages in Anthropic's: 400 wrong, 401 no key, 404 no "
        "such model or path, 413 too large, 429 the queue is full, 500 the engine failed, 503 no model.",
        "content": {"application/json": {"schema": _ERROR}},
    }
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "An object, or a stream of events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}


class _Server:
    """Holds the handlers of the paths."""

    def __init__(self, desk: Desk, settings: Settings) -> None:
        self._desk, self._usual = desk, settings.usual
        self._metrics, self._began = Metrics(desk), int(time.time())

    def add_paths(self, app: FastAPI) -> None:
        for path, handler in (
            ("/v1/chat/completions", self.chat),
            ("/v1/completions", self.complete),
            ("/v1/responses", self.respond),
            ("/v1/messages", self.message),
        ):
            app.add_api_route(path, handler, methods=["POST"], responses=_STREAM, response_model=None)
        app.add_api_route("/v1/embeddings", self.embed, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self.models, methods=["GET"], response_model=None)
        app.add_api_route("/v1/models/{name:path}", self.model, methods=["GET"], response_model=None)
        for path in OPEN_PATHS:
            app.add_api_route(path, self.health, methods=["GET"], response_model=None)
        app.add_api_route("/props", self.props, methods=["GET"], response_model=None)
        app.add_api_route("/metrics", self.metrics, methods=["GET"], response_class=PlainTextResponse)

    # Answers.

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a chat: OpenAI's chat completions."""
        self._check(body.model)
        given = chat.chat_keywords(body, self._usual)
        calls = chat.seeded(given, body.seed, body.n or 1)
        return await self._openai(request, "chat", calls, body)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a text: OpenAI's completions."""
        self._check(body.model)
        prompts = chat.completion_keywords(body)
        if len(prompts) * (body.n or 1) > MOST_CHOICES:
            raise Refused(400, f"prompts times n is more than {MOST_CHOICES}", "ask for fewer choices at once")
        calls = [call for given in prompts for call in chat.seeded(given, body.seed, body.n or 1)]
        return await self._openai(request, "complete", calls, body)

    async def _openai(
        self, request: Request, what: str, calls: list[dict[str, Any]], body: ChatRequest | CompletionRequest
    ) -> Response:
        name = self._desk.name
        if not body.stream:
            return await self._whole(request, lambda: chat.whole(self._desk, what, calls, name))
        with_usage = bool(body.stream_options and body.stream_options.include_usage)

        def events() -> Chunks:
            return chat.chunks(self._desk, what, calls, name, with_usage)

        return await self._stream(events, lambda event: f"data: {_json(event)}\n\n", "data: [DONE]\n\n", openai_error)

    async def respond(self, body: ResponsesRequest, request: Request) -> Response:
        """Answer a chat: OpenAI's responses."""
        self._check(body.model)
        given = responses.keywords(body, self._usual)
        writer, answer = responses.Writer(body, self._desk.name), Answer()

        def events() -> Chunks:
            return writer.events(parts(self._chat_chunks(given), answer), answer)

        if body.stream:
            return await self._stream(events, _named, "", openai_error)
        return await self._whole(request, lambda: _drained(events(), lambda: writer.response(answer)))

    async def message(self, body: MessagesRequest, request: Request) -> Response:
        """Answer a chat: Anthropic's messages."""
        self._check(body.model)
        given, answer, name = messages.keywords(body, self._usual), Answer(), self._desk.name

        def events() -> Chunks:
            return messages.events(parts(self._chat_chunks(given), answer), answer, name)

        if body.stream:
            return await self._stream(events, _named, "", anthropic_error)
        return await self._whole(request, lambda: _drained(events(), lambda: messages.message(answer, name)))

    def _chat_chunks(self, given: dict[str, Any]) -> Chunks:
        return chat.chunks(self._desk, "chat", chat.seeded(given, None, 1), self._desk.name, False)

    async def _whole(self, request: Request, make: Callable[[], Awaitable[dict[str, Any]]]) -> Response:
        """Give a whole answer; stop to make it if the client goes."""

        async def made() -> dict[str, Any]:
            async with self._desk.turn():
                return await make()

        with _refusing():
            answer = await _unless_gone(request, made())
        self._metrics.count(answer)
        return JSONResponse(answer)

    async def _stream(
        self,
        make: Callable[[], Chunks],
        written: Callable[[dict[str, Any]], str],
        last: str,
        failed: Callable[[Refused], dict[str, Any]],
    ) -> Response:
        """Stream an answer. An error before the first event has a status of its own, a later one is an event."""
        events = self._in_turn(make)
        with _refusing():
            first = await anext(events, None)

        async def lines() -> AsyncIterator[str]:
            async with contextlib.aclosing(events):
                try:
                    if first is not None:
                        yield written(first)
                    async for event in _with_pings(events):
                        yield written(event) if event is not None else ": ping\n\n"
                    yield last
                except Exception as error:
                    yield f"event: error\ndata: {_json(failed(refusal(error)))}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _in_turn(self, make: Callable[[], Chunks]) -> Chunks:
        async with self._desk.turn(), contextlib.aclosing(make()) as events:
            async for event in events:
                if event is not None:
                    self._metrics.count(event)
                yield event

    async def embed(self, body: EmbeddingsRequest, request: Request) -> Response:
        """Give the embeddings of texts."""
        self._check(body.model)
        given = body.input
        several = isinstance(given, list) and not isinstance(given[0], int)
        texts = given if several else [given]

        async def made() -> dict[str, Any]:
            result: dict[str, Any] = await self._desk.result("embed", {"texts": texts})
            for item in result["data"] if body.encoding_format == "base64" else ():
                packed = struct.pack(f"<{len(item['embedding'])}f", *item["embedding"])
                item["embedding"] = base64.b64encode(packed).decode("ascii")
            return {**result, "model": self._desk.name}

        return await self._whole(request, made)

    def _check(self, model: str | None) -> None:
        """Refuse a request for another model.

        Raises:
            Refused: the server has no model of this name.
        """
        if model not in (None, "", "default", self._desk.name):
            hint = f"this server has {self._desk.name}"
            raise Refused(404, f"there is no model {model!r}", hint, "model_not_found")

    # Facts.

    async def models(self) -> dict[str, Any]:
        """List the models: the one that is served."""
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> dict[str, Any]:
        """Describe a model."""
        self._check(name)
        return self._model()

    def _model(self) -> dict[str, Any]:
        return {"id": self._desk.name, "object": "model", "created": self._began, "owned_by": "edgemoe"}

    async def health(self) -> dict[str, Any]:
        """Tell that the server runs, and whether the model is loaded."""
        return {"status": "ok", "loaded": self._desk.loaded}

    async def props(self) -> dict[str, Any]:
        """Describe the model and its context. Loads the model."""
        facts: dict[str, Any] = await self._desk.result("facts", {})
        return {"model": self._desk.name, "parallel": self._desk.parallel, "version": __version__, **facts}

    async def metrics(self) -> Response:
        """Give counters in Prometheus's form; never loads the model."""
        facts = await self._desk.result("facts", {}) if self._desk.loaded else {}
        return Response(self._metrics.text(facts), media_type=self._metrics.media_type)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _named(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {_json(event)}\n\n"


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn every error into a refusal, and log an error of our own."""
    try:
        yield
    except Exception as error:
        refused = refusal(error)
        if refused.status == 500:
            _log.error("%s", refused, exc_info=error if not isinstance(error, EdgeMoEError) else None)
        raise refused from error


async def _drained(events: Chunks, result: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    async with contextlib.aclosing(events):
        async for _ in events:
            pass
    return result()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``; cancel it if the client goes.

    Raises:
        Refused: the client has gone; nobody reads the answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refused(499, "the client has gone")
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _with_pings(events: Chunks) -> AsyncIterator[dict[str, Any] | None]:
    """Yield the events, and None after each pause of `PING_SECONDS`."""
    following: asyncio.Future[Any] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({following}, timeout=PING_SECONDS)
            if not done:
                yield None
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            following = None
            if event is not None:
                yield event
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


# Errors.


async def _fail(request: Request, error: Exception) -> Response:
    refused = refusal(error)
    write = anthropic_error if request.url.path.startswith("/v1/messages") else openai_error
    return JSONResponse(write(refused), refused.status, headers(refused))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = await _fail(request, Refused(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return await _fail(request, Refused(400, f"{place}: {first['msg']}" if place else first["msg"]))


class _Gate:
    """Refuses requests without the key, and bodies that are too large, before anything else reads them."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._key, self._most = app, settings.api_key.encode(), settings.body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"])
        refused: Refused | None = None
        if self._key and scope["path"] not in OPEN_PATHS and not self._has_key(given):
            refused = Refused(401, "the API key is missing or wrong", code="invalid_api_key")
        length = given.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            refused = refused or self._too_large()
        if refused is None:
            refused = await self._pass_on(scope, receive, send)
        if refused is not None:
            response = await _fail(Request(scope), refused)
            await response(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> Refused | None:
        """Let the application answer, unless a body without a length becomes too large."""
        taken = 0

        async def receive_some() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return message if taken <= self._most else {"type": "http.request", "body": b"", "more_body": False}

        async def send_some(message: Message) -> None:
            if taken <= self._most:
                await send(message)

        await self._app(scope, receive_some, send_some)
        return self._too_large() if taken > self._most else None

    def _has_key(self, given: Mapping[bytes, bytes]) -> bool:
        key = given.get(b"authorization", b"").removeprefix(b"Bearer ") or given.get(b"x-api-key", b"")
        return hmac.compare_digest(key, self._key)

    def _too_large(self) -> Refused:
        return Refused(413, f"the body has more than {self._most} bytes")
