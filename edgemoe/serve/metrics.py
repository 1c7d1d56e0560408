"""Counters of the server and its engine, in Prometheus's form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .desk import Desk

# Names of the engine's facts, with their descriptions.
_GAUGES = {
    "running": "Answers that the engine computes.",
    "waiting": "Answers that wait for room in the engine.",
    "tokens": "Tokens that the engine has computed.",
    "hits": "Pairs that the device computed.",
    "misses": "Pairs that the CPU computed.",
    "upload_bytes": "Bytes of uploaded experts.",
    "resident": "Experts on the device.",
}
_MS_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counts answers and their tokens."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, desk: Desk) -> None:
        """Begin with zeros."""
        self._desk, self._registry = desk, CollectorRegistry()
        self._facts: dict[str, Any] = {}
        mine = self._registry
        self._answers = Counter("edgemoe_answers", "Choices that were answered.", registry=mine)
        self._prompt = Counter("edgemoe_prompt_tokens", "Prompt tokens that were computed.", registry=mine)
        self._cached = Counter("edgemoe_cached_tokens", "Prompt tokens that were computed before.", registry=mine)
        self._made = Counter("edgemoe_answer_tokens", "Tokens of answers.", registry=mine)
        self._first = Histogram("edgemoe_prompt_seconds", "Time to read a prompt.", registry=mine)
        self._token = Histogram("edgemoe_token_seconds", "Mean time of a token.", buckets=_MS_BUCKETS, registry=mine)
        self._registry.register(self)

    def count(self, answer: Mapping[str, Any]) -> None:
        """Count an answer or the last chunk of a stream."""
        timings = answer.get("timings")
        if timings is None:
            return
        self._answers.inc()
        self._prompt.inc(timings["prompt_n"])
        self._cached.inc(timings["cache_n"])
        self._made.inc(timings["predicted_n"])
        self._first.observe(timings["prompt_ms"] / 1e3)
        if timings["predicted_n"] > 1:
            self._token.observe(timings["predicted_ms"] / 1e3 / (timings["predicted_n"] - 1))

    def collect(self) -> Iterator[Metric]:
        """Yield the figures of desk and engine, as prometheus_client asks for them."""
        desk = self._desk
        yield GaugeMetricFamily("edgemoe_requests_running", "Requests that are being answered.", desk.running)
        yield GaugeMetricFamily("edgemoe_requests_waiting", "Requests that wait.", desk.waiting)
        yield GaugeMetricFamily("edgemoe_model_loaded", "1 if the model is loaded.", int(desk.loaded))
        yield CounterMetricFamily("edgemoe_engine_deaths", "Engines that died.", desk.restarts)
        for name, text in _GAUGES.items():
            if name in self._facts:
                yield GaugeMetricFamily(f"edgemoe_engine_{name}", text, self._facts[name])

    def text(self, facts: Mapping[str, Any]) -> bytes:
        """Write all figures, with the engine's ``facts``."""
        self._facts = dict(facts)
        return generate_latest(self._registry)
