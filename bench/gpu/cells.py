"""List the measurements, their order and their cost. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgemoe.profiling import Test

SHARES = (25.0, 50.0, 12.5, 100.0, 75.0)  # percent of the expert bytes, the most informative first
MODELS = ("gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v2-lite", "mixtral-8x7b")
IN_VRAM, ON_CPU, LAST = "llama.cpp, all in VRAM", "llama.cpp, experts on CPU", "llama.cpp, last N layers"
CPU_ALONE = "llama.cpp"
OURS = "edgemoe"
STEADY, FRESH = "warm", "cold"
KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml's numbers
WITHOUT_GPU = ("none", "sim")  # devices that llama.cpp cannot use


@dataclass(frozen=True)
class Contender:
    """Describe one way to run a model.

    Attributes:
        placement: `OURS`, or a placement of llama.cpp.
        share: percent of the expert bytes on the device, for EdgeMoE and for the last N layers; else 0.
        prefetch: EdgeMoE's setting.
        policy: EdgeMoE's setting.
        fresh: True loads the model for each repetition, without a profile.
    """

    placement: str
    share: float = 0.0
    prefetch: str = "auto"
    policy: str = "adaptive"
    fresh: bool = False

    @property
    def ours(self) -> bool:
        """Tell whether the contender is EdgeMoE and not plain llama.cpp."""
        return self.placement == OURS

    @property
    def name(self) -> str:
        """Give a short and unique name."""
        parts = [self.placement, f"{self.share:g}%" if self.share else ""]
        if self.ours:
            parts += [f"prefetch {self.prefetch}" if self.prefetch != "auto" else ""]
            parts += [self.policy if self.policy != "adaptive" else ""]
        return " ".join(part for part in (*parts, FRESH if self.fresh else "") if part)


@dataclass(frozen=True)
class Cell:
    """Describe one test of one model at one budget, by some contenders in turns."""

    model: str
    share: float
    test: Test
    contenders: tuple[Contender, ...]
    kind: str = STEADY

    @property
    def key(self) -> str:
        """Give a unique key that is the same in every run of the same plan."""
        return f"{self.model} {self.share:g}% {self.test.name} {self.kind}"


@dataclass(frozen=True)
class Scope:
    """Describe the request of a run.

    Attributes:
        device: ggml name, ``none`` or ``sim``.
        models: names from `MODELS`.
        shares: percentages from `SHARES`.
        generate: tokens of a decode test.
        prompts: tokens of the prefill tests. The bars refer to the last test.
        first: tokens of a short prompt.
        depth: tokens before a decode test.
    """

    device: str
    models: tuple[str, ...] = MODELS
    shares: tuple[float, ...] = SHARES
    generate: int = 64
    prompts: tuple[int, ...] = (512, 4096)
    first: int = 64
    depth: int = 4096

    @property
    def context(self) -> int:
        """Count the positions that every contender must have room for."""
        return max(*self.prompts, self.first, self.depth + self.generate) + 32


def contenders(scope: Scope, share: float) -> tuple[Contender, ...]:
    """List EdgeMoE and the placements of llama.cpp that fit into the same memory."""
    ours = Contender(OURS, share)
    if scope.device in WITHOUT_GPU:
        return ours, Contender(CPU_ALONE)
    return ours, Contender(IN_VRAM) if share == 100 else Contender(LAST, share)


def _with_the_ends(scope: Scope, share: float) -> tuple[Contender, ...]:
    """At the first budget, add llama.cpp with none and with all of the experts on the device."""
    found = contenders(scope, share)
    if scope.device in WITHOUT_GPU or share != scope.shares[0]:
        return found
    return tuple(dict.fromkeys((*found, Contender(IN_VRAM), Contender(ON_CPU))))


def missing_rows(device: str) -> list[str]:
    """Name the rows that cannot exist on a device, with the reason."""
    if device not in WITHOUT_GPU:
        return []
    why = f"llama.cpp cannot use {device}, so these rows do not exist: {IN_VRAM}; {ON_CPU}; {LAST}."
    return [why + f" {CPU_ALONE} on the CPU stands in their place."]


TOPICS = ("decode", "first", "prompts", "depth", "switches", "fresh")


def topic(scope: Scope, cell: Cell) -> str:
    """Name the kind of a cell, one of `TOPICS`."""
    if cell.kind != STEADY:
        return "fresh" if cell.kind == FRESH else "switches"
    if cell.test.depth:
        return "depth"
    if cell.test.generate:
        return "decode"
    return "first" if cell.test.prompt == scope.first else "prompts"


def cells(scope: Scope) -> list[Cell]:
    """List all cells, the most informative first.

    The tests of the bars come first. They go budget by budget, so that a short run covers every model. Then come
    prefetch and adaptation, then the rest of the table.
    """
    found = [cell for share in scope.shares for model in scope.models for cell in _bars(scope, model, share)]
    found += [cell for share in scope.shares for model in scope.models for cell in _switches(scope, model, share)]
    found += [cell for model in scope.models for cell in _rest(scope, model)]
    return found


def _bars(scope: Scope, model: str, share: float) -> Iterator[Cell]:
    for test in (Test(generate=scope.generate), Test(prompt=scope.first), Test(prompt=scope.prompts[-1])):
        yield Cell(model, share, test, contenders(scope, share))


def _switches(scope: Scope, model: str, share: float) -> Iterator[Cell]:
    if scope.device == "none" or share == 100:
        return
    on = Contender(OURS, share)
    found = on, Contender(OURS, share, prefetch="off"), Contender(OURS, share, policy="static", prefetch="off")
    yield Cell(model, share, Test(generate=scope.generate), found, "on and off")


def _rest(scope: Scope, model: str) -> Iterator[Cell]:
    tests = [Test(prompt=prompt) for prompt in scope.prompts[:-1]]
    tests += [Test(generate=scope.generate, depth=scope.depth)]
    for share in scope.shares:
        for test in tests:
            yield Cell(model, share, test, _with_the_ends(scope, share))
    for share in scope.shares[:1]:
        fresh = tuple(Contender(c.placement, c.share, fresh=True) for c in contenders(scope, share)[:2])
        for test in (Test(generate=scope.generate), Test(prompt=scope.first)):
            yield Cell(model, share, test, fresh, FRESH)


@dataclass(frozen=True)
class Size:
    """Give the bytes of a model's file, of its routed experts, and of the experts that a token reads."""

    file: int
    experts: int
    token: int


RESERVE = 2e9  # bytes of a card for the KV cache, the compute buffers and the driver


def share_in(vram_bytes: float, size: Size) -> float:
    """Compute the percent of the expert bytes that a card of this size holds beside the dense part."""
    room = vram_bytes - (size.file - size.experts) - RESERVE
    return round(100 * min(1.0, max(0.0, room / size.experts)), 1)


# Rates that estimate the minutes of a plan. They are never part of a result.
CPU_RATE, DEVICE_RATE, LOAD_RATE = 30e9, 1e12, 1e9
PREFILL_RATE = 500.0  # tokens per second with experts on the CPU
START_S, LAYER_S = 4.0, 0.0004


def seconds(cell: Cell, contender: Contender, size: Size, slow: float = 1.0) -> float:
    """Estimate the seconds of a repetition, for planning; ``slow`` multiplies it for small machines."""
    share = contender.share / 100 if contender.placement in (OURS, LAST) else float(contender.placement == IN_VRAM)
    token = size.token * (share / DEVICE_RATE + (1 - share) / CPU_RATE) + 60 * LAYER_S
    work = cell.test.generate * token + (cell.test.prompt + cell.test.depth / 4) / PREFILL_RATE
    return slow * (work + (load_seconds(size) if contender.fresh else 0.0))


def load_seconds(size: Size) -> float:
    """Estimate the seconds of a load, for planning."""
    return START_S + size.file / LOAD_RATE


def load_order(todo: Sequence[Cell]) -> list[Contender]:
    """List the contenders of a plan, in the order of their first test."""
    return list(dict.fromkeys(c for cell in todo for c in cell.contenders))
