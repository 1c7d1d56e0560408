"""Settings: frozen records that are checked when they are made. Only this module reads environment variables."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from .errors import ConfigError

POLICIES = ("adaptive", "static", "lru", "lfu", "off")
PREFETCH = ("auto", "off", "history", "lookahead")
# Types of the KV cache. The quantised ones, all but the first, need flash attention for values.
CACHE_TYPES = ("f16", "q8_0", "q4_0")
FLASH = ("auto", "on", "off")
SPECULATIVE = ("auto", "off", "mtp", "ngram")

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$")
_SHARE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*$")


@dataclass(frozen=True)
class Budget:
    """Hold a budget of device memory. If both fields are None, the budget is automatic; both are never set.

    Attributes:
        bytes: budget in bytes, or None.
        share: budget as a share of all expert bytes in 0..1, or None.
    """

    bytes: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str | int, name: str = "vram") -> Budget:
        """Read ``auto``, a number of bytes, ``"6GiB"`` or ``"50%"``; ``name`` is the setting, for messages.

        Raises:
            ConfigError: the text is none of these, or the share is above 100 %.
        """
        if isinstance(text, int) and not isinstance(text, bool):
            if text < 0:
                raise ConfigError(f"{name}={text} is negative", "give bytes, '6GiB', '50%' or 'auto'")
            return cls(bytes=text)
        if isinstance(text, str):
            if text.strip().lower() == "auto":
                return cls()
            if match := _SHARE.match(text):
                share = float(match[1]) / 100.0
                if share <= 1.0:
                    return cls(share=share)
            elif (match := _SIZE.match(text)) and match[2].lower() in _UNITS:
                return cls(bytes=int(float(match[1]) * _UNITS[match[2].lower()]))
        raise ConfigError(f"{name}={text!r} is not a size", "give bytes, '6GiB', '50%' (of the experts) or 'auto'")

    @property
    def automatic(self) -> bool:
        """Tell whether the budget follows the free memory of the device."""
        return self == Budget()

    def of(self, total: int) -> int:
        """Give the bytes asked for, of ``total`` bytes of experts; an automatic budget asks for all."""
        if self.share is not None:
            return int(total * self.share)
        return total if self.bytes is None else min(self.bytes, total)


@dataclass(frozen=True)
class SimConfig:
    """Set the behaviour of the ``sim`` device: a GPU in software, for machines without one and for tests.

    Attributes:
        bandwidth: speed of the link in bytes per second. 0 is unlimited.
        latency_us: delay of every transfer in microseconds.
        capacity: memory of the device in bytes.
        fail_alloc: number of the allocation that fails, counted from 1. 0: none fails.
        fail_copy: n, if every n-th upload fails. 0: none fails.
        fail_compute: n, if every n-th computation fails. 0: none fails.
        fail_register: number of the piece of host memory that cannot be pinned, counted from 1. 0: none fails.
        jitter_us: longest random delay before each operation, in microseconds.
        seed: seed of the random delays.
        compute_rate: bytes of weights per second that the device pretends to read. 0: the device computes. Above 0, it
            only waits, and its results are zeros: use this to time forced routing. Such a device holds experts only.
        fetch_all: 0: measured rates decide which misses of a decode step the device fetches. 1: it fetches every miss.
            n above 1: it fetches all but every n-th miss of a layer.
        early: start resident experts before the CPU knows the misses, as a GPU does. Results may differ in the last
            digits: ``sim`` computes with ggml's CPU kernels, which round differently for experts with more rows.
        integrated: count the memory of the device as RAM, as with integrated graphics.
        streams: threads that copy and compute for the device. ``caller``: the calling thread. ``ordered``: threads of
            the device, in the order of the calls, as CUDA does. ``transfer``: as ``ordered``, but copies run while the
            device computes, as Vulkan does on some cards.
    """

    bandwidth: int = 0
    latency_us: int = 0
    capacity: int = 1 << 40
    fail_alloc: int = 0
    fail_copy: int = 0
    fail_compute: int = 0
    fail_register: int = 0
    jitter_us: int = 0
    seed: int = 1
    compute_rate: int = 0
    fetch_all: int = 0
    early: bool = False
    integrated: bool = False
    streams: Literal["caller", "ordered", "transfer"] = "caller"


@dataclass(frozen=True)
class OffloadConfig:
    """Choose the places of experts and the rules for moving them. Every field has a working default.

    Attributes:
        device: ``auto`` (the first GPU that llama.cpp finds, a card before integrated graphics, else none), ``none``,
            ``sim``, or the ggml name of a device, such as ``CUDA0``, ``Vulkan0`` or ``RPC0``.
        vram: device memory for resident experts: ``auto``, bytes, ``"6GiB"``, or ``"50%"`` of the expert bytes.
        policy: rule that chooses the resident experts. ``adaptive``: learns the experts that the next tokens will use.
            ``lru``: the experts used last. ``lfu``: the experts used most. ``static``: chosen once, then never changed.
            ``off``: the policy moves no expert.
        prefetch: prediction by which experts are uploaded before a layer needs them. ``history``: from past routing.
            ``lookahead``: from past routing and from the next layer's router, run ahead on the current layer's input.
            ``auto``: ``lookahead`` if a core is free for it, else ``history``. ``off``: no prefetch. Prefetch pauses
            while tokens are faster without it.
        profile: routing profile of the model, kept between runs: ``auto``, ``off``, or the path of a file.
        uploads_per_step: largest number of experts that the policy uploads per layer and step.
        prefill_tokens: smallest batch that counts as a prefill. A prefill does not change the resident experts.
        stream_tokens: fewest tokens of a cold expert for which a prefill copies the expert to the device, if the
            prefill does not copy whole layers. After the first prefill, measured rates set the limit, between a
            quarter and 16 times this number. 0 copies no cold expert, neither in a prefill nor for a miss of a decode
            step.
        cache: storage of computed prompts for reuse. ``auto``: in RAM, within the placement's budget. A path: also in
            this folder, for later processes. ``off``: only the current context.
        pin: let the device's driver pin the memory of cold experts. The device then reads these experts directly, with
            a third of the memory traffic. Nothing is pinned if too little RAM would be left.
        synchronous: wait for every upload before the next computation. This is slow, but two runs on the same tokens
            then move the same experts. With ``prefetch="history"``, ``edgemoe replay`` computes the same moves.
        sim: behaviour of the ``sim`` device.
        rpc: HOST:PORT of ggml's RPC server on another machine, empty for none. With a server, ``device="auto"`` is the
            server's first device.
        kv: type of the KV cache: ``f16``, ``q8_0`` (half the memory), ``q4_0`` (a quarter), or a pair: the type of
            keys, then that of values. The keywords ``type_k`` and ``type_v`` of llama_cpp come before it.
        flash: flash attention, whose buffers do not grow with the context. ``on``, ``off``, or ``auto``: for contexts
            of more than 8192 tokens, for ``n_ctx="auto"`` and for quantised values, if the device computes it. The
            keyword ``flash_attn`` of llama_cpp comes before it.
        ram: RAM for experts: ``auto``, bytes, ``"6GiB"``, or ``"50%"`` of the expert bytes. If the experts take more,
            the engine keeps some of them in RAM and reads the others from the disk when they are needed.
        speculative: source of drafts: tokens that are guessed and then checked, several in a step. ``mtp``: the model's
            own head for drafts, if the file has one. ``ngram``: the words of the conversation. A path: a small GGUF
            with the same vocabulary. ``auto``: ``ngram``, unless an answer is greedy or has a seed. ``off``: no drafts.
            Drafts pause while they do not pay. The law of the answers stays the same, but a batch rounds differently
            from single tokens, so near ties may fall differently.

    Raises:
        ConfigError: a value cannot be honoured.
    """

    device: str = "auto"
    vram: str | int = "auto"
    policy: str = "adaptive"
    prefetch: str = "auto"
    profile: str = "auto"
    uploads_per_step: int = 2
    prefill_tokens: int = 16
    stream_tokens: int = 32
    cache: str | Path = "auto"
    pin: bool = True
    synchronous: bool = False
    sim: SimConfig = SimConfig()
    rpc: str = ""
    kv: str | tuple[str, str] = "f16"
    flash: str = "auto"
    ram: str | int = "auto"
    speculative: str | Path = "auto"

    def __post_init__(self) -> None:
        """Check every field, so that the error points at the line that set the wrong value."""
        Budget.parse(self.vram)
        Budget.parse(self.ram, "ram")
        _one_of("policy", self.policy, POLICIES)
        _one_of("prefetch", self.prefetch, PREFETCH)
        for name in ("uploads_per_step", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is below 1")
        if self.stream_tokens < 0:
            raise ConfigError(f"stream_tokens={self.stream_tokens} is negative", "0 never streams")
        if not self.device:
            raise ConfigError("device is empty", "give 'auto', 'none', 'sim' or a ggml device name")
        if not str(self.cache):
            raise ConfigError("cache is empty", "give 'auto', 'off' or a folder")
        _one_of("flash", self.flash, FLASH)
        if self.kv_types[1] != CACHE_TYPES[0] and self.flash == "off":
            raise ConfigError(*needs_flash(self.kv_types[1]))
        if self.draft_path is None and self.speculative not in SPECULATIVE:
            hint = f"one of: {', '.join(SPECULATIVE)}, or the path of a GGUF file"
            raise ConfigError(f"speculative={self.speculative!r} is unknown", hint)

    @property
    def draft_path(self) -> Path | None:
        """Give the file of the draft model, None for another source."""
        path = Path(self.speculative)
        named = isinstance(self.speculative, Path) or path.suffix == ".gguf" or len(path.parts) > 1
        return path.expanduser() if named else None

    @property
    def budget(self) -> Budget:
        """Parse ``vram``."""
        return Budget.parse(self.vram)

    @property
    def kv_types(self) -> tuple[str, str]:
        """Give the types of keys and values; one type stands for both."""
        given = tuple(part.strip() for part in self.kv.split(",")) if isinstance(self.kv, str) else tuple(self.kv)
        if len(given) not in (1, 2):
            raise ConfigError(
                f"kv={self.kv!r} has {len(given)} types", "give one type, or one of keys and one of values"
            )
        for kind in given:
            _one_of("kv", kind, CACHE_TYPES)
        return given[0], given[-1]


def context_length(text: str) -> int | Literal["auto"]:
    """Read the length of a context: ``auto``, a number of tokens, or ``32k``.

    Raises:
        ConfigError: the text is none of these, or the number is 0.
    """
    text = text.strip().lower()
    if text == "auto":
        return "auto"
    number, times = (text[:-1], 1024) if text.endswith("k") else (text, 1)
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"{text!r} is no length of a context", "a number of tokens, such as 16384 or 16k, or auto")
    return int(number) * times


def needs_flash(kind: str) -> tuple[str, str]:
    """Give the error and the hint for quantised values without flash attention."""
    return (
        f"a {kind} cache of values needs flash attention, which is off",
        f"flash_attn=True (--flash on), or quantise the keys only: kv='{kind},f16' (--kv)",
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is unknown", f"one of: {', '.join(allowed)}")


def kernels() -> str:
    """CPU kernels that the user asks for with ``EDGEMOE_KERNELS``; ``auto`` takes the best of this processor."""
    return os.environ.get("EDGEMOE_KERNELS", "").strip().lower() or "auto"


def api_key() -> str:
    """Key of the server, from ``EDGEMOE_API_KEY``; empty for none."""
    return os.environ.get("EDGEMOE_API_KEY", "").strip()


def terminal_is_dumb() -> bool:
    """Tell whether the terminal reports that it can only write lines (``TERM=dumb``)."""
    return os.environ.get("TERM") == "dumb"


def editor() -> str:
    """Give the command of the user's editor: ``VISUAL``, else ``EDITOR``, else ``vi``."""
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"


def child_environment() -> dict[str, str]:
    """Make the environment of a child process that imports the same modules as this one."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def set_default(name: str, value: str) -> None:
    """Set an environment variable that a library reads, unless the user has set it."""
    os.environ.setdefault(name, value)


_NOWHERE = Path(os.devnull, "no-home")  # nothing can be written there


def home(kind: str) -> Path:
    """Give the folder for ``kind`` (``config``, ``data`` or ``cache``); ``EDGEMOE_HOME`` overrides all three.

    For a user without a home folder, the path is one that cannot be written. Writers report that failure themselves.
    """
    if root := os.environ.get("EDGEMOE_HOME", "").strip():
        return _known(Path(os.path.expanduser(root))) / kind
    dirs = platformdirs.PlatformDirs("edgemoe", appauthor=False)
    try:
        path: Path = getattr(dirs, f"user_{kind}_path")
    except RuntimeError:  # newer releases of platformdirs
        return _NOWHERE
    return _known(path)


def _known(path: Path) -> Path:
    """Give the path back, or ``_NOWHERE`` if ``~`` could not be expanded. A folder named ``~`` is never created."""
    return _NOWHERE if path.parts and path.parts[0].startswith("~") else path
