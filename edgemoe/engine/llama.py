"""``Llama``: llama_cpp's class, with the experts of the model placed one by one."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import psutil

from .. import needs
from ..config import Budget, OffloadConfig
from ..errors import BadGguf, ConfigError, ContextFailed, EdgeMoEError, ModelNotFound, UnsupportedModel
from ..gguf import GgufFile, check, check_weights, model_identity, moe_shape
from ..plan import LAYER_OVERHEAD, Machine, Plan, plan
from ..residence import Residence
from ..types import ModelShape
from . import host
from .binding import Core, NativeEngine
from .experts import Experts
from .meter import Meter
from .watchdog import WATCHDOG_SAYS, BudgetChanged, Watchdog

GRAPH_US = 60_000  # a third of the 200 ms within which an answer stops: layers between two checks are short

# With so many logical cores two are left to our own threads, below it one.
MANY_CORES = 8

# Of the memory that is available, what may be pinned for the device.
PIN_SHARE = 0.7

# llama_cpp's own.
DEFAULT_CONTEXT = 512
# Top-k assumed where a model has another one in each layer, so that its file gives a list.
DEFAULT_TOP_K = 8

_load_lock = threading.Lock()
_open: weakref.WeakSet[Llama] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Routing profiles are saved while the interpreter can still write files."""
    for llm in list(_open):
        llm.close()


class Cancelled(EdgeMoEError):
    """``Llama.cancel`` was called during a computation outside a completion."""


class Llama(llama_cpp.Llama):  # type: ignore[misc]
    """A drop-in for ``llama_cpp.Llama`` that keeps hot experts on a device and cold ones on the CPU.

    Every keyword of ``llama_cpp.Llama`` works; these differ in their defaults: ``n_threads`` is the number of
    physical cores, less one or two that a device's copies need, ``n_gpu_layers`` puts the dense part on the device when
    there is one, ``verbose`` is off, and nothing is ever written to the terminal (messages go to the logger
    ``edgemoe.llama``).

    Args:
        model_path: a GGUF file; any shard means its whole model.
        offload: where experts live and who decides.
        **keywords: as in ``llama_cpp.Llama``.

    Attributes:
        experts: placement and figures, see ``Experts``.

    Raises:
        ModelNotFound: no such file, or a shard is missing.
        BadGguf: the file is damaged, or llama.cpp refuses it.
        UnsupportedModel: the file is sound, but llama.cpp does not run such a model.
        ContextFailed: llama.cpp cannot make a context with these settings.
        BackendMismatch: llama-cpp-python is not the tested version.
        ConfigError: a setting cannot be honoured.
    """

    def __init__(self, model_path: str | Path, *, offload: OffloadConfig | None = None, **keywords: Any) -> None:
        """Load the model; resident experts are filled in the background while it already answers."""
        self._native = None
        config = offload or OffloadConfig()
        file = check(Path(model_path))
        vocab_only = bool(keywords.get("vocab_only"))
        if not vocab_only:
            check_weights(file)
        core = host.core()
        device = "" if vocab_only else _resolve_device(config)
        if device == "sim":
            core.configure_sim(config.sim)
            if config.sim.compute_rate and keywords.setdefault("n_gpu_layers", 0) != 0:
                raise ConfigError("a sim device that only pretends has no layers to compute", "leave n_gpu_layers out")
        keywords.setdefault("n_threads", default_threads(bool(device)))
        if device:
            keywords.setdefault("n_threads_batch", keywords["n_threads"])
        keywords["verbose"] = False
        machine = _machine(device)
        placed, spare = _plan(file, config, machine, keywords)
        stream_tokens = config.stream_tokens if placed.stream_slots else 0
        shape = None if vocab_only else moe_shape(file)
        pin = config.pin and _can_pin(shape)
        native = core.engine(device, config.prefill_tokens, stream_tokens, pin, placed.stream_slots, GRAPH_US)
        self._native = native
        native.set_blocks(max(1, file.run_blocks))
        head = range(file.run_blocks, file.run_blocks + file.mtp_blocks)
        self._cancel_requested = False
        complaints: Sequence[str] = ()
        on_device = bool(device) and keywords["n_gpu_layers"] != 0
        self._meter = Meter(native, device or "none", on_device)
        try:
            with _load_lock, host.loading(native, on_device=on_device, head=head) as complaints:
                super().__init__(str(file.path), **keywords)
        except ValueError as error:
            made = getattr(self, "_model", None) is not None
            self._free_native()
            raise _load_error(file, error, complaints, made) from error
        except BaseException:
            self._free_native()
            raise
        # The stack closes in reverse: copies stop before the model's memory goes.
        self._stack.callback(native.stop)
        if shape is not None and not native.layers():
            raise EdgeMoEError(f"{file.path.name}: llama.cpp did not hand its experts to the engine")
        used = _top_k(file, keywords)
        self.experts = Experts(native, config, device, used, model_identity(file), spare)
        self.experts.free_before = (machine.device_free_bytes, machine.ram_free_bytes)
        if vocab_only:
            self.experts.notes[:] = [
                "Only the vocabulary is loaded: there are no experts, and nothing can be computed."
            ]
        elif keywords.get("use_mmap", True):
            self.experts.residence = Residence.of_experts(file)
        if on_device and shape is not None and all(layer.slots == layer.experts for layer in native.layers()):
            self.experts.notes.append(f"Every expert has a place on {device}: it computes as llama.cpp does.")
        if device == "sim" and config.sim.compute_rate > 0:
            self.experts.notes.append("The sim device only pretends to compute: the answers mean nothing.")
        spare_core = (psutil.cpu_count() or 1) > int(keywords["n_threads"] or 1)
        if config.prefetch == "lookahead" or (config.prefetch == "auto" and spare_core):
            self.experts.look_ahead(file)
        if placed.reason and not vocab_only:
            self.experts.notes.append(placed.reason)
        abort = ctypes.cast(core.abort_callback(), llama_cpp.ggml_abort_callback)
        llama_cpp.llama_set_abort_callback(self._ctx.ctx, abort, ctypes.c_void_p(native.handle))
        self._ctx.decode = _GuardedDecode(core, self._ctx.ctx)
        _open.add(self)
        hot = _HotSet(native, self.experts)
        self._watchdog = Watchdog(hot, needs.of(file).expert_bytes + hot.overhead, _noting(self.experts.notes), spare)
        if device and shape is not None:
            self._watchdog.start()

    # ---- computing ----

    def eval(self, tokens: Sequence[int]) -> None:
        """Compute ``tokens`` after those computed before; see ``llama_cpp.Llama.eval``.

        Raises:
            Cancelled: ``cancel`` was called meanwhile.
        """
        if self._cancel_requested:
            raise Cancelled("cancelled")
        started = time.perf_counter_ns()
        before = self.n_tokens
        self.experts.before_step(tokens)
        try:
            with host.computing():
                super().eval(tokens)
        except RuntimeError as error:
            if self._cancel_requested:
                raise Cancelled("cancelled") from error
            raise EdgeMoEError(f"llama.cpp failed to compute: {error}") from error
        finally:
            elapsed_ns = time.perf_counter_ns() - started
            self._meter.computed(len(tokens), before, elapsed_ns)
            self.experts.after_step(tokens[: self.n_tokens - before], elapsed_ns)

    def generate(
        self, tokens: Sequence[int], *args: Any, **keywords: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """As ``llama_cpp.Llama.generate``; ends early, without an error, after ``cancel``."""
        with contextlib.suppress(Cancelled):
            yield from super().generate(tokens, *args, **keywords)

    @property
    def _known(self) -> int:
        """Tokens to show llama_cpp: one at least where a cancel came before the first, for it looks at the last one."""
        return max(int(self.n_tokens), 1 if self._cancel_requested else 0)

    @property
    def _input_ids(self) -> Any:
        return self.input_ids[: self._known]

    @property
    def _scores(self) -> Any:
        return self.scores[: self._known, :]

    def cancel(self) -> None:
        """Stop the answer under way, prefill included; what was generated stays. From any thread."""
        self._cancel_requested = True
        if self._native is not None:
            self._native.cancel(True)

    # ---- answers with accounts ----

    def create_completion(self, *args: Any, **keywords: Any) -> Any:
        """As in ``llama_cpp.Llama``, with ``timings`` and ``edgemoe`` in the answer or its last chunk."""
        return self._accounted(super().create_completion, args, keywords)

    def create_chat_completion(self, *args: Any, **keywords: Any) -> Any:
        """As in ``llama_cpp.Llama``, with ``timings`` and ``edgemoe`` in the answer or its last chunk."""
        return self._accounted(super().create_chat_completion, args, keywords)

    def _accounted(self, create: Any, args: Any, keywords: Any) -> Any:
        if self._meter.running:  # a chat completion calls a completion: account for the outer one
            return create(*args, **keywords)
        self._resume()
        self._meter.start()
        try:
            answer = create(*args, **keywords)
        except BaseException:
            self._meter.stop()
            raise
        if isinstance(answer, dict):
            return self._finish(answer)
        return self._stream(answer)

    def _stream(self, chunks: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            for chunk in chunks:
                yield self._finish(chunk) if chunk["choices"][0].get("finish_reason") else chunk
        finally:
            self._meter.stop()

    def _finish(self, answer: dict[str, Any]) -> dict[str, Any]:
        if self._cancel_requested:
            answer["choices"][0]["finish_reason"] = "stop"
        return answer | self._meter.receipt()

    def _resume(self) -> None:
        self._cancel_requested = False
        if self._native is not None:
            self._native.cancel(False)

    # ---- the end ----

    def close(self) -> None:
        """Keep the routing profile, stop uploads, free the model."""
        _open.discard(self)
        if getattr(self, "_watchdog", None) is not None:
            self._watchdog.stop()
        if getattr(self, "experts", None) is not None and self._native is not None:
            self.experts.close()
        if getattr(self, "_stack", None) is not None:
            super().close()
        self._free_native()

    def _free_native(self) -> None:
        native, self._native = self._native, None
        if native is not None:
            native.stop()
            if getattr(self, "_stack", None) is not None:
                self._stack.close()
            native.close()


class _HotSet:
    """What the watchdog watches."""

    def __init__(self, native: NativeEngine, experts: Experts) -> None:
        self._native, self._experts = native, experts
        self.overhead = (experts.shape.layers if experts.shape else 0) * LAYER_OVERHEAD

    def automatic(self) -> bool:
        return self._experts.automatic

    def memory(self) -> tuple[int, int]:
        return self._native.device_memory()

    def held(self) -> int:
        return self._native.stats().slot_bytes

    def resize(self, vram: int) -> int:
        return self._experts.adapt(Budget(bytes=max(0, vram - self.overhead)))


def _noting(notes: list[str]) -> Callable[[BudgetChanged], None]:
    """Says what the watchdog did; what it said before is no longer true. It must not hold the model alive."""

    def note(event: BudgetChanged) -> None:
        notes[:] = [note for note in notes if not note.startswith(WATCHDOG_SAYS)] + [event.sentence]

    return note


class _GuardedDecode:
    """Stands in for ``decode`` of llama_cpp's context: a failed assertion of ggml is an error, not the end."""

    def __init__(self, core: Core, context: int) -> None:
        self._core, self._context = core, context
        self._function = host.address_of("llama_decode")
        self._broken = ""

    def __call__(self, batch: Any) -> None:
        if self._broken:
            raise EdgeMoEError(f"the model is unusable after an error: {self._broken}")
        try:
            status = self._core.decode(self._function, self._context, batch.batch)
        except EdgeMoEError as error:
            self._broken = host.error_text([str(error)])
            raise EdgeMoEError(f"llama.cpp failed to compute: {self._broken}") from error
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")


# What llama.cpp says when it makes no context, and what helps.
_CONTEXT_HINTS = (
    ("flash_attn", "flash_attn=True, or another type_v"),
    ("alloc", "a smaller context: n_ctx=, --ctx"),
    ("memory", "a smaller context: n_ctx=, --ctx"),
)


def _load_error(file: GgufFile, error: ValueError, complaints: Sequence[str], loaded: bool) -> Exception:
    """Name what went wrong when llama_cpp's constructor failed; only a model that did not load may be damaged."""
    if not file.path.exists():
        return ModelNotFound(f"{file.path} does not exist")
    what = f"{file.path.name}: {host.error_text(complaints)}"
    if loaded and "llama_context" not in str(error):
        return error
    if loaded:
        hint = next((hint for word, hint in _CONTEXT_HINTS if word in what), "other settings of the context")
        return ContextFailed(f"no context could be made for {what}", hint)
    if "Failed to" not in str(error):  # a check of llama_cpp's own, before the file was looked at
        return error
    if "unknown model architecture" in what or "unknown pre-tokenizer" in what:
        return UnsupportedModel(what, "this llama.cpp does not know such models: a newer version may")
    if "alloc" in what:
        return EdgeMoEError(what, "a smaller vram= budget, or a smaller model")
    return BadGguf(what, "the file is damaged, or made for another version of llama.cpp: try another download")


def _top_k(file: GgufFile, keywords: dict[str, Any]) -> int:
    """Count the experts that a token uses in a layer: as the caller overrides it, else as the file says."""
    override = (keywords.get("kv_overrides") or {}).get(f"{file.architecture}.expert_used_count")
    return override if isinstance(override, int) and override > 0 else file.number("expert_used_count") or DEFAULT_TOP_K


def default_threads(device: bool) -> int:
    """CPU threads for a model: physical cores, less what a device's copies and looking ahead need for themselves.

    Where every core has a thread of the team, one that is held up holds up all: on 16 cores without hyper-threads, 14
    threads decoded Qwen3-30B 1.28 times as fast as 16 (docs/log.md, 2026-11-27).
    """
    physical, logical = psutil.cpu_count(logical=False) or 1, psutil.cpu_count() or 1
    spare = 0 if not device or logical <= 2 else 1 if logical < MANY_CORES else 2
    return max(1, min(physical, logical - spare))


def _can_pin(shape: ModelShape | None) -> bool:
    """Whether the machine can spare the memory: what is pinned cannot make room for anything else."""
    if shape is None:
        return False
    # ggml's CUDA backend pins what is not its own only where this is set.
    os.environ.setdefault("GGML_CUDA_REGISTER_HOST", "1")
    return sum(shape.expert_bytes) * shape.experts < PIN_SHARE * psutil.virtual_memory().available


def _machine(device: str) -> Machine:
    free, total = host.device_memory(device) if device else (0, 0)
    ram = psutil.virtual_memory()
    return Machine(device, free, total, ram.available, ram.total)


def _plan(file: GgufFile, config: OffloadConfig, machine: Machine, keywords: dict[str, Any]) -> tuple[Plan, int]:
    """What goes where, and the device bytes of a prefill; sets the keywords of the dense part unless they are given."""
    context = keywords.get("n_ctx", DEFAULT_CONTEXT) or file.number("context_length") or DEFAULT_CONTEXT
    model = needs.of(file, keywords.get("swa_full") is not False, bool(keywords.get("flash_attn")))
    dense = keywords.get("n_gpu_layers") != 0
    placed = plan(machine, model, context, config.budget, bool(config.stream_tokens), dense)
    if "n_gpu_layers" not in keywords:
        keywords["n_gpu_layers"] = -1 if placed.dense_on_device else 0
        keywords.setdefault("offload_kqv", placed.kv_on_device)
        keywords.setdefault("op_offload", placed.dense_on_device)
    return placed, placed.staging_of(model)


def _resolve_device(config: OffloadConfig) -> str:
    """The ggml name of the device asked for, empty for none."""
    if config.device == "none":
        return ""
    if config.device == "auto":
        return next(iter(host.devices()), "")
    return config.device
