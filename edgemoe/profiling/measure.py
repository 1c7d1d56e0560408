"""Run the same prompts through plain llama.cpp and through EdgeMoE, in turns, and keep every sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..config import OffloadConfig
from ..engine import Llama, host
from ..errors import EdgeMoEError
from ..models.gguf import GgufFile, check
from ..types import ExpertStats
from . import memory
from .observe import Observation, Span, likeliest, observe
from .placements import PLAIN, SIMULATED, Placement, attention_of, placements
from .prompts import PROMPTS

Progress = Callable[[float, str], None]
OURS, DRAFTED = "edgemoe", "edgemoe, drafts"
OPENING = 32  # tokens of the prompt before each generation
WARM_UP = 8
GAUGES = {
    "slots",
    "slot_bytes",
    "resident",
    "pending",
    "stage_bytes",
    "fused_layers",
    "plain_layers",
    "ram_bytes",
    "ram_budget",
}  # states, not counts
OBSERVED = 128  # most tokens that are generated under observation
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Test:
    """Describe one measurement: a prefill or a generation, after some tokens of context.

    Attributes:
        prompt: tokens of the prefill; 0 for a generation.
        generate: tokens to generate; 0 for a prefill.
        depth: tokens of context before.
    """

    __test__ = False  # pytest must not collect this class

    prompt: int = 0
    generate: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        """Give llama-bench's name of this test."""
        kind = f"pp{self.prompt}" if self.prompt else f"tg{self.generate}"
        return kind + (f" @ d{self.depth}" if self.depth else "")


@dataclass
class Samples:
    """Collect the measurements of one placement and test.

    Attributes:
        placement: `OURS`, `DRAFTED`, or a placement of llama.cpp with a name that begins with `PLAIN`.
        test: the test that ran.
        ns: wall time of each repetition.
        first_ns: time to the first token of a generation for each repetition, prompt included.
        between_ns: times between tokens of all repetitions.
        computing_ns: part of ``between_ns`` inside ``eval``.
        sampling_ns: part of ``between_ns`` for the wait for logits and the choice of a token.
        scheduler_ns: time of the scheduler in Python between tokens, over all repetitions.
        drafts: steps, guesses and right guesses over all repetitions; empty without drafts.
        stats: differences of the counters over all repetitions; `GAUGES` have their last value. None for llama.cpp.
    """

    placement: str
    test: Test
    ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    between_ns: list[int] = field(default_factory=list)
    computing_ns: int = 0
    sampling_ns: int = 0
    scheduler_ns: int = 0
    drafts: list[int] = field(default_factory=list)
    stats: dict[str, int] | None = None

    @property
    def per_second(self) -> list[float]:
        """Compute the tokens per second of each repetition."""
        tokens = self.test.prompt or self.test.generate
        return [tokens / ns * 1e9 for ns in self.ns]


@dataclass
class Result:
    """Hold all samples of a run, and its use of memory.

    Attributes:
        file: header of the model.
        threads: number of CPU threads.
        device: device with the resident experts.
        samples: samples by placement and test.
        load_ms: loading time of each placement.
        buffers: bytes of llama.cpp's buffers for our model, by (kind, device).
        slot_bytes: device memory of the slots.
        slots: number of slots over all layers.
        ram: memory of the process with only our model loaded and warm.
        plain_bytes: growth of the process after llama.cpp also loaded the model and was warm.
        stage_bytes: device memory for the experts that a prefill streams.
        device_used: bytes in use by the device's own count; None without a device.
        notes: sentences from the engine, and sentences about missing measurements.
        observed: decode steps under observation after the measurements; None if there were none.
        spans: steps of the run with their times.
        build: name and version of the llama-cpp-python that ran.
        stopped: reason for an early end; empty if the run was complete.
        cold: first prefill and first tokens of each placement after loading.
        attention: llama_cpp's keywords for the types of the cache and for flash attention, of all placements.
    """

    file: GgufFile
    threads: int
    device: str
    samples: list[Samples]
    load_ms: dict[str, float]
    buffers: dict[tuple[str, str], int]
    slot_bytes: int
    slots: int
    ram: memory.Account
    plain_bytes: int
    stage_bytes: int
    device_used: int | None
    notes: list[str]
    observed: Observation | None = None
    spans: list[Span] = field(default_factory=list)
    build: str = ""
    stopped: str = ""
    cold: list[Samples] = field(default_factory=list)
    attention: dict[str, Any] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Tell whether the user ended the run."""
        return self.stopped == INTERRUPTED


def profile(
    path: Path,
    tests: Sequence[Test],
    repetitions: int,
    offload: OffloadConfig,
    threads: int,
    progress: Progress = lambda share, step: None,
    synthetic: bool = False,
) -> Result:
    """Measure ``tests`` on both placements in turns. If the run ends early, the samples so far are kept.

    Args:
        path: file of the model.
        tests: tests to run.
        repetitions: repetitions of each test. Each repetition begins with another prompt.
        offload: settings of EdgeMoE.
        threads: number of CPU threads for both placements.
        progress: called with the share done in 0..1 and the name of the current step.
        synthetic: True uses random tokens. They are routed unlike text, so hit rates then mean little.

    Raises:
        EdgeMoEError: our model does not load.
    """
    context = max(max(t.prompt, t.generate + OPENING, WARM_UP + OPENING) + t.depth for t in tests) + 16
    keywords: dict[str, Any] = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    file = check(path)
    with ExitStack() as open_models:
        run = _Run(progress)
        with run.step("loading", OURS), memory.watch() as ledger:
            ours = Llama(path, offload=offload, **keywords)
        open_models.callback(ours.close)
        keywords |= attention_of(ours)
        tokens = _tokens(ours, context, synthetic)
        stats = ours.experts.stats()
        result = Result(
            file, threads, ours.experts.device, [], run.load_ms, ledger.buffers, stats.slot_bytes, stats.slots,
            memory.Account.nothing(), 0, 0, None, [], None, run.spans, host.version(), attention=attention_of(ours),
        )  # fmt: skip
        longest = max(t.prompt for t in tests)
        try:
            result.cold += run.warm_up(OURS, ours, tokens, longest)
            result.ram, result.device_used = ledger.take(file), _device_used(ours)
            result.stage_bytes = ours.experts.stats().stage_bytes
            others = placements(file, result.device, result.slot_bytes)
            together = result.device in SIMULATED  # a GPU has no room for two models: one after the other
            models: dict[str, Any] = {OURS: ours}
            if together and (plain := run.open_plain(others[0], path, keywords, result)) is not None:
                open_models.callback(plain.close)
                models = {PLAIN: plain, OURS: ours}
                result.cold += run.warm_up(PLAIN, plain, tokens, longest)
                result.plain_bytes = memory.resident() - result.ram.resident
            if offload.speculative not in ("auto", "off") and ours.drafts is not None:
                models[DRAFTED] = ours
            result.samples = [Samples(name, t) for t in tests for name in models if t.generate or name != DRAFTED]
            run.measure(models, result.samples, tokens, repetitions)
            result.notes += [_drafts_note(sample) for sample in result.samples if sample.drafts]
            with run.step("observing", OURS):
                count = min(max([t.generate for t in tests] + [WARM_UP]), OBSERVED)
                result.observed = observe(ours, next(tokens(repetitions)), OPENING, count)
            if not together:
                ours.close()
                result.notes.append("Placements were measured one after the other: the device has room for one model.")
                run.alone(others, path, keywords, tests, tokens, repetitions, result)
        except KeyboardInterrupt:
            result.stopped = INTERRUPTED
        except (EdgeMoEError, MemoryError, RuntimeError) as error:
            result.stopped = str(error) or "memory ran out"
        result.notes += ours.experts.notes
        return result


class _Run:
    """Run the steps of a profile one after the other, and record their times."""

    def __init__(self, progress: Progress) -> None:
        self.spans: list[Span] = []
        self.load_ms: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def step(self, what: str, placement: str, share: float = 0.0) -> Iterator[None]:
        """Announce a step and record its time."""
        self._progress(share, f"{what}: {placement}")
        started = time.perf_counter_ns()
        try:
            yield
        finally:
            ended = time.perf_counter_ns()
            self.spans.append(Span(what, placement, started, ended, memory.resident()))
            if what == "loading":
                self.load_ms[placement] = (ended - started) / 1e6

    def open_plain(self, placement: Placement, path: Path, keywords: dict[str, Any], result: Result) -> Any:
        """Open plain llama.cpp; None and a note if it does not load, since memory may only suffice for EdgeMoE."""
        try:
            with self.step("loading", placement.name):
                return placement.open(path, keywords)
        except (ValueError, MemoryError) as error:
            result.notes.append(f"{placement.name}: did not load ({error}), so there is no row to compare with.")
            return None

    def alone(
        self, others: Sequence[Placement], path: Path, keywords: dict[str, Any], tests: Sequence[Test], tokens: Any,
        repetitions: int, result: Result,
    ) -> None:  # fmt: skip
        """Load, measure and close one placement after the other."""
        for placement in others:
            if (model := self.open_plain(placement, path, keywords, result)) is None:
                continue
            try:
                result.cold += self.warm_up(placement.name, model, tokens, max(t.prompt for t in tests))
                samples = [Samples(placement.name, test) for test in tests]
                result.samples += samples
                self.measure({placement.name: model}, samples, tokens, repetitions)
            finally:
                model.close()

    def warm_up(self, name: str, model: Any, tokens: Any, prompt: int) -> list[Samples]:
        """Run a prefill and some tokens before the measurement, and return their samples.

        They bring lazy allocations and uploads to an end.
        """
        first = [Samples(name, Test(prompt=prompt))] if prompt else []
        first.append(Samples(name, Test(generate=WARM_UP)))
        with self.step("warm-up", name):
            for sample in first:
                _sample(model, sample, tokens(0))
            if name == OURS and not model.experts.wait():
                raise EdgeMoEError("the device did not take the experts within a minute")
        return first

    def measure(self, models: dict[str, Any], samples: list[Samples], tokens: Any, repetitions: int) -> None:
        """Run all repetitions, with the placements in turns."""
        for repetition in range(repetitions):
            for done, sample in enumerate(samples):
                share = (repetition + done / len(samples)) / repetitions
                with self.step(f"{sample.test.name}, {repetition + 1} of {repetitions}", sample.placement, share):
                    _sample(models[sample.placement], sample, tokens(repetition))


def _tokens(llm: Any, most: int, synthetic: bool) -> Callable[[int], Iterator[list[int]]]:
    """Make a function that gives each repetition a source of token lists with ``most`` tokens.

    Each list begins with another prompt.
    """
    texts: list[list[int]] = []
    if not synthetic and llm.metadata.get("tokenizer.ggml.model") != "no_vocab":
        texts = [llm.tokenize(text.encode(), add_bos=False) for text in PROMPTS]
    if not any(texts):  # a vocabulary without letters gives no tokens for a text
        random = np.random.default_rng(0)
        texts = [random.integers(0, llm.n_vocab(), most).tolist() for _ in PROMPTS]

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
        likeliest(llm)  # waits for the device
        sample.ns.append(time.perf_counter_ns() - started)
    elif sample.placement == DRAFTED:
        before = _generate_drafted(llm, next(source), test.generate, sample)
    else:
        before = _generate(llm, next(source), test.generate, sample)
    after = _counters(llm)
    if after is not None and before is not None:
        total = sample.stats or dict.fromkeys(after, 0)
        sample.stats = {
            name: after[name] if name in GAUGES else total[name] + after[name] - before[name] for name in after
        }


def _generate(llm: Any, text: list[int], count: int, sample: Samples) -> dict[str, int] | None:
    """Generate greedily and time each token. Return the counters after the prompt, so that they only cover tokens."""
    opened = time.perf_counter_ns()
    llm.eval(text[:OPENING])
    token = likeliest(llm)
    sample.first_ns.append(time.perf_counter_ns() - opened)
    scheduled, before = _scheduler_ns(llm), _counters(llm)
    last = first = time.perf_counter_ns()
    for _ in range(count):
        started = time.perf_counter_ns()
        llm.eval([token])
        computed = time.perf_counter_ns()
        token = likeliest(llm)
        now = time.perf_counter_ns()
        sample.computing_ns += computed - started
        sample.sampling_ns += now - computed
        sample.between_ns.append(now - last)
        last = now
    sample.ns.append(last - first)
    sample.scheduler_ns += _scheduler_ns(llm) - scheduled
    return before


def _generate_drafted(llm: Any, text: list[int], count: int, sample: Samples) -> dict[str, int] | None:
    """Generate greedily with drafts and time each token; several tokens of one step come at once."""
    opened = time.perf_counter_ns()
    stream = llm.generate(text[:OPENING], temp=0)
    next(stream)
    sample.first_ns.append(time.perf_counter_ns() - opened)
    scheduled, before, drafts = _scheduler_ns(llm), _counters(llm), llm.drafts.counts()
    last = first = time.perf_counter_ns()
    for _ in range(count):
        next(stream)
        now = time.perf_counter_ns()
        sample.between_ns.append(now - last)
        last = now
    stream.close()
    sample.ns.append(last - first)
    sample.scheduler_ns += _scheduler_ns(llm) - scheduled
    made = [after - then for after, then in zip(llm.drafts.counts(), drafts, strict=True)]
    sample.drafts = [known + new for known, new in zip(sample.drafts or [0, 0, 0], made, strict=True)]
    return before


def _drafts_note(sample: Samples) -> str:
    steps, offered, accepted = sample.drafts
    figures = f"{(steps + accepted) / max(steps, 1):.2f} tokens a step, {accepted} of {offered} guesses right"
    return f"Drafts, {sample.test.name}: {figures}."


def _device_used(llm: Any) -> int | None:
    if llm.experts.device == "none":
        return None
    free, total = llm._native.device_memory()
    return int(total - free)


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
    """Compute the quantile ``share`` of some values; 0 for an empty list."""
    return float(np.quantile(np.array(values), share)) if values else 0.0


def middle(values: Sequence[float]) -> float:
    """Compute the median; 0 for an empty list."""
    return float(median(values)) if values else 0.0
