"""Meeting llama_cpp: its libraries, and the few differences between a load of ours and a plain load.

llama_cpp is never modified on disk. While a model of ours loads, three of its module-level functions are wrapped. The
wrappers act only on the loading thread; all other threads get the original behaviour:

- the default model parameters name our buffer type for expert tensors;
- the default context parameters name the number of sequences;
- the guard that points file descriptors 1 and 2 at the null device is off: it would freeze a terminal screen.

The log callback stays ours: messages of our models go to the logger ``edgemoe.llama`` instead of the terminal, and with
``verbose=True`` also where they went before; all others go to the callback that was there, llama_cpp's or the user's.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import logging
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import llama_cpp
from llama_cpp import _internals, _logger
from llama_cpp import llama as llama_module
from llama_cpp import llama_cpp as binding

from ..config import kernels
from ..errors import BackendMismatch
from ..planning.kv_cache import Heads
from . import backends, flash_probe
from .binding import Core, NativeEngine

# Versions that the tests ran with. An older one is refused; a newer one is tried, and refused if a probe differs.
OLDEST, NEWEST = "llama-cpp-python>=0.3.28", "0.3.36"
TESTED = f"{OLDEST},<={NEWEST}"
# Weights, biases and scales of routed experts, in every spelling llama.cpp has.
EXPERT_TENSORS = rb"ffn_(gate|up|down|gate_up)_exps\.(weight|bias)$"

_log = logging.getLogger("edgemoe.llama")
_log.addHandler(logging.NullHandler())  # silent unless the application wants it
_log.propagate = False
_scope = threading.local()
_ERROR = 4
# ggml's kinds of devices: a card with memory of its own, and a part of the processor.
_CARD, _INTEGRATED = 1, 2
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, _ERROR: logging.ERROR, 5: logging.DEBUG}


# The callback that was there before ours, and its data.
_before: list[tuple[Any, Any]] = []


# All that the engine uses of llama_cpp beyond its documented interface.
_USED: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (
        binding,
        ("_lib", "llama_model_default_params", "llama_set_abort_callback", "llama_log_get", "llama_memory_seq_rm"),
    ),
    (binding, ("llama_context_default_params", "llama_memory_seq_cp")),
    (binding, ("llama_state_seq_get_data_ext", "llama_state_seq_set_data_ext", "llama_model_is_hybrid")),
    (binding.llama_model_params, ("tensor_buft_overrides", "devices")),
    (llama_module, ("suppress_stdout_stderr",)),
    (_internals, ("suppress_stdout_stderr",)),
    (_internals.LlamaContext, ("decode", "get_logits_ith")),
    (_internals.LlamaModel, ("token_bos", "token_get_text", "token_get_attr")),
    (_logger, ("llama_log_callback",)),
    (llama_cpp.Llama, ("_input_ids", "_scores", "_create_completion", "longest_token_prefix", "load_state")),
)
_BATCH = ("n_tokens", "token", "embd", "pos", "n_seq_id", "seq_id", "logits")
# RPC servers by the names of their devices.
_endpoints: dict[str, str] = {}


class _Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p)]


def version() -> str:
    """Return the name and the version of the installed llama-cpp-python."""
    return f"llama-cpp-python=={importlib.metadata.version('llama-cpp-python')}"


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)[:3]]


def _difference() -> str:
    """Name the first part of llama_cpp that the engine uses and that is not there; empty if all are."""
    for owner, names in _USED:
        if missing := [name for name in names if not hasattr(owner, name)]:
            return f"{owner.__name__}.{missing[0]} is missing"
    fields = tuple(name for name, _ in llama_cpp.llama_batch._fields_)
    return "" if fields == _BATCH else "llama_batch differs"


@cache
def core() -> Core:
    """Load the core once, check it, register it with ggml and install the hooks.

    Raises:
        BackendMismatch: llama-cpp-python is too old, or something that the engine uses is not as it knows it.
        ConfigError: ``EDGEMOE_KERNELS`` names kernels that this processor cannot run.
    """
    if _numbers(version()) < _numbers(OLDEST):
        raise BackendMismatch(version(), TESTED)
    if difference := _difference():
        raise BackendMismatch(f"{version()} ({difference})", TESTED)
    libraries = _ggml_libraries()
    load_backends()
    loaded = Core(libraries, version(), TESTED)
    load = libraries[0].ggml_backend_load
    load.restype, load.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    _take_log()
    with quiet():
        registered = load(str(loaded.path).encode())
    if not registered:
        raise BackendMismatch(f"{version()} (backend interface version)", TESTED)
    loaded.choose_kernels(kernels())
    if "EdgeMoE" not in [name for name, _ in _all_devices()]:
        raise BackendMismatch(f"{version()} (a second copy of ggml is loaded)", TESTED)
    return loaded


@cache
def address_of(name: str) -> int:
    """Look up the address of a function of llama.cpp."""
    return ctypes.cast(getattr(binding._lib, name), ctypes.c_void_p).value or 0


@cache
def load_backends() -> tuple[str, ...]:
    """Load the backends that ``edgemoe setup`` built, once; return a sentence about each that cannot be loaded."""
    _take_log()
    with quiet():
        sentences = backends.load_built(_ggml_libraries()[0])
    for sentence in sentences:
        tell(sentence)
    return sentences


def connect(endpoint: str) -> list[str]:
    """Make the devices of the RPC server at HOST:PORT devices of this process and return their names.

    Raises:
        EdgeMoEError: no RPC server of this version answers there, or there is no RPC backend.
    """
    _take_log()
    with quiet():
        names = backends.connect(_ggml_libraries()[0], endpoint)
    _endpoints.update(dict.fromkeys(names, endpoint))
    return names


def endpoint_of(device: str) -> str:
    """Return HOST:PORT of the RPC server that has this device, empty for a device of this machine."""
    return _endpoints.get(device, "")


def serve(endpoint: str, device: str, threads: int) -> None:
    """Offer ``device`` to other machines at HOST:PORT, until the process is stopped."""
    load_backends()
    backends.serve(_ggml_libraries()[0], endpoint, device, threads)


def devices() -> list[str]:
    """Name the GPU devices that llama.cpp sees, without ours: cards first, then integrated graphics."""
    found = [(kind, name) for name, kind in _all_devices() if kind in (_CARD, _INTEGRATED)]
    return [name for _, name in sorted(found, key=lambda device: device[0])]


def rivals(device: str) -> list[str]:
    """Name the devices that llama.cpp would use beside ``device``: the cards, or without one the integrated devices."""
    kinds = dict(_all_devices())
    known = devices()
    cards = [name for name in known if kinds[name] == _CARD]
    return [name for name in cards or known if name != device]


def shares_ram(device: str) -> bool:
    """Tell whether the memory of a device is the RAM of its processor, as with integrated graphics."""
    if sys.platform == "darwin" and platform.machine() == "arm64" and device.startswith(("MTL", "Metal")):
        return True  # ggml-metal calls every device a card
    return dict(_all_devices()).get(device) == _INTEGRATED


def device_memory(name: str) -> tuple[int, int]:
    """Give the free and the total bytes of a ggml device; zeros when there is no such device."""
    lib = _ggml_libraries()[0]
    lib.ggml_backend_dev_by_name.restype, lib.ggml_backend_dev_by_name.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    lib.ggml_backend_dev_memory.restype = None
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    device = lib.ggml_backend_dev_by_name(name.encode())
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if device:
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def computes_flash(device: str, heads: Heads, types: tuple[int, int]) -> bool:
    """Tell whether a device computes flash attention of these heads, with these types of the cache; the CPU does."""
    return not device or flash_probe.computes_flash(_ggml_libraries()[0], device, heads, types)


@contextlib.contextmanager
def loading(
    engine: NativeEngine,
    *,
    on_device: bool,
    experts: bool = True,
    head: Sequence[int] = (),
    sequences: int = 1,
    head_runs: bool = False,
    snapshots: int = 0,
    verbose: bool = False,
) -> Iterator[list[str]]:
    """Let this thread load a model of ours; give a list that collects the errors that llama.cpp logs.

    Args:
        engine: takes the experts.
        on_device: llama.cpp computes its part on the engine's device, through the stand-in.
        experts: the engine takes the experts; otherwise llama.cpp keeps them, in its own layout.
        head: blocks of an MTP head that does not run: their tensors stay in the file, never on a device.
        sequences: number of sequences that the context holds.
        head_runs: llama.cpp loads the MTP head.
        snapshots: tokens of a batch that a recurrent memory can take back.
        verbose: llama.cpp's lines also go to the callback that was installed before ours.
    """
    errors: list[str] = []
    plain_params, plain_guard = binding.llama_model_default_params, llama_module.suppress_stdout_stderr
    plain_context = binding.llama_context_default_params
    _scope.errors, _scope.verbose = errors, verbose
    overrides = _overrides(tuple(head)) if experts else None
    if experts:  # otherwise llama.cpp does not see our devices
        engine.begin_load(on_device)
    devices = (ctypes.c_void_p * 2)(engine.stand_in_device(), None) if on_device else None
    binding.llama_model_default_params = _params_of_ours(plain_params, devices, overrides, head_runs)
    binding.llama_context_default_params = _context_of_ours(plain_context, sequences, snapshots)
    llama_module.suppress_stdout_stderr = _internals.suppress_stdout_stderr = _guard_that_spares_us(plain_guard)
    _take_log()
    try:
        with core().trap_aborts():
            yield errors
    finally:
        binding.llama_model_default_params = plain_params
        binding.llama_context_default_params = plain_context
        llama_module.suppress_stdout_stderr = _internals.suppress_stdout_stderr = plain_guard
        if experts:
            engine.end_load()
        _scope.errors, _scope.verbose = None, False


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[list[str]]:
    """Keep llama.cpp's messages off the terminal, unless ``verbose``; give a list that collects its errors."""
    before, loud = getattr(_scope, "errors", None), getattr(_scope, "verbose", False)
    errors: list[str] = [] if before is None else before
    _scope.errors, _scope.verbose = errors, verbose
    try:
        yield errors
    finally:
        _scope.errors, _scope.verbose = before, loud


def computing(verbose: bool = False) -> contextlib.AbstractContextManager[list[str]]:
    """Keep the messages of a model that computes on this thread off the terminal, unless ``verbose``."""
    return quiet(verbose)


def tell(text: str) -> None:
    """Log a warning to ``edgemoe.llama``."""
    _log.warning("%s", text)


def _take_log() -> None:
    """Make the log callback ours; pass lines of other models on to the callback that was installed before."""
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    if ctypes.cast(callback, ctypes.c_void_p).value not in (None, ctypes.cast(_log_callback, ctypes.c_void_p).value):
        _before[:] = [(callback, data)]
    llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))


def _ggml_libraries() -> list[ctypes.CDLL]:
    """Handles through which every ggml function can be found: libllama's, which reaches its dependencies.

    Opening the files by path would make a second copy with a registry of its own.
    """
    libraries = [binding._lib]
    if sys.platform == "win32":
        libraries = [ctypes.CDLL(name) for name in ("ggml.dll", "ggml-base.dll", "ggml-cpu.dll")]
    return libraries


def _all_devices() -> list[tuple[str, int]]:
    load_backends()
    lib = _ggml_libraries()[0]
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype, lib.ggml_backend_dev_get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    lib.ggml_backend_dev_name.restype, lib.ggml_backend_dev_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    lib.ggml_backend_dev_type.restype, lib.ggml_backend_dev_type.argtypes = ctypes.c_int, [ctypes.c_void_p]
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        found.append((lib.ggml_backend_dev_name(device).decode(), int(lib.ggml_backend_dev_type(device))))
    return found


@cache
def _overrides(head: tuple[int, ...]) -> Any:
    """Make the list that sends experts, and all tensors of the blocks ``head``, to our buffer type.

    The list is never freed, because the parameters only point at it.
    """
    patterns = [EXPERT_TENSORS, *(b"^blk\\.%d\\." % block for block in head)]
    ours = [_Override(pattern, core().buffer_type()) for pattern in patterns]
    return (_Override * (len(ours) + 1))(*ours, _Override(None, None))


def _params_of_ours(plain: Callable[[], Any], devices: Any, overrides: Any, head_runs: bool) -> Callable[[], Any]:
    def model_default_params() -> Any:
        params = plain()
        if getattr(_scope, "errors", None) is not None:
            if overrides is not None:
                params.tensor_buft_overrides = ctypes.addressof(overrides)
            if devices is not None:
                params.devices = ctypes.addressof(devices)
            if head_runs:
                params.load_mtp = True
        return params

    return model_default_params


def _context_of_ours(plain: Callable[[], Any], sequences: int, snapshots: int) -> Callable[[], Any]:
    def context_default_params() -> Any:
        params = plain()
        if getattr(_scope, "errors", None) is not None:
            if sequences > 1:
                params.n_seq_max, params.kv_unified = sequences, True  # sequences share the cells of a common beginning
            if snapshots:
                params.n_rs_seq = snapshots
        return params

    return context_default_params


def _guard_that_spares_us(plain: Any) -> Any:
    def guard(disable: bool = True) -> Any:
        return plain(disable or getattr(_scope, "errors", None) is not None)

    return guard


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    errors = getattr(_scope, "errors", None)
    if errors is None or getattr(_scope, "verbose", False):
        callback, data = _before[0] if _before else (_logger.llama_log_callback, user_data)
        callback(level, text, data)
    if errors is None:
        return
    line = text.decode("utf-8", "replace").rstrip()
    if line and line != ".":
        if level == _ERROR:
            errors.append(line)
        _log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)


def error_text(errors: Sequence[str]) -> str:
    """Return the first of llama.cpp's errors, without functions and folders of its build."""
    return re.sub(r"^(\w+: )*|\S*/(?=\S+:\d+: )", "", errors[0]) if errors else "llama.cpp gave no reason"
