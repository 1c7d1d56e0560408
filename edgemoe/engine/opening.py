"""Opening a model: where it goes, with what settings, which smaller plan is next, and what its failure is called."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp

from .. import limits
from ..config import OffloadConfig
from ..errors import BadGguf, ConfigError, ContextFailed, DoesNotFit, LoadFailed, ModelNotFound, UnsupportedModel
from ..models.gguf import EXPERTS, HINT, GgufFile
from ..planning import model_needs
from ..planning.placement import MachineRates, ModelNeeds, Plan, plan
from ..types import ModelShape
from . import host

# With so many logical cores two are left to our own threads, below it one.
MANY_CORES = 8
# Of the memory that is available, what may be pinned for the device.
PIN_SHARE = 0.7
# llama_cpp's own.
DEFAULT_CONTEXT, DEFAULT_BATCH = 512, 512
# Top-k assumed where a model has another one in each layer, so that its file gives a list.
DEFAULT_TOP_K = 8
# Logits of every token are announced when they take more than this share of the RAM.
MUCH_OF_RAM = 1 / 8

# Types that llama.cpp reads as they lie in the file.
FLOATS = ("F32", "F16", "BF16")

NOT_TAKEN = "No CPU kernel of ours knows this model's types: llama.cpp computes the experts, in its own layout."

# What llama.cpp says when it makes no context, and what helps.
_CONTEXT_HINTS = (
    ("flash_attn", "flash_attn=True, or another type_v"),
    ("alloc", "a smaller context: n_ctx=, --ctx"),
    ("memory", "a smaller context: n_ctx=, --ctx"),
)


class Attempt(NamedTuple):
    """One way to place a model: its plan, llama_cpp's keywords for it, and a note that says what was given up."""

    plan: Plan
    keywords: dict[str, Any]
    note: str = ""


def existing(model_path: str | Path) -> Path:
    """Return the path of a model file.

    Raises:
        ModelNotFound: there is no such file; the message has llama_cpp's words, which its server looks for.
    """
    path = Path(model_path)
    if not path.exists():
        raise ModelNotFound(f"Model path does not exist: {model_path}", "give the path of a GGUF file")
    return path


def context_of(file: GgufFile, keywords: dict[str, Any]) -> int:
    """Count the tokens of the context that is asked for.

    Raises:
        ContextFailed: the number is negative.
    """
    asked = keywords.get("n_ctx", DEFAULT_CONTEXT)
    if asked < 0:
        raise ContextFailed(f"n_ctx={asked} is negative", "0 takes the longest context of the model")
    return int(asked or file.number("context_length") or DEFAULT_CONTEXT)


def needs_of(file: GgufFile, keywords: dict[str, Any]) -> ModelNeeds:
    """Read what the model needs with the settings of its context."""
    context = context_of(file, keywords)
    batch = min(keywords.get("n_batch", DEFAULT_BATCH), keywords.get("n_ubatch", DEFAULT_BATCH), context)
    given = (keywords.get("type_k"), keywords.get("type_v"))
    types = tuple(model_needs.USUAL_TYPE if kind is None else int(kind) for kind in given)
    return model_needs.of(
        file,
        keywords.get("swa_full") is not False,
        bool(keywords.get("flash_attn")),
        max(1, batch),
        (types[0], types[1]),
    )


def attempts(
    file: GgufFile, model: ModelNeeds, config: OffloadConfig, machine: MachineRates, keywords: dict[str, Any]
) -> Iterator[Attempt]:
    """Yield the planned placement, then smaller ones for a device that has less room than planned.

    The user's own ``n_gpu_layers`` and ``offload_kqv`` stay in each. Experts need no attempt of their own: they get
    what is left.
    """
    context = context_of(file, keywords)
    layers, cache = keywords.get("n_gpu_layers"), keywords.get("offload_kqv")
    dense = None if layers is None else layers != 0
    asked = True if dense and cache is None else cache

    def attempt(dense: bool | None, cache: bool | None, note: str = "") -> Attempt:
        placed = plan(machine, model, context, config.budget, bool(config.stream_tokens), dense, cache)
        settings = dict(keywords)
        if layers is None:
            settings["n_gpu_layers"] = -1 if placed.dense_on_device else 0
            settings.setdefault("op_offload", placed.dense_on_device)
        if cache is False or (layers is None and not placed.kv_on_device):
            settings.setdefault("offload_kqv", False)
        return Attempt(placed, settings, note)

    first = attempt(dense, asked)
    yield first
    device = machine.device
    if first.plan.kv_on_device and cache is None:
        yield attempt(
            True if dense is None else dense, False, f"{device} had no room for the KV cache: it stays in RAM."
        )
    if first.plan.dense_on_device and dense is None:
        yield attempt(False, cache, f"{device} had no room for the dense weights: they stay on the CPU.")


def failure(
    file: GgufFile,
    error: ValueError,
    complaints: Sequence[str],
    loaded: bool,
    attempt: Attempt,
    model: ModelNeeds,
    machine: MachineRates,
) -> Exception:
    """Name what went wrong when llama_cpp's constructor failed; only a model that did not load may be damaged."""
    if not file.path.exists():
        return ModelNotFound(f"Model path does not exist: {file.path}")
    if isinstance(error, UnicodeError):  # llama_cpp reads all metadata as text
        return BadGguf(f"{file.path.name}: a text in its header is not UTF-8", HINT)
    what = f"{file.path.name}: {host.error_text(complaints)}"
    if loaded and "llama_context" not in str(error):
        return error
    if loaded:
        hint = next((hint for word, hint in _CONTEXT_HINTS if word in what), "other settings of the context")
        if out_of_memory(complaints):
            needed, free = _context_bytes(attempt, model, machine)
            if needed > free:
                return DoesNotFit(needed, free, hint)
        return ContextFailed(f"no context could be made for {what}", hint)
    if "Failed to" not in str(error):  # a check of llama_cpp's own, before the file was looked at
        return error
    if "unknown model architecture" in what or "unknown pre-tokenizer" in what:
        return UnsupportedModel(what, "this llama.cpp does not know such models: a newer version may")
    if out_of_memory(complaints):
        return LoadFailed(what, "a smaller vram= budget, or a smaller model")
    return BadGguf(what, "the file is damaged, or made for another version of llama.cpp: try another download")


def out_of_memory(complaints: Sequence[str]) -> bool:
    """Tell whether llama.cpp complained of a lack of memory."""
    return any("alloc" in line or "memory" in line for line in complaints)


def _context_bytes(attempt: Attempt, model: ModelNeeds, machine: MachineRates) -> tuple[int, int]:
    """Memory that the context needs, and what is free where it has to be."""
    placed, context = attempt.plan, attempt.plan.context
    if placed.kv_on_device:
        return placed.device_bytes, machine.device_free_bytes
    return model.kv_bytes(context) + model.compute_bytes(context), machine.ram_free_bytes


def announce_logits(file: GgufFile, model: ModelNeeds, keywords: dict[str, Any], ram_bytes: int) -> str:
    """Say before loading what the logits of every token cost, where that is much; returns the sentence."""
    if not keywords.get("logits_all"):
        return ""
    size = 4 * context_of(file, keywords) * model.vocabulary
    if size <= MUCH_OF_RAM * ram_bytes:
        return ""
    text = f"logits_all=True keeps {size / 2**30:.1f} GiB of logits; logprobs of an answer do not need it."
    warnings.warn(text, UserWarning, stacklevel=3)
    host.tell(text)
    return text


def top_k(file: GgufFile, keywords: dict[str, Any]) -> int:
    """Count the experts that a token uses in a layer: as the caller overrides it, else as the file says."""
    override = (keywords.get("kv_overrides") or {}).get(f"{file.architecture}.expert_used_count")
    return override if isinstance(override, int) and override > 0 else file.number("expert_used_count") or DEFAULT_TOP_K


def default_threads(device: bool) -> int:
    """CPU threads for a model: physical cores, less what a device's copies and looking ahead need for themselves.

    Where every core has a thread of the team, one that is held up holds up all: on 16 cores without hyper-threads, 14
    threads decoded Qwen3-30B 1.28 times as fast as 16 (docs/log.md, 2026-11-27).
    """
    allowed = limits.processors()
    spare = 0 if not device or allowed.logical <= 2 else 1 if allowed.logical < MANY_CORES else 2
    return max(1, min(allowed.physical, allowed.logical - spare))


def limit_notes(threads_given: bool) -> list[str]:
    """Say where a limit of this process decided, and not the machine."""
    reasons = [limits.memory().reason, "" if threads_given else limits.processors().reason]
    return [f"{reason[0].upper()}{reason[1:]}." for reason in reasons if reason]


def takes_experts(file: GgufFile, device: str) -> bool:
    """Decide whether the engine takes the model's experts, or llama.cpp keeps them in its own layout.

    Without a device llama.cpp copies some types into a layout that it reads faster. Our kernels make up for that; where
    none of them knows a type of the experts, nothing does.
    """
    if device:
        return True
    matches = ((EXPERTS.match(tensor.name), tensor) for tensor in file.run_tensors.values())
    experts = [tensor for match, tensor in matches if match and match[2] == "weight"]
    return any(tensor.type_name in FLOATS or host.core().has_kernel(tensor.type, tensor.shape[0]) for tensor in experts)


def can_pin(shape: ModelShape | None) -> bool:
    """Whether the machine can spare the memory: what is pinned cannot make room for anything else."""
    if shape is None:
        return False
    # ggml's CUDA backend pins what is not its own only where this is set.
    os.environ.setdefault("GGML_CUDA_REGISTER_HOST", "1")
    return sum(shape.expert_bytes) * shape.experts < PIN_SHARE * limits.memory().available


def machine_of(device: str) -> MachineRates:
    """Measure the memory that is free now."""
    free, total = host.device_memory(device) if device else (0, 0)
    ram = limits.memory()
    return MachineRates(device, free, total, ram.available, ram.total)


def resolve_device(config: OffloadConfig, keywords: dict[str, Any]) -> str:
    """Return the ggml name of the device asked for, empty for none.

    llama.cpp gets to see one device, so its settings for several choose that one.

    Raises:
        ConfigError: ``main_gpu``, ``split_mode`` or ``tensor_split`` ask for what one device cannot do.
    """
    if config.device == "none":
        return ""
    known = host.devices()
    if config.device == "auto" and not known:
        return ""
    split, chosen = keywords.get("split_mode"), int(keywords.get("main_gpu") or 0)
    shares = list(keywords.get("tensor_split") or ())
    automatic, hint = config.device == "auto", "offload=OffloadConfig(device=...) names the device"
    if split is not None and split not in (llama_cpp.LLAMA_SPLIT_MODE_NONE, llama_cpp.LLAMA_SPLIT_MODE_LAYER):
        raise ConfigError(f"split_mode={split} needs several devices, and this engine uses one", "leave split_mode out")
    used = [place for place, share in enumerate(shares) if share > 0]
    if len(used) == 1 and len(shares) <= llama_cpp.LLAMA_MAX_DEVICES:
        chosen = used[0]
    elif len(used) > 1 and len(shares) <= llama_cpp.LLAMA_MAX_DEVICES and automatic and len(known) > 1:
        raise ConfigError(f"tensor_split={shares} needs several devices, and this engine uses one", hint)
    elif split != llama_cpp.LLAMA_SPLIT_MODE_NONE:
        chosen = 0  # llama.cpp does not look at main_gpu then
    what = "tensor_split" if len(used) == 1 else "main_gpu"
    if not automatic and chosen:
        raise ConfigError(f"{what} chooses device {chosen}, and device={config.device!r} is the only one", hint)
    if not automatic:
        return config.device
    if not 0 <= chosen < len(known):
        raise ConfigError(f"{what} chooses device {chosen}, but there are {len(known)}", hint)
    if chosen:  # the one device that llama.cpp sees is its first
        keywords.pop("tensor_split", None)
        keywords["main_gpu"] = 0
    return known[chosen]
