"""Settings: one frozen record, checked when it is made, and the only reader of the environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from .errors import ConfigError

POLICIES = ("adaptive", "static", "lru", "lfu", "off")
PREFETCH = ("auto", "off", "history", "lookahead")

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$")
_SHARE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*$")


@dataclass(frozen=True)
class Budget:
    """A device memory budget: exactly one of ``bytes`` and ``share`` is set, neither for automatic.

    Attributes:
        bytes: budget in bytes, or None.
        share: budget as a share of all expert bytes in 0..1, or None.
    """

    bytes: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str | int) -> Budget:
        """Read ``auto``, a number of bytes, ``"6GiB"`` or ``"50%"``.

        Raises:
            ConfigError: the text is none of these, or the share is above 100 %.
        """
        if isinstance(text, int) and not isinstance(text, bool):
            if text < 0:
                raise ConfigError(f"vram={text} is negative", "give bytes, '6GiB', '50%' or 'auto'")
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
        raise ConfigError(f"vram={text!r} is not a size", "give bytes, '6GiB', '50%' (of the experts) or 'auto'")


@dataclass(frozen=True)
class SimConfig:
    """Behaviour of the ``sim`` device: a GPU in software, for machines without one and for tests.

    Attributes:
        bandwidth: link speed in bytes per second, 0 for unlimited.
        latency_us: delay of every transfer in microseconds.
        capacity: device memory in bytes.
        fail_alloc: the n-th allocation fails (1 is the first), 0 for never.
        fail_copy: every n-th upload fails, 0 for never.
        fail_compute: every n-th computation fails, 0 for never.
        fail_register: the n-th piece of host memory cannot be registered, 0 for never.
        jitter_us: a random delay of up to this many microseconds before each operation.
        seed: seed of that delay.
        compute_rate: above 0 the device only pretends: it takes as long as it would take to read the weights at so many
            bytes per second, and its results are zeros. For timing with forced routing; only experts are on it.
        fetch_all: every miss of a decode step is fetched and computed by the device, whether or not that pays; above
            1, all but every so many of a layer.
        early: hot experts are started before the CPU knows which are cold, as on a GPU. Results may differ in the last
            digits: ggml's CPU kernels, which the device uses, round differently where an expert has more rows.
        streams: where llama.cpp's graph is computed: in the calling thread (``caller``), in threads that copy and
            compute in the order of the calls as CUDA does (``ordered``), or in threads that send beside their
            computations (``transfer``), as Vulkan does on some cards.
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
    streams: Literal["caller", "ordered", "transfer"] = "caller"


@dataclass(frozen=True)
class OffloadConfig:
    """Where experts live and who decides. Every field has a working default.

    Attributes:
        device: ``auto`` (the first GPU that llama.cpp sees, else none), ``none``, ``sim``, or a ggml device
            name such as ``CUDA0``, ``Vulkan0``, ``RPC0``.
        vram: budget for resident experts: ``auto``, bytes, ``"6GiB"``, or ``"50%"`` of the expert bytes.
        policy: ``adaptive``, ``static``, ``lru``, ``lfu`` or ``off`` (nothing ever moves).
        prefetch: what tells which experts to fetch ahead of need. ``history``: routing so far. ``lookahead``: that and
            the next layer's router, applied to what this layer reads. ``auto``: ``lookahead`` where a core is left for
            it, else ``history``. All stop by themselves where they do not pay. ``off``: never.
        profile: ``auto`` (read and keep a routing profile of this model), ``off``, or a path.
        uploads_per_step: most experts moved per layer and policy step.
        prefill_tokens: a batch of at least this many tokens is a prefill: it leaves the hot set alone.
        stream_tokens: a prefill brings cold experts to the device, and in a decode step the device fetches some of them
            while the CPU computes the others, where measured rates say that both are done sooner. Where it is not all
            of a layer that a prefill brings: each expert with at least this many tokens, until there are rates. 0 does
            neither.
        cache: what is kept of prompts that were read. ``auto``: states in RAM, within what the plan sets aside. A path:
            also in this folder, from which a later process goes on. ``off``: only what the context itself holds.
        pin: let the device's driver pin the cold experts' memory, so that the device fetches them by itself: a third of
            the memory traffic. Never where too little RAM would be left.
        synchronous: every upload is awaited before anything else is computed. Slow; the same run moves the same experts
            every time, as in a replay.
        sim: behaviour of the ``sim`` device.

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

    def __post_init__(self) -> None:
        """Check every field, so that a wrong one is named where it was written."""
        Budget.parse(self.vram)
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

    @property
    def budget(self) -> Budget:
        """The parsed ``vram``."""
        return Budget.parse(self.vram)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r} is unknown", f"one of: {', '.join(allowed)}")


def terminal_is_dumb() -> bool:
    """Whether the terminal says that it can do no more than write lines."""
    return os.environ.get("TERM") == "dumb"


_NOWHERE = Path(os.devnull, "no-home")  # nothing can be written there


def home(kind: str) -> Path:
    """Folder for ``kind`` (``config``, ``data`` or ``cache``); ``EDGEMOE_HOME`` overrides all of them.

    Where the user has no home, it is a place where nothing can be kept: whoever writes there says so.
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
    """The same, unless nobody knows where ``~`` is: a folder of that name is nobody's wish."""
    return _NOWHERE if path.parts and path.parts[0].startswith("~") else path
