"""A scripted model with the methods of ``edgemoe.Llama``, without native code.

The model routes at random with a fixed seed, keeps a hot set per layer, and counts as the engine does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemoe.config import Budget
from edgemoe.types import BoolArray, ExpertStats, FloatArray, IdArray, ModelShape, Thinking

NO_THINKING = Thinking()
SHAPE = ModelShape(layers=6, experts=8, used=2, expert_bytes=(1 << 20,) * 6)


@dataclass(frozen=True)
class Script:
    """Describe one answer: the thinking, the text, the tool calls (name, arguments as JSON), and the reason of its end.

    ``again`` is thinking after the answer: some models think between calls of tools.
    """

    text: str = ""
    thought: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    again: str = ""

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Give the pieces of the answer, in the engine's form."""
        for piece in pieces(self.thought) if self.thought else []:
            yield {"reasoning_content": piece}
        for piece in pieces(self.text) if self.text or not (self.thought or self.calls) else []:
            yield {"content": piece}
        for index, (name, arguments) in enumerate(self.calls):
            function = {"name": name, "arguments": arguments}
            yield {"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]}
        for piece in pieces(self.again) if self.again else []:
            yield {"reasoning_content": piece}

    @property
    def finish_reason(self) -> str:
        return self.reason or ("tool_calls" if self.calls else "stop")


class Gate:
    """Let a test decide when the next pieces come. The gate is closed until :meth:`allow`."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)

    def allow(self, pieces: int = 1) -> None:
        for _ in range(pieces):
            self._permits.release()

    def passed(self, cancelled: threading.Event) -> bool:
        """Wait for a permit. False: the answer was cancelled instead."""
        while not self._permits.acquire(timeout=0.005):
            if cancelled.is_set():
                return False
        return True


class FakeExperts:
    """Give counters and maps of a model that routes at random."""

    def __init__(self, shape: ModelShape | None, device: str = "sim", share: float = 0.5, seed: int = 1) -> None:
        self.shape, self.device = shape, device
        self.notes: list[str] = [] if shape else ["dense model: runs as in llama_cpp"]
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self.resized: list[str] = []
        self.reads = 0
        self.ram: float | None = None
        self.free_before: tuple[int, int] | None = (6 << 30, 30 << 30)
        shape = shape or ModelShape(0, 0, 0, ())
        self._heat = np.zeros((shape.layers, shape.experts), np.float32)
        self._last = np.full((shape.layers, shape.used), -1, np.int32)
        self._taste = self._random.zipf(1.6, (shape.layers, shape.experts)).clip(1, 40).astype(float)
        self._resident = np.zeros((shape.layers, shape.experts), np.bool_)
        self._hits = self._misses = self._uploads = self._tokens = 0
        self._slots = 0
        self._fill(share)

    def _fill(self, share: float) -> None:
        shape = self.shape
        if shape is None:
            return
        keep = round(share * shape.experts)
        order = np.argsort(-(self._taste * self._random.uniform(0.5, 2, self._taste.shape)), axis=1)
        self._resident[:] = False
        np.put_along_axis(self._resident, order[:, :keep], True, axis=1)
        self._slots = keep * shape.layers

    def route(self) -> None:
        """Route one token."""
        shape = self.shape
        if shape is None:
            return
        with self._lock:
            weight = np.log(self._taste) + self._random.gumbel(size=self._taste.shape)
            self._last = np.argsort(-weight, axis=1)[:, : shape.used].astype(np.int32)
            np.add.at(self._heat, (np.arange(shape.layers)[:, None], self._last), 1)
            hit = np.take_along_axis(self._resident, self._last, axis=1)
            self._hits += int(hit.sum())
            self._misses += int((~hit).sum())
            self._tokens += 1
            self._uploads += 1

    def stats(self) -> ExpertStats:
        self.reads += 1
        with self._lock:
            return ExpertStats(
                tokens=self._tokens,
                hits=self._hits,
                misses=self._misses,
                uploads=self._uploads,
                upload_bytes=self._uploads << 20,
                slots=self._slots,
                slot_bytes=self._slots << 20,
                resident=int(self._resident.sum()),
                moe_ns=self._tokens * 9_000_000,
                device_ns=self._tokens * 5_000_000,
                cpu_ns=self._tokens * 7_000_000,
                join_ns=self._tokens * 300_000,
            )

    def residency(self) -> BoolArray:
        copy: BoolArray = self._resident.copy()
        return copy

    def heat(self) -> FloatArray:
        copy: FloatArray = self._heat.copy()
        return copy

    def last(self) -> IdArray:
        copy: IdArray = self._last.copy()
        return copy

    def in_ram(self) -> float | None:
        return self.ram

    def resize(self, vram: str) -> None:
        self.resized.append(vram)
        share = Budget.parse(vram).share
        self._fill(0.5 if share is None else share)


class PinningExperts(FakeExperts):
    """Give the experts of an engine that can pin."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.pinned: list[tuple[int, int, bool]] = []

    def pin(self, layer: int, expert: int, pinned: bool = True) -> None:
        self.pinned.append((layer, expert, pinned))
        if pinned:
            self._resident[layer, expert] = True


class FakeLlama:
    """Give ``answers`` in turn, in pieces. Each piece comes when ``gate`` allows it, or after ``delay_s``.

    An answer that is a plain text has no thinking.
    """

    def __init__(
        self,
        model_path: str = "fake.gguf",
        n_ctx: int | str = 4096,
        answers: Sequence[str | Script] = ("Hello there.",),
        gate: Gate | None = None,
        delay_s: float = 0.0,
        shape: ModelShape | None = SHAPE,
        device: str = "sim",
        fails: BaseException | None = None,
        pins: bool = False,
        thinking: Thinking = NO_THINKING,
        **keywords: Any,
    ) -> None:
        self.model_path, self.keywords = model_path, keywords
        self.thinking = thinking
        self.experts = (PinningExperts if pins else FakeExperts)(shape, device)
        self.asked: list[list[dict[str, str]]] = []
        self.sampling: list[dict[str, Any]] = []
        self.cancelled = threading.Event()
        self.closed = False
        self._n_ctx, self._answers, self._gate = 4096 if n_ctx == "auto" else int(n_ctx), list(answers), gate
        self._delay_s, self._fails = delay_s, fails

    def n_ctx(self) -> int:
        return self._n_ctx

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True

    def create_chat_completion(self, messages: list[dict[str, str]], stream: bool = False, **sampling: Any) -> Any:
        self.asked.append([dict(message) for message in messages])
        self.sampling.append(sampling)
        self.cancelled.clear()
        chunks = self._stream(messages)
        if stream:
            return chunks
        return self._whole(list(chunks))

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
        before = self.experts.stats()
        started = time.perf_counter()
        answer = self._answers[min(len(self.asked), len(self._answers)) - 1]
        script = answer if isinstance(answer, Script) else Script(answer)
        yield _chunk({"role": "assistant"})
        done = 0
        for delta in script.deltas():
            if self._delay_s:
                self.cancelled.wait(self._delay_s)
            if (self._gate and not self._gate.passed(self.cancelled)) or self.cancelled.is_set():
                break
            self.experts.route()
            done += 1
            yield _chunk(delta)
            yield _chunk({})  # a marker was swallowed
        if self._fails is not None:
            raise self._fails
        yield _chunk({}, script.finish_reason) | self._figures(messages, done, before, time.perf_counter() - started)

    def _figures(
        self, messages: list[dict[str, str]], done: int, before: ExpertStats, elapsed_s: float
    ) -> dict[str, Any]:
        now = self.experts.stats()
        prompt = sum(len(message["content"].split()) + 4 for message in messages)
        hits, misses = now.hits - before.hits, now.misses - before.misses
        timings = {
            "prompt_n": prompt,
            "prompt_ms": 100.0,
            "prompt_per_second": prompt * 10.0,
            "predicted_n": done,
            "predicted_ms": elapsed_s * 1000,
            "predicted_per_second": done / max(elapsed_s, 1e-9),
            "cache_n": 0,
        }
        experts = {
            "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
            "hits": hits,
            "misses": misses,
            "upload_bytes": now.upload_bytes - before.upload_bytes,
            "moe_ms": done * 9.0,
            "device_ms": done * 5.0,
            "cpu_ms": done * 7.0,
            "join_ms": done * 0.3,
            "device": self.experts.device,
        }
        return {"timings": timings, "edgemoe": experts}

    def _whole(self, chunks: list[dict[str, Any]]) -> dict[str, Any]:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        last = chunks[-1]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(d.get("content", "") for d in deltas)}
        if thought := "".join(delta.get("reasoning_content", "") for delta in deltas):
            message["reasoning_content"] = thought
        if calls := [call for delta in deltas for call in delta.get("tool_calls", ())]:
            message["tool_calls"] = [{key: call[key] for key in ("id", "type", "function")} for call in calls]
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": last["choices"][0]["finish_reason"]}],
            "timings": last["timings"],
            "edgemoe": last["edgemoe"],
        }


def pieces(text: str) -> list[str]:
    """Cut ``text`` as a tokenizer would: into words with the space before them."""
    parts = text.split(" ")
    return [parts[0], *(f" {part}" for part in parts[1:])]


def _chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
    }
