"""Measures this machine through ggml: the speed of CPU and device on experts of one token, and the speed of copies.

Everything is timed on graphs and buffers of ggml's public interface, the one that models run on. A rate that cannot be
measured is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..models.gguf import EXPERTS, NOT_WEIGHTS, TYPES, GgufFile
from . import host

_pointer, _i64, _size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
ROUNDS = 8  # tokens in a row, so that the start of a graph does not count
MOST_BYTES = 256 << 20  # of weights, at most, for a measurement
MOST_NODES = 1024
TOKENS = 128  # tokens of a batch
UPLOAD_BYTES = 4 << 20  # an expert
TINY_NODES = 200
WORDS = 2048
PATIENCE_S = 0.35  # time for each measurement


class _Parameters(ctypes.Structure):
    _fields_ = [("bytes", _size), ("buffer", _pointer), ("no_alloc", ctypes.c_bool)]


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (_pointer, [_Parameters]),
    "ggml_free": (None, [_pointer]),
    "ggml_new_tensor_3d": (_pointer, [_pointer, ctypes.c_int, _i64, _i64, _i64]),
    "ggml_mul_mat_id": (_pointer, [_pointer] * 4),
    "ggml_mul_mat": (_pointer, [_pointer] * 3),
    "ggml_add": (_pointer, [_pointer] * 3),
    "ggml_nbytes": (_size, [_pointer]),
    "ggml_new_graph_custom": (_pointer, [_pointer, _size, ctypes.c_bool]),
    "ggml_build_forward_expand": (None, [_pointer, _pointer]),
    "ggml_backend_cpu_init": (_pointer, []),
    "ggml_backend_cpu_set_n_threads": (None, [_pointer, ctypes.c_int]),
    "ggml_backend_dev_by_name": (_pointer, [ctypes.c_char_p]),
    "ggml_backend_dev_init": (_pointer, [_pointer, ctypes.c_char_p]),
    "ggml_backend_dev_host_buffer_type": (_pointer, [_pointer]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_pointer, _pointer]),
    "ggml_backend_free": (None, [_pointer]),
    "ggml_backend_alloc_ctx_tensors": (_pointer, [_pointer, _pointer]),
    "ggml_backend_buft_alloc_buffer": (_pointer, [_pointer, _size]),
    "ggml_backend_buffer_get_base": (_pointer, [_pointer]),
    "ggml_backend_buffer_clear": (None, [_pointer, ctypes.c_uint8]),
    "ggml_backend_buffer_free": (None, [_pointer]),
    "ggml_backend_tensor_set": (None, [_pointer, _pointer, _size, _size]),
    "ggml_backend_tensor_set_async": (None, [_pointer, _pointer, _pointer, _size, _size]),
    "ggml_backend_graph_compute": (ctypes.c_int, [_pointer, _pointer]),
    "ggml_backend_graph_compute_async": (ctypes.c_int, [_pointer, _pointer]),
    "ggml_backend_synchronize": (None, [_pointer]),
    "ggml_graph_node": (_pointer, [_pointer, ctypes.c_int]),
    "ggml_backend_tensor_get": (None, [_pointer, _pointer, _size, _size]),
}
F32, I32 = 0, 26
NO_RATE = {I32, *NOT_WEIGHTS}


def _ggml() -> Any:
    host.core()
    library = host._ggml_libraries()[0]
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@dataclass(frozen=True)
class Weight:
    """A matrix in ggml's order of extents. The last extent counts experts, of which a token uses ``used``."""

    type: int
    shape: tuple[int, int, int]
    used: int = 0

    @property
    def bytes(self) -> int:
        """Count the bytes that one token reads of the matrix."""
        _, block, size = TYPES[self.type]
        return self.shape[0] // block * size * self.shape[1] * (self.used or 1)

    @property
    def operations(self) -> int:
        """Count the multiply-adds of one token."""
        return self.shape[0] * self.shape[1] * (self.used or 1)


# One layer of a common model of 30 billion parameters: Q4_K, 768 neurons, 8 used, half of the experts.
COMMON = (Weight(12, (2048, 768, 64), 8), Weight(12, (2048, 768, 64), 8), Weight(12, (768, 2048, 64), 8))


def weights_of(file: GgufFile) -> tuple[list[Weight], list[Weight]]:
    """Make weights like those of a model: routed experts, and all others; at most `MOST_BYTES` of each kind."""
    used = file.number("expert_used_count") or 1
    experts: list[Weight] = []
    others: list[Weight] = []
    size = [0, 0]
    for name, tensor in file.run_tensors.items():
        routed = EXPERTS.match(name)
        if (
            len(tensor.shape) < 2
            or not name.endswith(".weight")
            or name == "token_embd.weight"
            or tensor.type in NO_RATE
        ):
            continue
        room = MOST_BYTES - size[routed is not None]
        if routed and len(tensor.shape) == 3:
            count = min(tensor.shape[2], max(used, room * tensor.shape[2] // tensor.bytes))
            if room > 0:
                experts.append(Weight(tensor.type, (tensor.shape[0], tensor.shape[1], count), used))
                size[1] += tensor.bytes * count // tensor.shape[2]
        elif len(tensor.shape) == 2 and room > 0:
            others.append(Weight(tensor.type, (tensor.shape[0], tensor.shape[1], 1)))
            size[0] += tensor.bytes
    return experts[: MOST_NODES // ROUNDS // 2], others[: MOST_NODES // 2]


class Bench:
    """One backend (the CPU, or a device by its ggml name) to time graphs on; closed after use.

    Args:
        device: ggml name, empty for the CPU.
        threads: of the CPU.
    """

    def __init__(self, device: str, threads: int) -> None:
        """Open the backend; ``opened`` says whether that worked."""
        self._lib = _ggml()
        self._device = self._lib.ggml_backend_dev_by_name(device.encode()) if device else None
        if device:  # the core's own streams are opened the same way
            self._backend = self._lib.ggml_backend_dev_init(self._device, b"async") if self._device else None
        else:
            self._backend = self._lib.ggml_backend_cpu_init()
            self._lib.ggml_backend_cpu_set_n_threads(self._backend, threads)

    @property
    def opened(self) -> bool:
        """There is such a backend."""
        return bool(self._backend)

    def close(self) -> None:
        """Free the backend."""
        if self._backend:
            self._lib.ggml_backend_free(self._backend)
            self._backend = None

    def rates(self, weights: Sequence[Weight], patience_s: float = PATIENCE_S) -> tuple[float, float] | None:
        """Measure bytes per second with one token, and multiply-adds per second with a batch of `TOKENS` tokens.

        The result is None if the backend lacks an operation or the memory.
        """
        found = []
        for tokens in (1, TOKENS):
            few = (
                weights if tokens == 1 else weights[:: max(1, len(weights) // 4)]
            )  # a batch computes more than it reads, so a few weights are enough
            with self._products(few, tokens) as (graph, work):
                if graph is None:
                    return None
                found.append(work / self._seconds(graph, patience_s))
        return found[0], found[1]

    def node_ns(self) -> float | None:
        """Measure an operation so small that only its start counts, in nanoseconds; None if there is no memory."""
        with self._tensors(TINY_NODES + 8) as (ctx, alloc):
            first = tensor = self._lib.ggml_new_tensor_3d(ctx, F32, 64, 1, 1)
            for _ in range(TINY_NODES):
                tensor = self._lib.ggml_add(ctx, tensor, first)
            graph = self._graph(ctx, [tensor])
            if not alloc():
                return None
            return self._seconds(graph, PATIENCE_S / 2) / TINY_NODES * 1e9

    def join_ns(self) -> float | None:
        """Measure nanoseconds to send an input, start a small graph and wait for it; None if there is no memory."""
        with self._tensors(8) as (ctx, alloc):
            first = self._lib.ggml_new_tensor_3d(ctx, F32, WORDS, 1, 1)
            graph = self._graph(ctx, [self._lib.ggml_add(ctx, first, first)])
            if not alloc():
                return None
            source, times = np.zeros(WORDS, dtype=np.float32), []
            for _ in range(200):
                started = time.perf_counter_ns()
                self._lib.ggml_backend_tensor_set_async(self._backend, first, source.ctypes.data, 0, source.nbytes)
                self._lib.ggml_backend_graph_compute_async(self._backend, graph)
                self._lib.ggml_backend_synchronize(self._backend)
                times.append(time.perf_counter_ns() - started)
            return float(np.median(times))

    def upload_rate(self, pinned: bool) -> float | None:
        """Measure bytes per second of copies to the device, of an expert's size; None if memory cannot be pinned."""
        with self._host(pinned) as source, self._tensors(8) as (ctx, alloc):
            target = self._lib.ggml_new_tensor_3d(ctx, F32, UPLOAD_BYTES // 4, 1, 1)
            if not source or not alloc():
                return None

            def copy() -> None:
                self._lib.ggml_backend_tensor_set_async(self._backend, target, source, 0, UPLOAD_BYTES)
                self._lib.ggml_backend_synchronize(self._backend)

            return UPLOAD_BYTES / typical(copy, PATIENCE_S / 2)

    # ---- inside ----

    @contextlib.contextmanager
    def _tensors(self, count: int) -> Iterator[tuple[Any, Callable[[], Any]]]:
        ctx = self._lib.ggml_init(_Parameters(1024 * (count + 64) * 2, None, True))
        buffers: list[Any] = []

        def alloc() -> Any:
            buffer = self._lib.ggml_backend_alloc_ctx_tensors(ctx, self._backend)
            if buffer:
                buffers.append(buffer)
                self._lib.ggml_backend_buffer_clear(buffer, 0)
            return buffer

        try:
            yield ctx, alloc
        finally:
            for buffer in buffers:
                self._lib.ggml_backend_buffer_free(buffer)
            self._lib.ggml_free(ctx)

    @contextlib.contextmanager
    def _products(self, weights: Sequence[Weight], tokens: int) -> Iterator[tuple[Any, int]]:
        """Yield a graph of products and its work: bytes of weights for one token, multiply-adds for several tokens."""
        rounds = ROUNDS if tokens == 1 else 1
        with self._tensors(len(weights) * (2 + 2 * rounds) + 8) as (ctx, alloc):
            products: list[tuple[int, Any]] = []
            choices: list[tuple[Any, Weight, int]] = []
            for weight in weights:
                matrix = self._lib.ggml_new_tensor_3d(ctx, weight.type, *weight.shape)
                inputs = self._lib.ggml_new_tensor_3d(
                    ctx, F32, weight.shape[0], 1 if weight.used else tokens, tokens if weight.used else 1
                )
                for turn in range(rounds if weight.used else 1):
                    if not weight.used:
                        products.append((0, self._lib.ggml_mul_mat(ctx, matrix, inputs)))
                        continue
                    ids = self._lib.ggml_new_tensor_3d(ctx, I32, weight.used, tokens, 1)
                    choices.append((ids, weight, turn))
                    products.append((turn, self._lib.ggml_mul_mat_id(ctx, matrix, inputs, ids)))
            # Each turn goes through all weights, as a model does: a cache would hold weights that are used again soon.
            results = [result for _, result in sorted(products, key=lambda pair: pair[0])]
            able = not self._device or all(self._lib.ggml_backend_dev_supports_op(self._device, r) for r in results)
            if not able or not alloc():
                yield None, 0
                return
            for ids, weight, turn in choices:
                self._choose(ids, weight, turn, tokens)
            work = sum((w.bytes if tokens == 1 else w.operations * tokens) * (rounds if w.used else 1) for w in weights)
            yield self._graph(ctx, results), work

    def _choose(self, ids: Any, weight: Weight, turn: int, tokens: int) -> None:
        """Fill in the experts of a turn. The next turn has other experts, so that no cache holds them."""
        count, order = weight.shape[2], np.random.default_rng(turn)
        rows = [(np.arange(weight.used) + turn * weight.used) % count]
        if tokens > 1:
            rows = [order.permutation(count)[: weight.used] for _ in range(tokens)]
        chosen = np.concatenate(rows).astype(np.int32)
        self._lib.ggml_backend_tensor_set(ids, chosen.ctypes.data, 0, chosen.nbytes)

    @contextlib.contextmanager
    def _host(self, pinned: bool) -> Iterator[Any]:
        if not pinned:
            plain = np.ones(UPLOAD_BYTES, dtype=np.uint8)
            yield plain.ctypes.data
            return
        kind = self._lib.ggml_backend_dev_host_buffer_type(self._device) if self._device else None
        buffer = self._lib.ggml_backend_buft_alloc_buffer(kind, UPLOAD_BYTES) if kind else None
        try:
            yield self._lib.ggml_backend_buffer_get_base(buffer) if buffer else None
        finally:
            if buffer:
                self._lib.ggml_backend_buffer_free(buffer)

    def _graph(self, ctx: Any, results: Sequence[Any]) -> Any:
        graph = self._lib.ggml_new_graph_custom(ctx, MOST_NODES, False)
        for result in results:
            self._lib.ggml_build_forward_expand(graph, result)
        return graph

    def _seconds(self, graph: Any, patience_s: float) -> float:
        result, word = self._lib.ggml_graph_node(graph, -1), ctypes.c_float()

        def compute() -> None:
            self._lib.ggml_backend_graph_compute(self._backend, graph)
            self._lib.ggml_backend_synchronize(self._backend)
            # A remote device does not report the end of a graph. It has ended when its result can be read.
            self._lib.ggml_backend_tensor_get(result, ctypes.byref(word), 0, 4)

        return typical(compute, patience_s)


def typical(work: Callable[[], Any], patience_s: float) -> float:
    """Give the median of three or more runs, in seconds: models run on a busy machine, too."""
    work()
    times: list[float] = []
    end = time.perf_counter() + patience_s
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))
