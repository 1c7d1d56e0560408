"""The server itself: from a socket to a signal that ends it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from ..worker import open_service
from .app import Settings, make_app
from .desk import Desk

# Time that a connection gets to take the end of its answer.
CONNECTION_SECONDS = 2


class Server(uvicorn.Server):
    """Serves one model. At the end, answers under way get their time, and new requests are refused."""

    def __init__(
        self, desk: Desk, settings: Settings, seconds: float, ready: Callable[[], None] = lambda: None
    ) -> None:
        """Make the server; nothing listens yet.

        Args:
            desk: the model.
            settings: of the server.
            seconds: time that answers under way get at the end.
            ready: called once the server listens.
        """
        super().__init__(
            uvicorn.Config(
                make_app(desk, settings),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=CONNECTION_SECONDS,
                server_header=False,
            )
        )
        self._desk, self._seconds, self._ready = desk, seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers, then the connections."""
        await self._desk.close(self._seconds)
        await super().shutdown(sockets)

    def serve_on(self, listener: socket.socket) -> None:
        """Serve requests until SIGINT, SIGTERM, or ``should_exit``."""
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(self.serve([listener]))


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket to HOST:PORT.

    Raises:
        OSError: the address is taken, or not of this machine.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(found[0], found[1])
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(found[4])
    return listener


def opener(path: Path, parallel: int, keywords: dict[str, Any]) -> Callable[[], Any]:
    """Give the function that opens the engine in the child."""
    return partial(open_service, str(path), parallel, **keywords)
