"""A second ggml device without a GPU: ggml's RPC backend, built from llama-cpp-python's own source archive.

    python tests/rpc.py build FOLDER     # pip download, cmake, ninja: a minute; prints the library's path
    python tests/rpc.py serve LIBRARY ENDPOINT

Then ``EDGEMOE_RPC_LIB=<path> python -m pytest -m slow tests/test_rpc.py``.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tarfile
from pathlib import Path

from edgemoe.engine import host

OPTIONS = ("GGML_RPC=ON", "GGML_BACKEND_DL=ON", "GGML_NATIVE=OFF", "GGML_BUILD_TESTS=OFF", "GGML_BUILD_EXAMPLES=OFF")


def build(folder: Path) -> Path:
    """Fetch the sources of the installed llama-cpp-python and build its RPC backend alone."""
    folder.mkdir(parents=True, exist_ok=True)
    fetch = ["download", "--no-deps", "--no-binary", "llama-cpp-python", host.version(), "-d", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *fetch], check=True, stdout=sys.stderr)
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    sources = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp/ggml"))
    (sources / "ggml.pc.in").touch()  # asked for by its CMake, left out of the archive
    out = folder / "build"
    flags = [f"-D{option}" for option in OPTIONS]
    subprocess.run(
        ["cmake", "-S", sources, "-B", out, "-DCMAKE_BUILD_TYPE=Release", *flags], check=True, stdout=sys.stderr
    )
    subprocess.run(["cmake", "--build", out, "--target", "ggml-rpc"], check=True, stdout=sys.stderr)
    return next(out.rglob("libggml-rpc.*"))


def serve(library: Path, endpoint: str) -> None:
    """Offer this process's CPU as a device, until killed."""
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
