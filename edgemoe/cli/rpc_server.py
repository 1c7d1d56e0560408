"""``edgemoe rpc-server``: lend a device of this machine to other machines over ggml's RPC protocol."""

from __future__ import annotations

import argparse
from typing import Any

from ..text.console import talk
from . import FAILED

PORT = 50052


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    server = commands.add_parser(
        "rpc-server",
        help="lend a device of this machine to other machines (there: --rpc HOST:PORT)",
        epilog="The protocol has no password and no encryption: serve inside a network that you trust.",
    )
    server.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 for all addresses of this machine (%(default)s)",
    )
    server.add_argument("--port", type=int, default=PORT, help="port to listen at (%(default)s)")
    server.add_argument("--device", default="auto", help="auto (the first GPU, else the CPU), or a ggml device")
    server.add_argument("--verbose", action="store_true", help="show the Python traceback of an error")
    server.set_defaults(command=lambda parsed, _: _serve(parsed))


def _serve(parsed: argparse.Namespace) -> int:
    from .. import limits
    from ..engine import devices, host

    device = next(iter(devices()), "CPU") if parsed.device == "auto" else parsed.device
    if parsed.host not in ("127.0.0.1", "localhost"):
        talk("note: the protocol has no password: every program that reaches this port can use the device")
    host.serve(f"{parsed.host}:{parsed.port}", device, limits.processors().physical)
    return FAILED
