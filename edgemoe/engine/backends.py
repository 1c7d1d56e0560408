"""Backends beside those of llama-cpp-python: the ones that ``edgemoe setup`` built, and RPC servers of other machines.

``ggml`` is the library that holds ggml's registry of devices. A backend is loaded once per process and stays.

**Source**: ggml-backend.h and ggml-rpc.h of llama.cpp.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from functools import cache

from ..errors import ConfigError, EdgeMoEError
from ..setup.advice import COMMAND, rebuild
from ..setup.installed import Backend, built, of_package

# Name of the RPC backend in ggml's registry.
_RPC = b"RPC"
_ENDPOINT = re.compile(r"^(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}$")
_PATIENCE_S = 60.0


def load_built(ggml: ctypes.CDLL) -> tuple[str, ...]:
    """Load the backends that were built for this ggml; return a sentence about each that cannot be loaded.

    The RPC backend has no devices before a server is named, so `connect` loads it.
    """
    sentences = []
    theirs = of_package()
    for backend in built():
        if not backend.current:
            sentences.append(rebuild(backend))
        elif backend.kind != "rpc" and backend.kind not in theirs and (why := _load(ggml, backend)):
            sentences.append(why)
    return tuple(sentences)


def connect(ggml: ctypes.CDLL, endpoint: str) -> list[str]:
    """Make the devices of an RPC server devices of this process and return their names.

    Args:
        ggml: holds the registry.
        endpoint: HOST:PORT.

    Raises:
        ConfigError: this is no endpoint, or there is no RPC backend.
        EdgeMoEError: no RPC server of this version answers there.
    """
    if not _ENDPOINT.match(endpoint):
        raise ConfigError(f"{endpoint!r} is no address of an RPC server", "give HOST:PORT")
    _registry(ggml)
    _try(endpoint)
    return connected(ggml, endpoint)


def serve(ggml: ctypes.CDLL, endpoint: str, device: str, threads: int) -> None:
    """Offer ``device`` to other machines at ``endpoint``, until the process is stopped.

    Raises:
        ConfigError: there is no such device, or no RPC backend.
    """
    ggml.ggml_backend_dev_by_name.restype, ggml.ggml_backend_dev_by_name.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    found = ggml.ggml_backend_dev_by_name(device.encode())
    if not found:
        raise ConfigError(f"there is no device {device}", "edgemoe doctor lists the devices there are")
    start = _function(ggml, b"ggml_backend_rpc_start_server")
    devices = (ctypes.c_void_p * 1)(found)
    types = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
    ctypes.CFUNCTYPE(None, *types)(start)(endpoint.encode(), None, threads, 1, ctypes.addressof(devices))
    raise EdgeMoEError(f"the RPC server at {endpoint} did not start", "is the port taken?")


def _load(ggml: ctypes.CDLL, backend: Backend) -> str:
    """Load a backend; return a sentence on a failure, empty without one. ggml reports no reason for a failure."""
    try:
        ctypes.CDLL(str(backend.path))
    except OSError as error:
        return f"The {backend.kind} backend does not load: {error}. {COMMAND} --backend {backend.kind} builds it again."
    ggml.ggml_backend_load.restype, ggml.ggml_backend_load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if ggml.ggml_backend_load(str(backend.path).encode()):
        return ""
    return f"The {backend.kind} backend finds no driver."


def _try(endpoint: str) -> None:
    """Meet the server in another process first: if the first exchange fails, ggml ends the process that tried it."""
    command = [sys.executable, "-m", "edgemoe.engine.rpc_trial", endpoint]
    hint = f"on that machine: edgemoe rpc-server --port {endpoint.rpartition(':')[2]}"
    try:
        met = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise EdgeMoEError(f"no RPC server answers at {endpoint}", hint) from error
    if not met.returncode:
        return
    if found := re.search(r"version mismatch: (\S+)", met.stderr):
        text = f"the RPC server at {endpoint} speaks version {found[1]} of the protocol, this llama.cpp another"
        raise EdgeMoEError(text, "install the same llama-cpp-python on both machines")
    raise EdgeMoEError(f"no RPC server answers at {endpoint}", hint)


@cache
def connected(ggml: ctypes.CDLL, endpoint: str) -> list[str]:
    """Do the same as `connect`, without a trial. A server that speaks another protocol ends this process."""
    add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(_function(ggml, b"ggml_backend_rpc_add_server"))
    registry = add(endpoint.encode())
    if not registry:
        raise EdgeMoEError(f"the RPC server at {endpoint} offers no device")
    ggml.ggml_backend_register.restype, ggml.ggml_backend_register.argtypes = None, [ctypes.c_void_p]
    ggml.ggml_backend_register(registry)
    count, get, name = ggml.ggml_backend_reg_dev_count, ggml.ggml_backend_reg_dev_get, ggml.ggml_backend_dev_name
    count.restype, count.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t]
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return [name(get(registry, place)).decode() for place in range(count(registry))]


def _function(ggml: ctypes.CDLL, name: bytes) -> int:
    """Give the address of a function of the RPC backend."""
    address = ggml.ggml_backend_reg_get_proc_address
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
    return int(address(_registry(ggml), name))


def _registry(ggml: ctypes.CDLL) -> int:
    """Give the RPC backend; load it first if it is not loaded yet.

    Raises:
        ConfigError: there is no RPC backend; the hint has the command that makes one.
    """
    ggml.ggml_backend_reg_by_name.restype, ggml.ggml_backend_reg_by_name.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    if not ggml.ggml_backend_reg_by_name(_RPC):
        backend = next((backend for backend in built() if backend.kind == "rpc" and backend.current), None)
        why = _load(ggml, backend) if backend else "RPC needs a backend that this llama-cpp-python lacks"
        if why:
            raise ConfigError(why, f"{COMMAND} --backend rpc")
    return int(ggml.ggml_backend_reg_by_name(_RPC))
