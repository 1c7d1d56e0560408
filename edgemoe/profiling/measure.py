"""Runs the same prompts through llama.cpp as it is and through ours, in turns, and keeps every sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import llama_cpp
import numpy as np

from ..config import OffloadConfig
from ..engine import Llama
from ..gguf import GgufFile, check
from ..types import ExpertStats
from . import memory
from .prompts import PROMPTS

Progress = Callable[[float, str], None]
PLAIN, OURS = "llama.cpp", "edgemoe"
OPENING = 32  # tokens of a prompt that a generation begins with
WARM_UP = 8


@dataclass(frozen=True)
class Test:
    """One thing to measure: a prefill of ``prompt`` tokens, or ``generate`` tokens, after ``depth`` others."""

    __test__ = False  # of pytest's business

    prompt: int = 0
    generate: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name of it."""
        kind = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        return kind + (f" @ d{self.depth}" if self.depth else "")


@dataclass
class Samples:
    """What was measured of one placement and test.

    Attributes:
        placement: `PLAIN` or `OURS`.
        test: what was run.
        ns: wall time of each repetition.
        first_ns: of each repetition, the time to the first token of a generation, opening included.
        between_ns: times between tokens, all repetitions together.
        scheduler_ns: time in Python between tokens that the scheduler took, all repetitions together.
        stats: differences of the counters over all repetitions; None for llama.cpp.
    """

    placement: str
    test: Test
    ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    between_ns: list[int] = field(default_factory=list)
    scheduler_ns: int = 0
    stats: dict[str, int] | None = None

    @property
    def per_second(self) -> list[float]:
        """Tokens per second of each repetition."""
        tokens = self.test.prompt or self.test.generate
        return [tokens / ns * 1e9 for ns in self.ns]


@dataclass
class Result:
    """All samples of a run, and where the memory was.

    Attributes:
        file: the model's header.
        threads: of the CPU.
        device: where hot experts were.
        samples: by placement and test.
        load_ms: of each placement.
        buffers: llama.cpp's buffers of our model, bytes by (kind, where).
        slot_bytes: device memory of resident experts.
        slots: resident experts there is room for, all layers.
        ram: of the process with both models open, see ``memory.process``.
        notes: sentences of the engine.
        complete: False when the run was interrupted.
    """

    file: GgufFile
    threads: int
    device: str
    samples: list[Samples]
    load_ms: dict[str, float]
    buffers: dict[tuple[str, str], int]
    slot_bytes: int
    slots: int
    ram: dict[str, int]
    notes: list[str]
    complete: bool = True


def profile(
    path: Path,
    tests: Sequence[Test],
    repetitions: int,
    offload: OffloadConfig,
    threads: int,
    progress: Progress = lambda share, step: None,
) -> Result:
    """Measure ``tests`` on both placements in turns; an interruption ends the run early but keeps what there is.

    Args:
        path: the model.
        tests: what to run.
        repetitions: of each test; every one begins with another prompt.
        offload: where our experts live.
        threads: of the CPU, for both.
        progress: told the share done and what is being done.
    """
    context = max(max(t.prompt, t.generate + OPENING) + t.depth for t in tests) + 16
    keywords: dict[str, Any] = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    file, load_ms = check(path), {}
    with ExitStack() as open_models:
        progress(0.0, "loading")
        started = time.perf_counter()
        plain = llama_cpp.Llama(str(path), **keywords)
        open_models.callback(plain.close)
        load_ms[PLAIN] = (time.perf_counter() - started) * 1e3
        started = time.perf_counter()
        with memory.buffers() as found:
            ours = Llama(path, offload=offload, **keywords)
        open_models.callback(ours.close)
        load_ms[OURS] = (time.perf_counter() - started) * 1e3
        models: dict[str, Any] = {PLAIN: plain, OURS: ours}
        samples = [Samples(name, test) for test in tests for name in models]
        tokens = _tokens(ours, context)
        complete = _run(models, samples, tokens, repetitions, progress)
        stats = ours.experts.stats()
        return Result(
            file, threads, ours.experts.device, samples, load_ms, dict(found), stats.slot_bytes, stats.slots,
            memory.process(), list(ours.experts.notes), complete,
        )  # fmt: skip


def _run(models: dict[str, Any], samples: list[Samples], tokens: Any, repetitions: int, progress: Progress) -> bool:
    try:
        for name, model in models.items():
            progress(0.0, f"warming up {name}")
            _generate(model, next(tokens(0)), WARM_UP, Samples(name, Test(generate=WARM_UP)))
        models[OURS].experts.wait()
        for repetition in range(repetitions):
            for done, sample in enumerate(samples):
                share = (repetition + done / len(samples)) / repetitions
                progress(share, f"{sample.test.name} on {sample.placement}, {repetition + 1} of {repetitions}")
                _sample(models[sample.placement], sample, tokens(repetition))
    except KeyboardInterrupt:
        return False
    return True


def _tokens(llm: Any, most: int) -> Callable[[int], Iterator[list[int]]]:
    """Gives, for each repetition, a source of token lists of ``most`` tokens that begin with another prompt."""
    texts = [llm.tokenize(text.encode(), add_bos=False) for text in PROMPTS]

    def source(repetition: int) -> Iterator[list[int]]:
        at = repetition * 5
        while True:
            joined: list[int] = []
            for i in range(at, at + 10_000):
                joined += texts[i % len(texts)]
                if len(joined) >= most:
                    break
            yield joined[:most]
            at += 1

    return source


def _sample(llm: Any, sample: Samples, source: Iterator[list[int]]) -> None:
    test, before = sample.test, _counters(llm)
    text = next(source)
    llm.reset()
    if test.depth:
        llm.eval(text[: test.depth])
        before = _counters(llm)
    if test.prompt:
        started = time.perf_counter_ns()
        llm.eval(next(source)[: test.prompt])
        _ = llm._ctx.get_logits()
        sample.ns.append(time.perf_counter_ns() - started)
    else:
        before = _generate(llm, next(source), test.generate, sample)
    after = _counters(llm)
    if after is not None and before is not None:
        total = sample.stats or dict.fromkeys(after, 0)
        sample.stats = {name: total[name] + after[name] - before[name] for name in after}


def _generate(llm: Any, text: list[int], count: int, sample: Samples) -> dict[str, int] | None:
    """Greedy decoding, timed token by token; gives the counters after the opening, which only the first token pays."""
    opened = time.perf_counter_ns()
    llm.eval(text[:OPENING])
    token = _likeliest(llm)
    sample.first_ns.append(time.perf_counter_ns() - opened)
    scheduled, before = _scheduler_ns(llm), _counters(llm)
    last = first = time.perf_counter_ns()
    for _ in range(count):
        llm.eval([token])
        token = _likeliest(llm)
        now = time.perf_counter_ns()
        sample.between_ns.append(now - last)
        last = now
    sample.ns.append(last - first)
    sample.scheduler_ns += _scheduler_ns(llm) - scheduled
    return before


def _likeliest(llm: Any) -> int:
    logits = np.ctypeslib.as_array(llm._ctx.get_logits_ith(-1), shape=(llm.n_vocab(),))
    return int(logits.argmax())


def _counters(llm: Any) -> dict[str, int] | None:
    experts = getattr(llm, "experts", None)
    if experts is None:
        return None
    stats: ExpertStats = experts.stats()
    return {name: getattr(stats, name) for name in ExpertStats.__dataclass_fields__}


def _scheduler_ns(llm: Any) -> int:
    experts = getattr(llm, "experts", None)
    return 0 if experts is None else int(experts.scheduler_ns)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the others lie; 0 for none."""
    return float(np.quantile(np.array(values), share)) if values else 0.0


def middle(values: Sequence[float]) -> float:
    """Median, 0 for none."""
    return float(median(values)) if values else 0.0
