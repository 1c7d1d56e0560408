"""Run the server until a signal ends it."""

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


class _Server(uvicorn.Server):
    """Closes the desk before the connections: answers under way get their time, new requests are refused."""

    def __init__(self, config: uvicorn.Config, desk: Desk, seconds: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._desk, self._seconds, self._listens = desk, seconds, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listens()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._desk.close(self._seconds)
        await super().shutdown(sockets)


def run(
    desk: Desk, settings: Settings, listener: socket.socket, seconds: float, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve requests on ``listener`` until SIGINT or SIGTERM.

    Args:
        desk: the model.
        settings: of the server.
        listener: a bound socket.
        seconds: time that answers under way get after the signal.
        ready: called once the server listens.
    """
    config = uvicorn.Config(
        make_app(desk, settings),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    server = _Server(config, desk, seconds, ready)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve([listener]))


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
