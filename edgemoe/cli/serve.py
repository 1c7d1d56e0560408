"""``edgemoe serve``: answer programs over HTTP, with OpenAI's and Anthropic's interfaces."""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import api_key
from ..errors import ConfigError
from ..text.console import talk
from . import MODEL, OK
from .opening import DEMO, OpenEngine, engine_keywords, find_model, sampling_of

if TYPE_CHECKING:
    import socket

HOST, PORT, PARALLEL = "127.0.0.1", 8000, 4
# Requests that may wait, for each one that is answered.
QUEUE = 8
# Time that answers under way get after SIGTERM.
END_SECONDS = 10.0


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "serve", parents=[common], help="serve a model to other programs, as OpenAI's and Anthropic's servers do"
    )
    parser.add_argument("model", nargs="?", default=DEMO, metavar="MODEL", help=f"{MODEL}; the demo model if missing")
    group = parser.add_argument_group("the server")
    group.add_argument("--host", default=HOST, help="address to listen at (%(default)s: this machine only)")
    group.add_argument("--port", type=int, default=PORT, metavar="N", help="port to listen at (%(default)s)")
    group.add_argument("--api-key", metavar="KEY", help="key that requests must give; also $EDGEMOE_API_KEY")
    group.add_argument(
        "--parallel",
        type=int,
        default=PARALLEL,
        metavar="N",
        help="answers at once (%(default)s); they share N times the context of --ctx",
    )
    group.add_argument("--queue", type=int, metavar="N", help=f"requests that may wait ({QUEUE} for each answer)")
    group.add_argument("--idle", type=float, metavar="SECONDS", help="unload the model after an idle time")
    group.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="let web pages of ORIGIN ask")
    parser.set_defaults(command=serve_command)


def serve_command(parsed: argparse.Namespace, open_engine: OpenEngine) -> int:
    """Serve the model until a signal ends the server."""
    _check(parsed)
    try:
        from ..serve.app import Settings
        from ..serve.desk import Desk
        from ..serve.run import Server, opener
    except ImportError as error:
        raise ConfigError(f"the server needs {error.name}", 'pip install "edgemoe[serve]"') from error
    path = find_model(parsed.model)
    keywords = engine_keywords(parsed, parsed.model)
    if parsed.threads is not None:
        keywords["n_threads_batch"] = parsed.threads
    if isinstance(keywords["n_ctx"], int):  # otherwise the placement chooses
        keywords["n_ctx"] *= parsed.parallel
    name = path.stem if Path(parsed.model).exists() else parsed.model
    queue = QUEUE * parsed.parallel if parsed.queue is None else parsed.queue
    desk = Desk(name, opener(path, parsed.parallel, keywords), parsed.parallel, queue, parsed.idle)
    usual = sampling_of(parsed, parsed.model, path)
    settings = Settings(api_key=_key(parsed), origins=tuple(parsed.cors), usual=usual)
    with _listener(parsed) as listener:
        Server(desk, settings, END_SECONDS, lambda: _announce(name, listener)).serve_on(listener)
    return OK


def _key(parsed: argparse.Namespace) -> str:
    return parsed.api_key or api_key()


def _check(parsed: argparse.Namespace) -> None:
    """Refuse options that make no sense, or no safe server.

    Raises:
        ConfigError: there is such an option.
    """
    if not 1 <= parsed.parallel <= 64:
        raise ConfigError(f"--parallel {parsed.parallel} is not from 1 to 64")
    if not 0 <= parsed.port <= 65535:
        raise ConfigError(f"--port {parsed.port} is not from 0 to 65535")
    if parsed.system:
        raise ConfigError("--system has no place in a server", "each request brings its own system prompt")
    if not _is_loopback(parsed.host) and not _key(parsed):
        raise ConfigError(
            f"without a key, everybody on the network of {parsed.host} could use the model", "--api-key KEY"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listener(parsed: argparse.Namespace) -> socket.socket:
    from ..serve.run import listen

    try:
        return listen(parsed.host, parsed.port)
    except OSError as error:
        hint = "--port chooses another port" if parsed.port else ""
        raise ConfigError(f"{parsed.host}:{parsed.port}: {error.strerror or error}", hint) from error


def _announce(name: str, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    place = f"[{host}]" if ":" in host else host
    talk(f"{name} is at http://{place}:{port}/v1 (Ctrl+C ends the server)")
