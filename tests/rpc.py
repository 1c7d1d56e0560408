"""A second ggml device without a GPU: ggml's RPC backend, built from llama-cpp-python's own source archive.

    python tests/rpc.py build FOLDER     # pip download, cmake, ninja: a minute; prints the library's path
    python tests/rpc.py serve LIBRARY ENDPOINT

Then ``EDGEMOE_RPC_LIB=<path> python -m pytest -m slow tests/test_rpc.py``.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from edgemoe.engine import host
from edgemoe.setup.build import Order, compiled


def build(folder: Path) -> Path:
    """Build only the RPC backend of the installed llama-cpp-python."""
    return compiled(Order("rpc", (), folder.resolve())).library


def serve(library: Path, endpoint: str) -> None:
    """Offer this process's CPU as a device until the process is killed."""
    ggml = host._ggml_libraries()[0]
    rpc = ctypes.CDLL(str(library))
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    device = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_type(0))
    rpc.ggml_backend_rpc_start_server(endpoint.encode(), None, ctypes.c_size_t(1), ctypes.c_size_t(1), device)


def connect(library: Path, endpoint: str) -> None:
    """Make the server at ``endpoint`` a device of this process."""
    ggml = host._ggml_libraries()[0]
    ggml.ggml_backend_load.restype, ggml.ggml_backend_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    assert ggml.ggml_backend_load(str(library).encode()), "the RPC backend does not load"
    rpc = ctypes.CDLL(str(library))
    rpc.ggml_backend_rpc_add_server.restype, rpc.ggml_backend_rpc_add_server.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_char_p],
    )
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register(rpc.ggml_backend_rpc_add_server(endpoint.encode()))


if __name__ == "__main__":
    if sys.argv[1] == "build":
        print(build(Path(sys.argv[2])))
    else:
        serve(Path(sys.argv[2]), sys.argv[3])
