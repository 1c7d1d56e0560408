"""Give a process a device: a backend library beside the wheel's own, or an RPC server over loopback."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from edgemoe.engine import host
from edgemoe.errors import EdgeMoEError

PATIENCE_S = 20.0


def load(library: Path) -> None:
    """Let ggml load a backend; its devices join the others.

    Raises:
        EdgeMoEError: the library does not load; the message has the loader's text.
    """
    try:  # ggml gives no reason, but the dynamic loader does
        ctypes.CDLL(str(library))
    except OSError as error:
        hint = "the driver's library is not there: is a GPU driver installed?" if "libcuda" in str(error) else ""
        raise EdgeMoEError(f"{library.name} does not load: {error}", hint) from error
    ggml = host._ggml_libraries()[0]
    ggml.ggml_backend_load.restype, ggml.ggml_backend_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if not ggml.ggml_backend_load(str(library).encode()):
        raise EdgeMoEError(f"ggml refuses {library.name}: it is no backend of this ggml, or finds no device")


def serve(library: Path) -> subprocess.Popen[bytes]:
    """Start an RPC server on a free port and make it a device of this process; each model needs a server of its own."""
    from tests import rpc

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.rpc", "serve", str(library), endpoint]
    server = subprocess.Popen(command, stdout=sys.stderr, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", int(endpoint.rpartition(":")[2]))) == 0:
                break
        time.sleep(0.05)
    rpc.connect(library, endpoint)
    return server


def description(name: str) -> str:
    """Give the device's description, such as the card's name; empty without such a device."""
    ggml = host._ggml_libraries()[0]
    ggml.ggml_backend_dev_by_name.restype, ggml.ggml_backend_dev_by_name.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    device = ggml.ggml_backend_dev_by_name(name.encode())
    return str(ggml.ggml_backend_dev_description(device).decode()) if device else ""


def is_a_gpu(name: str, text: str) -> bool:
    """Tell hardware, by name and description, from devices with a meaningless speed."""
    software = name in ("none", "sim") or name.startswith("RPC") or "llvmpipe" in text.lower()
    return not software and bool(text)
