"""Judge each bar from the measurements: PASS, MISS, or not measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from edgemoe.profiling import Test

from . import cells
from .cells import Cell, Contender
from .journal import Entry, Journal

PASS, MISS, OPEN = "PASS", "MISS", "not measured"
MIB = 2**20
LEAST = 5  # fewest repetitions that give a median
ALL_HOT = 0.97
DECODE = {12.5: 1.3, 25.0: 1.5, 50.0: 1.5}
PREFILL = 1.0
EXPLAINED = 0.97
VRAM_OFF = 0.02
GROWTH = 0.02  # allowed growth of memory in the second half of a soak, as a share of the first half's largest


@dataclass(frozen=True)
class Line:
    """Hold a bar and its verdict."""

    result: str
    bar: str
    figure: str

    def __str__(self) -> str:
        """Give the text that is printed."""
        return f"{self.result:12} {self.bar}: {self.figure}"


@dataclass(frozen=True)
class Ratio:
    """Compare the speed of two contenders, repetition by repetition."""

    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """Give the median."""
        return median(self.values)

    def __str__(self) -> str:
        """Write the median and the range."""
        return f"{self.middle:.3f} ({min(self.values):.3f} .. {max(self.values):.3f}, n = {len(self.values)})"


def lines(journal: Journal, scope: cells.Scope) -> list[Line]:
    """Judge every bar of every model, in the order of the plan."""
    found = []
    for model in scope.models:
        refused = [e for e in journal.of("parity", model=model) if not e["agreed"]]
        if refused:
            words = f"REFUSED, nothing is measured: {refused[0]['what']}: {refused[0]['words']}"
            found.append(Line(MISS, f"{model}, same tokens as llama.cpp", words))
            continue
        found += [*_parity(journal, model), *_speed(journal, scope, model), *_switches(journal, scope, model)]
        found += [*_explained(journal, scope, model), *_memory(journal, scope, model), *_soak(journal, model)]
    return found


def ratio(journal: Journal, cell: Cell, ours: Contender, other: Contender) -> Ratio | None:
    """Compute the speed ratio of ``ours`` to ``other`` in a cell; None below `LEAST` repetitions."""
    a, b = (
        {e["repetition"]: e["ns"][0] for e in journal.of("sample", cell=cell.key, contender=c.name)}
        for c in (ours, other)
    )
    values = tuple(b[repetition] / a[repetition] for repetition in sorted(a.keys() & b.keys()))
    return Ratio(values) if len(values) >= LEAST else None


def _parity(journal: Journal, model: str) -> Iterator[Line]:
    checks = journal.of("parity", model=model)
    if not checks:
        yield Line(OPEN, f"{model}, same tokens as llama.cpp", "-")
    else:
        worst = max(checks, key=lambda e: float(e["apart"]))
        yield Line(PASS, f"{model}, same tokens as llama.cpp", f"{len(checks)} checks; worst: {worst['words']}")


def _speed(journal: Journal, scope: cells.Scope, model: str) -> Iterator[Line]:
    decode, first = Test(generate=scope.generate), Test(prompt=scope.first)
    long, every = Test(prompt=scope.prompts[-1]), [Test(prompt=p) for p in scope.prompts]
    vram = Contender(cells.IN_VRAM)
    for test in (decode, *every):
        yield _judged(journal, scope, model, 100.0, test, vram, ALL_HOT, "all in VRAM")
    for share, bar in DECODE.items():
        yield _judged(journal, scope, model, share, decode, Contender(cells.LAST, share), bar, "last N layers")
    for test in (long, first):
        for share in sorted(s for s in cells.SHARES if s < 100):
            yield _judged(journal, scope, model, share, test, Contender(cells.LAST, share), PREFILL, "last N layers")


def _judged(
    journal: Journal, scope: cells.Scope, model: str, share: float, test: Test, other: Contender, bar: float, words: str
) -> Line:
    text = f"{model} {test.name} at {share:g} % against {words} >= {bar:g}"
    if scope.device in cells.WITHOUT_GPU:
        return Line(OPEN, text, f"llama.cpp cannot use {scope.device}")
    cell = Cell(model, share, test, ())
    return judged(ratio(journal, cell, Contender(cells.OURS, share), other), bar, text)


def judged(found: Ratio | None, bar: float, text: str) -> Line:
    """Judge a ratio: PASS if the median reaches the bar."""
    if found is None:
        return Line(OPEN, text, "-")
    return Line(PASS if found.middle >= bar else MISS, text, str(found))


def _switches(journal: Journal, scope: cells.Scope, model: str) -> Iterator[Line]:
    test = Test(generate=scope.generate)
    for share in sorted(s for s in cells.SHARES if s < 100):
        cell, on = Cell(model, share, test, (), "on and off"), Contender(cells.OURS, share)
        for what, off in (
            ("prefetch", Contender(cells.OURS, share, prefetch="off")),
            ("adaptation", Contender(cells.OURS, share, prefetch="off", policy="static")),
        ):
            text = f"{model} {test.name} at {share:g} %, {what} on against off >= 1"
            yield judged(ratio(journal, cell, on, off), 1.0, text)


def _explained(journal: Journal, scope: cells.Scope, model: str) -> Iterator[Line]:
    for share in sorted(scope.shares):
        cell = Cell(model, share, Test(generate=scope.generate), ())
        samples = journal.of("sample", cell=cell.key, contender=Contender(cells.OURS, share).name)
        text = f"{model} at {share:g} %, time per token explained >= {EXPLAINED:.0%}"
        parts = parts_ms(samples)
        if len(samples) < LEAST:
            yield Line(OPEN, text, "-")
            continue
        share_of = sum(parts.values()) / token_ms(samples)
        result = PASS if EXPLAINED <= share_of <= 2 - EXPLAINED else MISS
        yield Line(result, text, f"{share_of:.1%} of {token_ms(samples):.2f} ms")


def _memory(journal: Journal, scope: cells.Scope, model: str) -> Iterator[Line]:
    for share in sorted(scope.shares):
        text = f"{model} at {share:g} %, VRAM of experts within {VRAM_OFF:.0%} of the budget"
        opened = journal.of("opened", model=model, contender=Contender(cells.OURS, share).name)
        sizes = journal.of("size", model=model)
        if not opened or not sizes or scope.device == "none":
            yield Line(OPEN, text, "-")
            continue
        asked = sizes[-1]["experts"] * share / 100
        used = [float(opened[-1]["slot_bytes"])]
        figure = f"{used[0] / MIB:.0f} of {asked / MIB:.0f} MiB in slots"
        without = journal.of("opened", model=model, contender=Contender(cells.ON_CPU).name)
        if without and without[-1].get("device_bytes", 0) > 0:  # some devices do not report free memory
            used.append(float(opened[-1]["device_bytes"] - without[-1]["device_bytes"] - opened[-1]["stage_bytes"]))
            figure += f", {used[1] / MIB:.0f} as the device counts, without staging"
        off = max(abs(bytes_ / asked - 1) for bytes_ in used)
        yield Line(PASS if off <= VRAM_OFF else MISS, text, f"{figure} ({off:.1%} off)")


def _soak(journal: Journal, model: str) -> Iterator[Line]:
    for what, least in (("cycles", 200.0), ("load", 3600.0)):
        text = f"{model}, {'200 load-answer-free cycles' if what == 'cycles' else '1 hour of mixed load'}"
        done = journal.of("soak", model=model, what=what)
        reached = len(done) if what == "cycles" else sum(e["seconds"] for e in done)
        if reached < least:
            yield Line(OPEN, text, f"{reached:.0f} of {least:.0f} {'cycles' if what == 'cycles' else 's'}")
            continue
        yield soaked(done, text)


def soaked(done: Sequence[Entry], text: str) -> Line:
    """Judge the soak: flat memory in the longest of the processes, and no wrong token in any process."""
    wrong = sum(not e["same"] for e in done)
    runs = [[e for e in done if e["run"] == run] for run in dict.fromkeys(e["run"] for e in done)]
    longest = max(runs, key=len)
    half = len(longest) // 2
    grown = []
    for what in ("rss", "device"):
        early, late = (
            max((float(e[what]) for e in part), default=0.0) for part in (longest[: half or 1], longest[half:])
        )
        grown.append(late / early - 1 if early else 0.0)
    figure = f"{wrong} wrong answers, RSS {grown[0]:+.1%}, device memory {grown[1]:+.1%} in the second half"
    return Line(PASS if not wrong and max(grown) <= GROWTH else MISS, text, figure)


# ---- where a token's time goes ----


def parts_ms(samples: Sequence[Entry]) -> dict[str, float]:
    """Compute the mean milliseconds of a token by part. Each part is measured separately, in the core or around it."""
    total: dict[str, float] = {}
    tokens = 0
    for sample in samples:
        stats = sample["stats"]
        tokens += len(sample["between_ns"])
        inside = stats["cpu_ns"] + stats["join_ns"] + stats["schedule_ns"]
        found = {
            "dense": sample["computing_ns"] - stats["moe_ns"] - sample["scheduler_ns"],
            "cold": stats["cpu_ns"],
            "join": stats["join_ns"],
            "launch": stats["moe_ns"] - inside,
            "scheduler": sample["scheduler_ns"] + stats["schedule_ns"],
            "sync": sample["sampling_ns"],
        }
        for name, ns in found.items():
            total[name] = total.get(name, 0.0) + ns
    return {name: ns / max(tokens, 1) / 1e6 for name, ns in total.items()}


def token_ms(samples: Sequence[Entry]) -> float:
    """Compute the mean milliseconds of a token by wall clock."""
    times = [ns for sample in samples for ns in sample["between_ns"]]
    return float(sum(times)) / max(len(times), 1) / 1e6
