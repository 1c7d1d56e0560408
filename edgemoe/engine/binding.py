"""ctypes over the C interface of the core (``edgemoe/core/edgemoe.h``). Structs here mirror structs there."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..config import SimConfig
from ..errors import BackendMismatch, ConfigError, DoesNotFit, EdgeMoEError
from ..types import ExpertStats, Load

# std::__throw_runtime_error of GNU's C++ library.
_THROW = "_ZSt21__throw_runtime_errorPKc"
_CORE_NAME = "edgemoe_core" + (".dll" if sys.platform == "win32" else ".so")
ABI_VERSION = 8

OK, ERROR_ARGUMENT, ERROR_MISMATCH, ERROR_DEVICE, ERROR_NO_MEMORY, ERROR_STATE = 0, -1, -2, -3, -4, -5
UNSEEN = 1
COLD, PENDING, RESIDENT = 0, 1, 2

_i32, _i64 = ctypes.c_int32, ctypes.c_int64


class _Options(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", _i32),
        ("prefill_tokens", _i32),
        ("stream_tokens", _i32),
        ("stream_slots", _i32),
        ("graph_us", _i32),
        ("pin_bytes", _i64),
        ("device", ctypes.c_char_p),
    ]


class _SimOptions(ctypes.Structure):
    _fields_ = [
        ("struct_bytes", _i32),
        ("latency_us", _i32),
        ("bandwidth", _i64),
        ("capacity", _i64),
        ("fail_alloc", _i32),
        ("fail_copy", _i32),
        ("fail_compute", _i32),
        ("fail_register", _i32),
        ("jitter_us", _i32),
        ("seed", ctypes.c_uint64),
        ("compute_rate", _i64),
        ("fetch_all", _i64),
        ("early", _i64),
        ("streams", _i64),
    ]


class LayerInfo(ctypes.Structure):
    """One expert layer: its number in the tensor names, its shape, and whether its pattern is recognised."""

    _fields_ = [
        ("struct_bytes", _i32),
        ("block", _i32),
        ("experts", _i32),
        ("slots", _i32),
        ("pattern", _i32),
        ("support", _i32),
        ("expert_bytes", _i64),
    ]


class _Load(ctypes.Structure):
    _fields_ = [("layer", _i32), ("expert", _i32), ("victim", _i32)]


_STAT_NAMES = (
    *("tokens", "hits", "misses", "fetched", "prefill_hits", "prefill_streamed", "prefill_misses"),
    *("uploads", "upload_bytes", "streamed_bytes", "direct_bytes", "failed_uploads", "joins", "device_fallbacks"),
    *("moe_ns", "device_ns", "cpu_ns", "join_ns", "schedule_ns"),
    *("prefetch_useful", "prefetch_late", "prefetch_wasted"),
    *("slots", "slot_bytes", "resident", "pending", "stage_bytes", "fused_layers", "plain_layers"),
    *("disk_bytes", "disk_reads", "missed_bytes", "disk_wait_ns"),
    *("ram_bytes", "ram_budget", "dropped_events"),
)


class _Stats(ctypes.Structure):
    _fields_ = [(name, _i64) for name in _STAT_NAMES]


class ExpertPlace(ctypes.Structure):
    """The place of a tensor of experts: block, projection (gate, up, down, gate and up), file, offset in the file."""

    _fields_ = [("block", _i32), ("projection", _i32), ("file", _i32), ("offset", _i64)]


_SIGNATURES = {
    "em_abi_version": (_i32, []),
    "em_struct_bytes": (_i32, [_i32]),
    "em_last_error": (ctypes.c_char_p, []),
    "em_symbol_count": (_i32, []),
    "em_symbol_name": (ctypes.c_char_p, [_i32]),
    "em_symbol_set": (_i32, [_i32, ctypes.c_void_p]),
    "em_set_thrower": (None, [ctypes.c_void_p]),
    "em_trap_aborts": (None, []),
    "em_release_aborts": (None, []),
    "em_check": (_i32, []),
    "em_buffer_type": (ctypes.c_void_p, []),
    "em_decode": (_i32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(_i32)]),
    "em_abort_callback": (ctypes.c_void_p, []),
    "em_sim_configure": (_i32, [ctypes.POINTER(_SimOptions)]),
    "em_predictor_new": (ctypes.c_void_p, [ctypes.c_void_p]),
    "em_predictor_learnt": (_i64, [ctypes.c_void_p] * 8),
    "em_predictor_begin": (None, [ctypes.c_void_p, _i32]),
    "em_predictor_seen": (None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, _i64]),
    "em_predictor_free": (None, [ctypes.c_void_p]),
    "em_predictor_seed": (None, [ctypes.c_void_p, ctypes.c_void_p]),
    "em_predictor_token": (None, [ctypes.c_void_p, ctypes.c_void_p]),
    "em_predictor_routed": (None, [ctypes.c_void_p, _i32, ctypes.c_void_p, _i32]),
    "em_predictor_next": (None, [ctypes.c_void_p, _i32, _i32, ctypes.c_void_p]),
    "em_predictor_keep": (None, [ctypes.c_void_p, ctypes.c_void_p]),
    "em_predictor_choose": (
        _i32,
        [ctypes.c_void_p, _i32, _i32, ctypes.c_void_p, _i32, _i32, ctypes.c_float, ctypes.c_void_p],
    ),
    "em_engine_new": (ctypes.c_void_p, [ctypes.POINTER(_Options)]),
    "em_engine_free": (None, [ctypes.c_void_p]),
    "em_stand_in_device": (ctypes.c_void_p, [ctypes.c_void_p]),
    "em_set_blocks": (_i32, [ctypes.c_void_p, _i32]),
    "em_begin_load": (_i32, [ctypes.c_void_p, _i32]),
    "em_end_load": (_i32, [ctypes.c_void_p]),
    "em_load_lazily": (_i32, [_i32]),
    "em_open_ram": (_i32, [ctypes.c_void_p, ctypes.c_void_p, _i32, ctypes.c_void_p, _i32, _i64, _i32]),
    "em_fill_ram": (_i32, [ctypes.c_void_p, ctypes.c_void_p]),
    "em_resize_ram": (_i32, [ctypes.c_void_p, _i64]),
    "em_disk_state": (_i32, [ctypes.c_void_p]),
    "em_begin_context": (_i32, [ctypes.c_void_p, _i32]),
    "em_end_context": (_i32, [ctypes.c_void_p]),
    "em_engine_stop": (_i32, [ctypes.c_void_p]),
    "em_layer_count": (_i32, [ctypes.c_void_p]),
    "em_layer": (_i32, [ctypes.c_void_p, _i32, ctypes.POINTER(LayerInfo)]),
    "em_set_slots": (_i32, [ctypes.c_void_p, ctypes.POINTER(_i32), _i32]),
    "em_submit": (_i32, [ctypes.c_void_p, ctypes.c_void_p, _i32]),
    "em_set_prefetch": (_i32, [ctypes.c_void_p, ctypes.c_void_p, _i32, _i32, ctypes.c_float, _i32]),
    "em_set_router": (_i32, [ctypes.c_void_p, _i32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, _i32, _i32]),
    "em_begin_token": (_i32, [ctypes.c_void_p, _i32]),
    "em_pin": (_i32, [ctypes.c_void_p, _i32, _i32, _i32]),
    "em_end_step": (_i32, [ctypes.c_void_p]),
    "em_watch": (_i32, [ctypes.c_void_p, _i32]),
    "em_prefetch_spent": (_i32, [ctypes.c_void_p, ctypes.c_void_p, _i32]),
    "em_force": (_i32, [ctypes.c_void_p, ctypes.c_void_p, _i64, _i32]),
    "em_wait_uploads": (_i32, [ctypes.c_void_p, _i32]),
    "em_residency": (_i32, [ctypes.c_void_p, ctypes.c_void_p, _i64]),
    "em_stats": (_i32, [ctypes.c_void_p, ctypes.POINTER(_Stats)]),
    "em_kernels": (_i32, [ctypes.c_char_p]),
    "em_kernels_name": (ctypes.c_char_p, []),
    "em_kernels_know": (_i32, [_i32, _i64]),
    "em_drain": (_i64, [ctypes.c_void_p, ctypes.c_void_p, _i64]),
    "em_cancel": (_i32, [ctypes.c_void_p, _i32]),
    "em_device_memory": (_i32, [ctypes.c_void_p, ctypes.POINTER(_i64), ctypes.POINTER(_i64)]),
}


def find_core() -> Path:
    """Find the compiled core: beside this file, or in the installed package if this file is run from a checkout.

    Raises:
        EdgeMoEError: the core is in neither place.
    """
    places = [Path(__file__).with_name(_CORE_NAME)]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        installed = importlib.metadata.distribution("edgemoe").locate_file(f"edgemoe/engine/{_CORE_NAME}")
        places.append(Path(str(installed)))
    for place in places:
        if place.exists():
            return place
    raise EdgeMoEError("the compiled core is missing", "install with: python -m pip install .")


@cache
def library() -> ctypes.CDLL:
    """Load the core once, and declare its functions. Only ``Core`` checks the core against ggml.

    Raises:
        EdgeMoEError: the core is missing from the installation, or of another version.
    """
    lib = ctypes.CDLL(str(find_core()))
    sizes = [ctypes.sizeof(s) for s in (_Options, _SimOptions, LayerInfo, _Load, _Stats)]
    if lib.em_abi_version() != ABI_VERSION or sizes != [lib.em_struct_bytes(i) for i in range(len(sizes))]:
        raise EdgeMoEError("the compiled core is of another version", "reinstall edgemoe")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name, None)
        if function is None:
            raise EdgeMoEError(f"the compiled core is of another version: it lacks {name}", "reinstall edgemoe")
        function.restype, function.argtypes = result, arguments
    return lib


class Core:
    """The loaded core library, checked against the ggml of this process.

    Raises:
        BackendMismatch: the loaded ggml differs from the ggml that the core was written against.
        EdgeMoEError: the core is missing from the installation or of another version.
    """

    def __init__(self, ggml: Sequence[ctypes.CDLL], found: str, tested: str) -> None:
        """Load the core, and hand it every ggml function that it needs: the first one of that name in ``ggml``."""
        self.path = find_core()
        self._lib = library()
        for i in range(self._lib.em_symbol_count()):
            if address := _address_of(ggml, self._lib.em_symbol_name(i).decode()):
                self._lib.em_symbol_set(i, address)
        self._lib.em_set_thrower(_address_of(ggml, _THROW))
        if self._lib.em_check() != OK:
            raise BackendMismatch(f"{found} ({self.last_error()})", tested)

    def last_error(self) -> str:
        """Give the text of the last failure on this thread."""
        return str(self._lib.em_last_error().decode())

    @contextlib.contextmanager
    def trap_aborts(self) -> Iterator[None]:
        """Make failed assertions of ggml on this thread errors that llama.cpp catches, not the end of the process."""
        self._lib.em_trap_aborts()
        try:
            yield
        finally:
            self._lib.em_release_aborts()

    def buffer_type(self) -> int:
        """Give the address of the buffer type that holds experts."""
        return int(self._lib.em_buffer_type())

    def choose_kernels(self, name: str) -> None:
        """Choose the family of CPU kernels for the whole process, see ``config.kernels``.

        Raises:
            ConfigError: there is no such family, or this processor cannot run it.
        """
        if self._lib.em_kernels(name.encode()) != OK:
            raise ConfigError(f"EDGEMOE_KERNELS: {self.last_error()}", "unset it: the best kernels are the default")

    @property
    def kernels(self) -> str:
        """Name the family of CPU kernels in use: ``off``, ``avx2``, ``avxvnni``, ``avx512`` or ``neon``."""
        return str(self._lib.em_kernels_name().decode())

    def has_kernel(self, weight_type: int, width: int) -> bool:
        """Tell whether the family in use computes rows of ``width`` weights of a ggml type."""
        return bool(self._lib.em_kernels_know(weight_type, width))

    def decode(self, llama_decode: int, context: int, batch: ctypes.Structure) -> int:
        """Call ``llama_decode``, given by its address, on ``batch``; return its result.

        Raises:
            EdgeMoEError: an assertion of ggml failed; the context can only be freed.
        """
        result = _i32()
        if self._lib.em_decode(llama_decode, context, ctypes.byref(batch), ctypes.byref(result)) != OK:
            raise EdgeMoEError(self.last_error())
        return result.value

    def abort_callback(self) -> int:
        """Give the address of the callback that ends a computation after ``NativeEngine.cancel``."""
        return int(self._lib.em_abort_callback())

    def configure_sim(self, sim: SimConfig) -> None:
        """Set the behaviour of the sim device, for the whole process, and restart its fault counters."""
        options = _SimOptions(
            ctypes.sizeof(_SimOptions),
            sim.latency_us,
            sim.bandwidth,
            sim.capacity,
            sim.fail_alloc,
            sim.fail_copy,
            sim.fail_compute,
            sim.fail_register,
            sim.jitter_us,
            sim.seed,
            sim.compute_rate,
            sim.fetch_all,
            sim.early,
            ("caller", "ordered", "transfer").index(sim.streams),
        )
        if self._lib.em_sim_configure(ctypes.byref(options)) != OK:
            raise ConfigError(self.last_error())

    def engine(
        self,
        device: str,
        prefill_tokens: int,
        stream_tokens: int,
        pin_bytes: int,
        stream_slots: int,
        graph_us: int,
    ) -> NativeEngine:
        """Make an engine. ``device`` is a ggml device name, or empty for none; `edgemoe.h` explains the rest.

        Raises:
            ConfigError: there is no such device, or it cannot be opened.
        """
        options = _Options(
            ctypes.sizeof(_Options),
            prefill_tokens,
            stream_tokens,
            stream_slots,
            graph_us,
            pin_bytes,
            device.encode() or None,
        )
        handle = self._lib.em_engine_new(ctypes.byref(options))
        if not handle:
            raise ConfigError(self.last_error(), "edgemoe.engine.devices() lists the devices there are")
        return NativeEngine(self, handle)


class NativeEngine:
    """One engine of the core; `close` frees it. ``edgemoe.h`` names the methods for one thread at a time."""

    def __init__(self, core: Core, handle: int) -> None:
        """Take ownership of ``handle``."""
        self._core = core
        self._lib = core._lib
        self._handle: int | None = handle
        self._drain_buffer = np.empty(1 << 20, dtype=np.int32)
        self._drain_place = self._drain_buffer.ctypes.data

    @property
    def handle(self) -> int:
        """Give the engine's address, for the user data of the abort callback."""
        if self._handle is None:
            raise EdgeMoEError("the engine is closed")
        return self._handle

    def stand_in_device(self) -> int:
        """Give the address of the stand-in, which llama.cpp uses as its device; 0 without a device."""
        return int(self._lib.em_stand_in_device(self.handle) or 0)

    def set_blocks(self, blocks: int) -> None:
        """Give layers to the experts of the first ``blocks`` blocks only; call it before the model loads."""
        self._check(self._lib.em_set_blocks(self.handle, blocks))

    def begin_load(self, stands_in: bool) -> None:
        """Take the experts of the model that this thread loads next; ``stands_in``: it loads on the stand-in."""
        self._check(self._lib.em_begin_load(self.handle, int(stands_in)))

    def end_load(self) -> None:
        """Hide our devices from llama.cpp again, and number the expert layers."""
        self._check(self._lib.em_end_load(self.handle))

    def load_lazily(self) -> None:
        """Map the files of this thread's next load without reading them."""
        self._check(self._lib.em_load_lazily(1))

    def open_ram(self, paths: Sequence[Path], places: Sequence[ExpertPlace], budget: int, at_once: int) -> None:
        """Keep at most ``budget`` bytes of experts in RAM, and read the others from the files when they are needed.

        Raises:
            EdgeMoEError: this system cannot do that, or a file cannot be opened.
        """
        names = (ctypes.c_char_p * len(paths))(*(os.fsencode(path) for path in paths))
        table = (ExpertPlace * len(places))(*places)
        self._check(self._lib.em_open_ram(self.handle, names, len(paths), table, len(places), budget, at_once))

    def fill_ram(self, heat: npt.NDArray[np.float32] | None) -> None:
        """Read experts into RAM in the background, those of the largest ``heat``, ``(layers, experts)``, first."""
        self._check(self._lib.em_fill_ram(self.handle, None if heat is None else heat.ctypes.data))

    def resize_ram(self, budget: int) -> None:
        """Keep at most ``budget`` bytes of experts in RAM from now on."""
        self._check(self._lib.em_resize_ram(self.handle, budget))

    def disk_failure(self) -> str:
        """Describe the latest read of the disk that failed since the last call; empty if none did."""
        return "" if self._lib.em_disk_state(self.handle) == OK else self._core.last_error()

    @contextlib.contextmanager
    def one_more_context(self, stands_in: bool) -> Iterator[None]:
        """Let this thread make another context of the loaded model; ``stands_in`` as in `begin_load`."""
        self._check(self._lib.em_begin_context(self.handle, int(stands_in)))
        try:
            yield
        finally:
            self._check(self._lib.em_end_context(self.handle))

    def stop(self) -> None:
        """Stop copies and release the device; call it before the model is freed."""
        if self._handle is not None:
            self._lib.em_engine_stop(self._handle)

    def close(self) -> None:
        """Free the engine; call it after the model is freed."""
        if self._handle is not None:
            self._lib.em_engine_free(self._handle)
            self._handle = None

    def layers(self) -> list[LayerInfo]:
        """List all expert layers in the order in which they run."""
        infos = []
        for i in range(self._lib.em_layer_count(self.handle)):
            info = LayerInfo(struct_bytes=ctypes.sizeof(LayerInfo))
            self._check(self._lib.em_layer(self.handle, i, ctypes.byref(info)))
            infos.append(info)
        return infos

    def set_slots(self, slots: npt.NDArray[np.int32]) -> None:
        """Allocate device slots, ``(layers,)``.

        Raises:
            DoesNotFit: the device has no room; the layer that failed and the layers after it have no slots.
        """
        values = np.ascontiguousarray(slots, dtype=np.int32)
        pointer = values.ctypes.data_as(ctypes.POINTER(_i32))
        if self._lib.em_set_slots(self.handle, pointer, len(values)) == ERROR_NO_MEMORY:
            needed = sum(int(n) * info.expert_bytes for n, info in zip(values, self.layers(), strict=True))
            raise DoesNotFit(needed, self.device_memory()[0], "a smaller vram= budget")

    def submit(self, loads: Sequence[Load]) -> int:
        """Queue uploads; return the number that was taken."""
        if not loads:
            return 0
        array = np.array(loads, dtype=np.int32)  # rows of the three fields of em_load
        return int(self._lib.em_submit(self.handle, array.ctypes.data, len(loads)))

    def pin(self, layer: int, expert: int, pinned: bool) -> None:
        """Never evict an expert, or allow its eviction again."""
        self._check(self._lib.em_pin(self.handle, layer, expert, int(pinned)))

    def set_ahead(self, predictor: int | None, lead: int, most: int, gain: float, wait: bool) -> None:
        """Let the predictor learn and choose prefetches, see ``edgemoe.h``; None instead of its handle stops both."""
        self._check(self._lib.em_set_prefetch(self.handle, predictor, lead, most, gain, int(wait)))

    def set_router(
        self,
        layer: int,
        weight: npt.NDArray[np.uint16],
        bias: npt.NDArray[np.float32],
        select: npt.NDArray[np.float32] | None,
    ) -> None:
        """Set the router that is run ahead for a layer; ``weight`` is bfloat16 ``(experts, width)``."""
        place = None if select is None else select.ctypes.data
        sizes = weight.shape
        self._check(self._lib.em_set_router(self.handle, layer, weight.ctypes.data, bias.ctypes.data, place, *sizes))

    def begin_token(self, token_id: int) -> None:
        """Announce that a token of this id is decoded next; -1 if its id is unknown."""
        self._lib.em_begin_token(self.handle, token_id)

    def end_step(self) -> bool:
        """End the step, also one that was cut short; the caller may use the predictor again.

        The result is False if every expert was resident and the core did not read the step's routing.
        """
        return int(self._lib.em_end_step(self.handle)) != UNSEEN

    def watch(self, every: int) -> None:
        """Read the routing of every n-th token at least; 1: read the routing of every token and every prompt."""
        self._lib.em_watch(self.handle, every)

    def ahead_spent(self, layers: int) -> npt.NDArray[np.int32]:
        """Count the prefetches of each layer in the latest step, ``(layers,)``."""
        out = np.empty(layers, dtype=np.int32)
        self._check(self._lib.em_prefetch_spent(self.handle, out.ctypes.data, layers))
        return out

    def force(self, ids: npt.NDArray[np.int32]) -> None:
        """Take the experts of steps from ``(tokens, layers, used)``; without tokens, the routers decide again."""
        values = np.ascontiguousarray(ids, dtype=np.int32)
        self._check(self._lib.em_force(self.handle, values.ctypes.data, len(values), values.shape[2]))

    def wait_uploads(self, timeout_s: float) -> bool:
        """Wait until no upload is queued or under way; return False if that takes longer."""
        return bool(self._lib.em_wait_uploads(self.handle, int(timeout_s * 1000)) == OK)

    def residency(self, layers: int, experts: int) -> npt.NDArray[np.uint8]:
        """Give the state of each expert, ``(layers, experts)``: COLD, PENDING or RESIDENT."""
        out = np.empty((layers, experts), dtype=np.uint8)
        self._check(self._lib.em_residency(self.handle, out.ctypes.data, out.size))
        return out

    def stats(self) -> ExpertStats:
        """Give the counters since the engine was made."""
        return self.read(self.snapshot())

    def snapshot(self) -> _Stats:
        """Copy the counters without reading them; this costs next to nothing. `read` reads them later."""
        raw = _Stats()
        self._check(self._lib.em_stats(self.handle, ctypes.byref(raw)))
        return raw

    def read(self, raw: _Stats) -> ExpertStats:
        """Read the counters of a snapshot."""
        return ExpertStats(**{name: getattr(raw, name) for name in _STAT_NAMES if name != "dropped_events"})

    def drain(self) -> npt.NDArray[np.int32]:
        """Give the routing events since the last call, as a view that the next call overwrites."""
        n = self._lib.em_drain(self.handle, self._drain_place, self._drain_buffer.size)
        return self._drain_buffer[:n]

    def cancel(self, cancelled: bool) -> None:
        """Ask the computation under way to stop; False takes the request back."""
        self._lib.em_cancel(self.handle, int(cancelled))

    def device_memory(self) -> tuple[int, int]:
        """Give the free and the total bytes of the device."""
        free, total = _i64(), _i64()
        self._check(self._lib.em_device_memory(self.handle, ctypes.byref(free), ctypes.byref(total)))
        return free.value, total.value

    def _check(self, status: int) -> None:
        if status != OK:
            raise EdgeMoEError(self._core.last_error())


def _address_of(libraries: Sequence[ctypes.CDLL], name: str) -> int | None:
    for library in libraries:
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        except AttributeError:
            continue
    return None
