"""Opening a model: its placement, its settings, smaller placements to try next, and names for failures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp

from .. import limits
from ..config import Budget, OffloadConfig
from ..errors import BadGguf, ConfigError, ContextFailed, DoesNotFit, LoadFailed, ModelNotFound, UnsupportedModel
from ..models.gguf import EXPERTS, HINT, GgufFile, check, check_weights, model_identity
from ..planning import context, kv_cache, model_needs
from ..planning.context import ContextChoice
from ..planning.placement import MachineRates, ModelNeeds, Placement, place
from ..planning.third_tier import ram_for_experts
from ..setup.advice import advice
from . import attention, host

# From this number of logical cores on, our own threads get two of them; below it, one.
MANY_CORES = 8
# The share of the available memory that may be pinned for the device.
PIN_SHARE = 0.7
# The defaults of llama_cpp.
DEFAULT_CONTEXT, DEFAULT_BATCH = 512, 512
# The value of ``n_ctx`` that leaves the context to the planner.
AUTO = "auto"
# Assumed top-k of a model with another top-k in each layer: its file gives a list.
DEFAULT_TOP_K = 8
# If the logits of every token take more than this share of the RAM, the user is told.
MUCH_OF_RAM = 1 / 8

# Types for which llama.cpp has a layout of its own on some processor, and reads it faster than the file's.
# Source: ggml_repack_get_optimal_repack_type in ggml/src/ggml-cpu/repack.cpp.
REPACKED = ("Q4_0", "Q2_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4")

NOT_TAKEN = "No CPU kernel of ours knows this model's types: llama.cpp computes the experts, in its own layout."

# Words of llama.cpp when it cannot make a context, each with the setting that helps.
_CONTEXT_HINTS = (
    ("flash_attn", "flash_attn=True, or another type_v"),
    ("alloc", "a smaller context: n_ctx=, --ctx"),
    ("memory", "a smaller context: n_ctx=, --ctx"),
)


class Attempt(NamedTuple):
    """One way to place a model.

    Attributes:
        placement: the placement.
        keywords: llama_cpp's keywords for it.
        note: a sentence on the part that this attempt gives up, empty for the first attempt.
        ram_bytes: RAM for experts if they do not all fit in RAM, else None.
    """

    placement: Placement
    keywords: dict[str, Any]
    note: str = ""
    ram_bytes: int | None = None


@dataclass(frozen=True)
class Opening:
    """All that is decided before a model loads.

    Attributes:
        file: the checked header.
        config: the settings.
        device: ggml name of the device, empty for none.
        keywords: llama_cpp's keywords, with our defaults.
        needs: the model with these settings; without experts when only the vocabulary loads.
        identity: lower-case hexadecimal key of the model's content.
        machine: memory that is free before the model loads.
        attempts: placements, the planned one first, then smaller ones.
        chosen: the context that the planner chose; None if the user did.
        sequences: number of sequences that share the context.
    """

    file: GgufFile
    config: OffloadConfig
    device: str
    keywords: dict[str, Any]
    needs: ModelNeeds
    identity: str
    machine: MachineRates
    attempts: tuple[Attempt, ...]
    chosen: ContextChoice | None = None
    sequences: int = 1

    @property
    def vocab_only(self) -> bool:
        """Tell whether only the vocabulary loads."""
        return bool(self.keywords.get("vocab_only"))

    @property
    def maps_weights(self) -> bool:
        """Tell whether the weights are pages of the file."""
        return bool(self.keywords.get("use_mmap", True)) and not self.vocab_only

    def on_device(self, attempt: Attempt) -> bool:
        """Tell whether llama.cpp computes layers on the device."""
        return bool(self.device) and attempt.keywords["n_gpu_layers"] != 0

    @property
    def verbose(self) -> bool:
        """Tell whether llama.cpp's messages may be seen."""
        return bool(self.keywords["verbose"])

    @cached_property
    def takes_experts(self) -> bool:
        """Decide whether the engine takes the experts, or llama.cpp keeps them in its own layout.

        Without a device llama.cpp copies some types into a layout that it reads faster. Only a kernel of ours makes up
        for that, or RAM that is too small for the experts.
        """
        if self.device or self.attempts[0].ram_bytes is not None:
            return True
        matches = ((EXPERTS.match(tensor.name), tensor) for tensor in self.file.run_tensors.values())
        experts = [tensor for match, tensor in matches if match and match[2] == "weight"]
        return any(host.core().has_kernel(tensor.type, tensor.shape[0]) for tensor in experts) or not any(
            tensor.type_name in REPACKED for tensor in experts
        )

    @property
    def head_blocks(self) -> range:
        """Give the numbers of the blocks of an MTP head."""
        return range(self.file.run_blocks, self.file.run_blocks + self.file.mtp_blocks)

    @property
    def looks_ahead(self) -> bool:
        """Tell whether routers choose experts to prefetch: as the settings say, or if a core is left for it."""
        spare_core = limits.processors().logical > int(self.keywords["n_threads"] or 1)
        return self.config.prefetch == "lookahead" or (self.config.prefetch == "auto" and spare_core)


def read(model_path: str | Path, vocab_only: bool) -> GgufFile:
    """Read the header of a model and check it.

    Args:
        model_path: a GGUF file.
        vocab_only: the weights may be missing.

    Raises:
        ModelNotFound: there is no such file, or a shard is missing.
        BadGguf: the file is damaged.
        UnsupportedModel: llama.cpp does not run such a model.
    """
    file = check(existing(model_path))
    if not vocab_only:
        check_weights(file)
    return file


def prepare(file: GgufFile, config: OffloadConfig, given: Mapping[str, Any], sequences: int = 1) -> Opening:
    """Decide where a model goes and with which settings; nothing is changed, and nothing is loaded.

    Args:
        file: the checked header.
        config: the settings.
        given: the keywords that the user gave.
        sequences: number of sequences that share the context.

    Raises:
        ConfigError: a setting cannot be honoured.
        ContextFailed: the context is of a negative length.
        DoesNotFit: the context takes more memory than there is.
    """
    keywords = dict(given)
    device = "" if keywords.get("vocab_only") else resolve_device(config, keywords)
    if config.device == "auto" and device and device != host.devices()[0]:  # llama.cpp would take its first
        keywords.pop("tensor_split", None)
        keywords["main_gpu"] = 0
    if device == "sim" and config.sim.compute_rate and keywords.setdefault("n_gpu_layers", 0) != 0:
        raise ConfigError("a sim device that only pretends has no layers to compute", "leave n_gpu_layers out")
    keywords.setdefault("n_threads", default_threads(bool(device)))
    keywords.setdefault("n_threads_batch", keywords["n_threads"] if device else limits.processors().logical)
    keywords.setdefault("verbose", False)
    if not keywords.get("vocab_only"):
        keywords = with_attention(file, config, device, keywords)
    needs, machine = needs_of(file, keywords, sequences), machine_of(device, config)
    chosen = choose_context(file, needs, config, machine, keywords, sequences)
    if chosen is not None:
        keywords["n_ctx"] = chosen.placement.context
    tried = tuple(attempts(context_of(file, keywords), needs, config, machine, keywords))
    _check_room(tried[0].placement, machine)
    return Opening(file, config, device, keywords, needs, model_identity(file), machine, tried, chosen, sequences)


def _check_room(placed: Placement, machine: MachineRates) -> None:
    """Refuse a context that takes more RAM than there is, even if all weights were read from the disk.

    Raises:
        DoesNotFit: there is too little RAM.
    """
    if machine.ram_free_bytes < placed.ram_private_bytes:
        hint = "a smaller context (n_ctx=, --ctx), or a smaller type of its cache (kv=, --kv q8_0)"
        raise DoesNotFit(placed.ram_private_bytes, machine.ram_free_bytes, hint)


def existing(model_path: str | Path) -> Path:
    """Return the path of a model file.

    Raises:
        ModelNotFound: there is no such file; the message has llama_cpp's words, which its server looks for.
    """
    path = Path(model_path)
    if not path.exists():
        raise ModelNotFound(f"Model path does not exist: {model_path}", "give the path of a GGUF file")
    return path


def context_of(file: GgufFile, keywords: Mapping[str, Any]) -> int:
    """Count the tokens of the context that is asked for.

    Raises:
        ContextFailed: the number is negative.
    """
    return _asked(keywords) or file.number("context_length") or DEFAULT_CONTEXT


def _asked(keywords: Mapping[str, Any]) -> int:
    """Count the tokens that the user asks for; 0 if the model or the planner decides."""
    asked = keywords.get("n_ctx", DEFAULT_CONTEXT)
    if asked == AUTO:
        return 0
    if isinstance(asked, str):
        raise ConfigError(f"n_ctx={asked!r} is no number of tokens", "a number, or 'auto'")
    if asked < 0:
        raise ContextFailed(f"n_ctx={asked} is negative", "0 takes the longest context of the model")
    return int(asked)


def with_attention(file: GgufFile, config: OffloadConfig, device: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Add llama_cpp's keywords for the types of the cache and for flash attention.

    Raises:
        ContextFailed: llama.cpp cannot make such a cache.
    """
    computes = partial(host.computes_flash, device)
    return dict(keywords) | attention.settings(file, config, keywords, _asked(keywords), computes)


def choose_context(
    file: GgufFile,
    needs: ModelNeeds,
    config: OffloadConfig,
    machine: MachineRates,
    keywords: Mapping[str, Any],
    sequences: int = 1,
) -> ContextChoice | None:
    """Choose the context, which sequences share, if the user leaves it to the planner; None if the user chose."""
    if keywords.get("n_ctx") != AUTO:
        return None

    def placed(tokens: int) -> Placement:
        return next(attempts(tokens, needs, config, machine, keywords)).placement

    return context.choose(needs, sequences * context_of(file, keywords), machine, placed)


def beyond_training(file: GgufFile, keywords: Mapping[str, Any], sequences: int = 1) -> str:
    """Say that a context is longer than those the model was trained for; empty if it is not, or if ropes are scaled."""
    tokens, trained = context_of(file, keywords) // sequences, file.number("context_length")
    if not trained or tokens <= trained or any(name.startswith(("rope_", "yarn_")) for name in keywords):
        return ""
    return (
        f"n_ctx={tokens} is more than the {trained} tokens that the model was trained for: answers may get worse "
        "beyond them."
    )


def needs_of(file: GgufFile, keywords: Mapping[str, Any], sequences: int = 1) -> ModelNeeds:
    """Read the needs of a model with these settings, for so many sequences."""
    tokens = context_of(file, keywords)
    batch = min(keywords.get("n_batch", DEFAULT_BATCH), keywords.get("n_ubatch", DEFAULT_BATCH), tokens)
    given = (keywords.get("type_k"), keywords.get("type_v"))
    types = tuple(kv_cache.USUAL_TYPE if kind is None else int(kind) for kind in given)
    needs = model_needs.of(
        file,
        keywords.get("swa_full") is not False,
        bool(keywords.get("flash_attn")),
        max(1, batch),
        (types[0], types[1]),
        max(sequences, sequences_of(keywords)),
    )
    if needs.shape is None or keywords.get("vocab_only"):
        return replace(needs, shape=None)
    return replace(needs, shape=replace(needs.shape, used=top_k(file, keywords)))


def sequences_of(keywords: Mapping[str, Any]) -> int:
    """Count the sequences that llama_cpp makes room for: many texts at once if it embeds, else one."""
    most = int(llama_cpp.llama_max_parallel_sequences())
    return min(keywords.get("n_batch", DEFAULT_BATCH), most) if keywords.get("embedding") else 1


def attempts(
    tokens: int, model: ModelNeeds, config: OffloadConfig, machine: MachineRates, keywords: Mapping[str, Any]
) -> Iterator[Attempt]:
    """Yield the planned placement, then smaller ones for a device that has less room than planned.

    The user's own ``n_gpu_layers`` and ``offload_kqv`` stay in each. Experts need no attempt of their own: they get
    the memory that is left.
    """
    layers, cache = keywords.get("n_gpu_layers"), keywords.get("offload_kqv")
    dense = None if layers is None else layers != 0
    asked = True if dense and cache is None else cache

    def attempt(dense: bool | None, cache: bool | None, note: str = "") -> Attempt:
        placed = place(machine, model, tokens, config.budget, bool(config.stream_tokens), dense, cache)
        settings = dict(keywords)
        if layers is None:
            settings["n_gpu_layers"] = -1 if placed.dense_on_device else 0
            settings.setdefault("op_offload", placed.dense_on_device)
        if cache is False or (layers is None and not placed.kv_on_device):
            settings.setdefault("offload_kqv", False)
        return Attempt(placed, settings, note, ram_for_experts(machine, model, placed, Budget.parse(config.ram)))

    first = attempt(dense, asked)
    yield first
    device = machine.device
    if first.placement.kv_on_device and cache is None:
        yield attempt(
            True if dense is None else dense, False, f"{device} had no room for the KV cache: it stays in RAM."
        )
    if first.placement.dense_on_device and dense is None:
        yield attempt(False, cache, f"{device} had no room for the dense weights: they stay on the CPU.")


def failure(
    opening: Opening, attempt: Attempt, error: ValueError, complaints: Sequence[str], loaded: bool
) -> Exception:
    """Name the reason that llama_cpp's constructor failed; only a model that did not load may be damaged.

    Args:
        opening: the model.
        attempt: the placement that failed.
        error: raised by llama_cpp.
        complaints: errors that llama.cpp logged.
        loaded: the weights were loaded; the context failed.
    """
    file = opening.file
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
            needed, free = _context_bytes(opening, attempt)
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


def _context_bytes(opening: Opening, attempt: Attempt) -> tuple[int, int]:
    """Count the bytes that the context needs, and the bytes that are free in the same memory."""
    placed, tokens = attempt.placement, attempt.placement.context
    if placed.kv_on_device:
        return placed.device_bytes, opening.machine.device_free_bytes
    return opening.needs.kv_bytes(tokens) + opening.needs.compute_bytes(tokens), opening.machine.ram_free_bytes


def announce(opening: Opening) -> list[str]:
    """Warn the user, before loading, of settings with a price; return the sentences."""
    checks = (
        _much_for_logits(opening),
        beyond_training(opening.file, opening.keywords, opening.sequences),
        _attention_elsewhere(opening),
    )
    texts = [text for text in checks if text]
    for text in texts:
        warnings.warn(text, UserWarning, stacklevel=3)
        host.tell(text)
    return texts


def _attention_elsewhere(opening: Opening) -> str:
    """Say that the device cannot compute attention over the cache that it holds; empty if it can."""
    device, keywords = opening.device, opening.keywords
    if not device or not keywords.get("flash_attn") or not opening.attempts[0].placement.kv_on_device:
        return ""
    keys, values = (keywords.get(name) or kv_cache.USUAL_TYPE for name in ("type_k", "type_v"))
    if all(host.computes_flash(device, heads, (keys, values)) for heads in kv_cache.heads(opening.file)):
        return ""
    names = " and ".join(sorted({kv_cache.cache_type(kind).name for kind in (keys, values)}))
    return f"{device} has no flash attention for this model with a cache of {names}: the CPU computes it, slowly."


def _much_for_logits(opening: Opening) -> str:
    """Say that logits take much of the RAM; empty if they do not."""
    if not opening.keywords.get("logits_all"):
        return ""
    size = 4 * opening.attempts[0].placement.context * opening.needs.vocabulary
    if size <= MUCH_OF_RAM * opening.machine.ram_total_bytes:
        return ""
    return f"logits_all=True keeps {size / 2**30:.1f} GiB of logits; logprobs of an answer do not need it."


def top_k(file: GgufFile, keywords: Mapping[str, Any]) -> int:
    """Count the experts that a token uses in a layer: as the caller overrides it, else as the file says."""
    override = (keywords.get("kv_overrides") or {}).get(f"{file.architecture}.expert_used_count")
    return override if isinstance(override, int) and override > 0 else file.number("expert_used_count") or DEFAULT_TOP_K


def default_threads(device: bool) -> int:
    """Count CPU threads for a model: physical cores, less one or two for copies and the look-ahead.

    If every core has a thread of the team, one slow thread holds up all: on 16 cores without hyper-threads, 14
    threads decoded Qwen3-30B 1.28 times as fast as 16 (docs/log.md, 2026-11-27).
    """
    allowed = limits.processors()
    spare = 0 if not device or allowed.logical <= 2 else 1 if allowed.logical < MANY_CORES else 2
    return max(1, min(allowed.physical, allowed.logical - spare))


def limit_notes(threads_given: bool) -> list[str]:
    """Say where a limit of this process decided, and not the machine."""
    reasons = [limits.memory().reason, "" if threads_given else limits.processors().reason]
    return [f"{reason[0].upper()}{reason[1:]}." for reason in reasons if reason]


def idle_notes(device: str, config: OffloadConfig) -> list[str]:
    """Name the graphics cards that stay unused though nobody asked for that.

    Args:
        device: used by the model, empty for none.
        config: the settings.
    """
    if config.device == "auto" and device:
        others = ", ".join(host.rivals(device))
        text = f"{others} stays unused: a model is on one device, here {device}. device= chooses another."
        return [text] if others else []
    if config.device == "none" or host.devices():
        return []
    return list(host.load_backends()) or [note for note in (advice(),) if note]


def lock_note(keywords: Mapping[str, Any], placed: Placement) -> str:
    """Say that ``use_mlock`` asks for more RAM than this process may lock; empty if it does not."""
    most = limits.lockable()
    if not keywords.get("use_mlock") or most is None or most >= placed.ram_mapped_bytes:
        return ""
    locked, wanted = most / 2**20, placed.ram_mapped_bytes / 2**20
    return f"use_mlock=True: this process may lock {locked:.0f} of {wanted:.0f} MiB in RAM (ulimit -l raises that)."


def pin_bytes(needs: ModelNeeds, placed: Placement, machine: MachineRates) -> int:
    """Count the bytes of experts that the driver of the device may pin in RAM.

    A pinned page never makes room for another, also if its expert is on the device. So a share of the free RAM stays
    unpinned, and all that the model needs in RAM must fit beside the pinned pages.
    """
    if not needs.expert_bytes or not machine.device:
        return 0
    most = min(PIN_SHARE * machine.ram_free_bytes, needs.expert_bytes)
    spare = machine.ram_free_bytes - placed.ram_private_bytes - placed.ram_mapped_bytes
    hot = placed.hot_bytes / needs.expert_bytes
    return max(0, int(min(most, spare / hot) if hot else most if spare >= 0 else 0))


def machine_of(device: str, config: OffloadConfig) -> MachineRates:
    """Measure the memory that is free now."""
    free, total = host.device_memory(device) if device else (0, 0)
    ram = limits.memory()
    shares = config.sim.integrated if device == "sim" else host.shares_ram(device)
    return MachineRates(device, free, total, ram.available, ram.total, device_shares_ram=shares)


def resolve_device(config: OffloadConfig, keywords: Mapping[str, Any]) -> str:
    """Return the ggml name of the device asked for, empty for none.

    llama.cpp gets to see one device, so its settings for several choose that one.

    Raises:
        ConfigError: ``main_gpu``, ``split_mode`` or ``tensor_split`` ask for more than one device can do.
    """
    if config.device == "none":
        return ""
    remote = host.connect(config.rpc) if config.rpc else []
    known = remote or host.devices()
    if config.device == "auto" and not known:
        return ""
    if known and not remote:
        known = [known[0], *host.rivals(known[0])]  # beside a card, llama.cpp leaves integrated devices out
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
        raise ConfigError(f"{what} chooses device {chosen}, and these are used: {', '.join(known)}", hint)
    return known[chosen]
