"""The chat in a browser: textual-serve behind a random address, for one session at a time.

textual-serve asks for no password and takes a WebSocket from every page that is open in the browser. A page of another
origin, or another user of this machine, could read conversations and remove models. So the address has a random token
as its first part, and a WebSocket must come from a page of this server.

**Source**: textual-serve 1.1.3, ``Server``; RFC 6455, section 10.2 (Origin).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web
from textual_serve.server import Server

HOST, PORT = "localhost", 8000
# A page that is loaded again comes while its session is still ending.
PATIENCE_S = 5.0
NO_TOKEN = "This address lacks its token: open the address that edgemoe chat --serve has printed.\n"
OTHER_ORIGIN = "A page of another origin cannot use the chat.\n"
BUSY = "The chat is open in another window: close it first, then load this page again.\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ChatServer(Server):  # type: ignore[misc]
    """Serves the chat at ``address``."""

    def __init__(self, command: str, port: int) -> None:
        """Serve the program that ``command`` starts, to this machine only."""
        super().__init__(command, host=HOST, port=port, title="EdgeMoE")
        self._token = secrets.token_urlsafe(24)
        self._origins = {f"http://{name}:{port}" for name in (HOST, "127.0.0.1", "[::1]")}
        self._free = asyncio.Event()
        self._free.set()

    @property
    def address(self) -> str:
        """Address of the chat, with its token."""
        return f"{self.public_url}/{self._token}/"

    async def _make_app(self) -> web.Application:
        outer = web.Application(middlewares=[self._guard])
        outer.add_subapp(f"/{self._token}", await super()._make_app())
        return outer

    @web.middleware  # type: ignore[untyped-decorator]
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests without the token and WebSockets of other pages."""
        first, _, rest = request.path.lstrip("/").partition("/")
        if not secrets.compare_digest(first.encode(), self._token.encode()):
            raise web.HTTPForbidden(text=NO_TOKEN)
        if rest == "ws" and request.headers.get("Origin") not in self._origins:
            raise web.HTTPForbidden(text=OTHER_ORIGIN)
        response = await handler(request)
        if not response.prepared:
            response.headers["Referrer-Policy"] = "no-referrer"  # the page loads a font from another server
        return response

    async def on_startup(self, app: web.Application) -> None:
        """Print the address."""
        self.console.print(f"The chat is at {self.address}", soft_wrap=True, highlight=False)
        self.console.print("Whoever knows this address can use it, on this machine only. Ctrl+C ends it.")

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        """Answer with the page of the chat, or with a sentence while a session is open."""
        await self._wait_until_free()
        response: web.StreamResponse = await super().handle_index(request)
        return response

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Run a session, the only one."""
        await self._wait_until_free()
        with self._session():
            response: web.WebSocketResponse = await super().handle_websocket(request)
            return response

    async def _wait_until_free(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._free.wait(), PATIENCE_S)
        if not self._free.is_set():
            raise web.HTTPConflict(text=BUSY)

    @contextlib.contextmanager
    def _session(self) -> Iterator[None]:
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()


def free_port() -> int:
    """Give `PORT` unless another program has it, else a port that is free."""
    for port in (PORT, 0):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    return PORT
