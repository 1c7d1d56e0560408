"""Figures of one answer's speed and costs, and the receipt line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..text.display import count, percent, rate, seconds, size
from ..types import ExpertStats
from .record import Answer

SLOW_FIRST_TOKEN_S = 5.0  # after this time people look away
LONG_PROMPT = 256  # fewest tokens of a prompt for which the reused tokens are shown
SLOW_SHARE = 0.4  # share of the expert time or of the pairs; below it another cause matters more


@dataclass(frozen=True)
class Receipt:
    """Hold the figures of one answer.

    Attributes:
        prompt_tokens: prompt tokens computed for this answer.
        cached_tokens: prompt tokens reused from earlier turns.
        answer_tokens: tokens generated.
        prompt_rate: prompt tokens per second.
        answer_rate: generated tokens per second.
        first_token_s: seconds from the question to the first text, as the caller measured them.
        pairs: (token, expert) pairs of this answer, hits and misses; 0 for a dense model.
        hit_rate: share of the pairs that the device computed.
        upload_bytes: bytes of experts moved to the device.
        moe_ms: milliseconds in expert layers.
        device_ms: milliseconds until the hot pairs' results.
        cpu_ms: milliseconds computing cold pairs.
        join_ms: milliseconds the CPU waited for the device.
        disk_bytes: bytes of experts read from the disk, for a model that is larger than the RAM.
        disk_ms: milliseconds that expert layers waited for the disk.
        device: name of the device, empty when unknown.
        on_device: True if the device runs llama.cpp's whole graph. The CPU then waits for it as for any GPU.
        drafted_tokens: tokens that were guessed.
        accepted_tokens: guessed tokens that were right.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    prompt_rate: float = 0.0
    answer_rate: float = 0.0
    first_token_s: float = 0.0
    pairs: int = 0
    hit_rate: float = 0.0
    upload_bytes: int = 0
    moe_ms: float = 0.0
    device_ms: float = 0.0
    cpu_ms: float = 0.0
    join_ms: float = 0.0
    disk_bytes: int = 0
    disk_ms: float = 0.0
    device: str = ""
    on_device: bool = False
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @classmethod
    def of(cls, completion: Mapping[str, Any], first_token_s: float | None = None) -> Receipt:
        """Read ``timings`` and ``edgemoe`` of a completion or of the last chunk of a stream.

        If one of them is missing, its figures are 0. If ``first_token_s`` is None, the prompt time takes its place.
        """
        timings: Mapping[str, Any] = completion.get("timings") or {}
        experts: Mapping[str, Any] = completion.get("edgemoe") or {}
        prompt_s = float(timings.get("prompt_ms", 0.0)) / 1000
        return cls(
            prompt_tokens=int(timings.get("prompt_n", 0)),
            cached_tokens=int(timings.get("cache_n", 0)),
            answer_tokens=int(timings.get("predicted_n", 0)),
            prompt_rate=float(timings.get("prompt_per_second") or 0.0),
            answer_rate=float(timings.get("predicted_per_second") or 0.0),
            first_token_s=prompt_s if first_token_s is None else first_token_s,
            pairs=int(experts.get("hits", 0)) + int(experts.get("misses", 0)),
            hit_rate=float(experts.get("hit_rate", 0.0)),
            upload_bytes=int(experts.get("upload_bytes", 0)),
            moe_ms=float(experts.get("moe_ms", 0.0)),
            device_ms=float(experts.get("device_ms", 0.0)),
            cpu_ms=float(experts.get("cpu_ms", 0.0)),
            join_ms=float(experts.get("join_ms", 0.0)),
            disk_bytes=int(experts.get("disk_bytes", 0)),
            disk_ms=float(experts.get("disk_ms", 0.0)),
            device=str(experts.get("device", "")),
            on_device=bool(experts.get("on_device", False)),
            drafted_tokens=int(timings.get("draft_n", 0)),
            accepted_tokens=int(timings.get("draft_n_accepted", 0)),
        )

    @property
    def context_tokens(self) -> int:
        """Count the tokens of the context in use after this answer."""
        return self.prompt_tokens + self.cached_tokens + self.answer_tokens

    @property
    def tokens_per_step(self) -> float:
        """Give the tokens of one step; the first token of an answer comes from its prompt. 1 without drafts."""
        steps = self.answer_tokens - 1 - self.accepted_tokens
        return (self.answer_tokens - 1) / steps if steps > 0 else 1.0

    def parts(self) -> list[str]:
        """Give the figures in words, the most important first. A dense model has no figures of experts."""
        parts = [rate(self.answer_rate), f"first token {seconds(self.first_token_s)}"]
        if self.drafted_tokens:
            drafts = f"{count(self.accepted_tokens)} of {count(self.drafted_tokens)} guesses right"
            parts.append(f"{self.tokens_per_step:.1f} tokens a step, {drafts}")
        asked = self.prompt_tokens + self.cached_tokens
        if self.cached_tokens and asked >= LONG_PROMPT:
            parts.append(f"{count(self.cached_tokens)} of {count(asked)} reused")
        if self.pairs:
            parts += [f"hit rate {percent(self.hit_rate)}", f"{size(self.upload_bytes)} moved"]
            spent = [("device", self.device_ms), ("CPU", self.cpu_ms)]
            spent += [] if self.on_device else [("waiting", self.join_ms)]
            spent += [("disk", self.disk_ms)] if self.disk_bytes else []
            parts.append(", ".join(f"{name} {seconds(ms / 1000)}" for name, ms in spent))
            parts += [f"{size(self.disk_bytes)} from the disk"] if self.disk_bytes else []
        return parts

    def line(self) -> str:
        """Write the one line under an answer in the chat: tokens, speed, and what the experts cost."""
        parts = [f"{count(self.answer_tokens)} tokens"] if self.answer_tokens else []
        parts += [rate(self.answer_rate), f"first {seconds(self.first_token_s)}"]
        parts += [f"{self.tokens_per_step:.1f} tokens a step"] if self.drafted_tokens else []
        asked = self.prompt_tokens + self.cached_tokens
        if self.cached_tokens and asked >= LONG_PROMPT:
            parts.append(f"{count(self.cached_tokens)} of {count(asked)} reused")
        if self.pairs:
            parts += [f"hit {percent(self.hit_rate)}", f"{size(self.upload_bytes)} moved"]
        return " · ".join(parts)

    def remark(self) -> str:
        """Name the main cause of a slow answer in one sentence; empty if the answer was not slow."""
        if self.first_token_s > SLOW_FIRST_TOKEN_S and self.prompt_tokens:
            return f"The first token had to wait for {count(self.prompt_tokens)} prompt tokens."
        if self.disk_ms > SLOW_SHARE * self.moe_ms > 0:
            waited = percent(self.disk_ms / self.moe_ms)
            return f"The experts waited for the disk in {waited} of their time: the RAM holds too few of them."
        if self.device in ("", "none") or not self.pairs:
            return ""
        if not self.on_device and self.join_ms > SLOW_SHARE * self.moe_ms > 0:
            return f"The CPU waited for {self.device} in {percent(self.join_ms / self.moe_ms)} of the expert time."
        if self.hit_rate < SLOW_SHARE:
            return f"{percent(1 - self.hit_rate)} of the experts ran on the CPU; a larger /vram would hold more."
        return ""

    def statistics(self) -> str:
        """Write the line of ``edgemoe run`` on stderr: the receipt with token counts."""
        counts = f"{self.answer_tokens} tokens at {self.parts()[0]}"
        prompt = f"prompt {self.prompt_tokens} tokens at {rate(self.prompt_rate)}"
        if self.cached_tokens:
            prompt += f" ({self.cached_tokens} reused)"
        return " · ".join([counts, prompt, *self.parts()[1:], *([self.device] if self.device else [])])


def breaking_off(reason: str, answer: Answer) -> str:
    """Describe how an answer was cut: ``cut at the token limit while it was still thinking``; empty if complete."""
    said = {"stopped": "stopped", "length": "cut at the token limit", "full": "cut at the end of the context"}.get(
        reason, ""
    )
    in_thought = bool(said and answer.thought and not answer.text and not answer.calls)
    return f"{said} while it was still thinking" if in_thought else said


def what_cut(reason: str, receipt: Receipt, limit: int | None) -> str:
    """Refine the reason of an end: ``length`` becomes ``full`` if the context ended before ``limit`` tokens."""
    if reason == "length" and (limit is None or 0 < receipt.answer_tokens < limit):
        return "full"
    return reason


def counters(stats: ExpertStats) -> list[str]:
    """Write all counters since the model was loaded, one line per subject."""
    spent = {
        "expert layers": stats.moe_ns,
        "device": stats.device_ns,
        "CPU": stats.cpu_ns,
        "waiting": stats.join_ns,
    }
    uploads = f"{count(stats.uploads)} uploads, {size(stats.upload_bytes)}"
    lines = {
        "decode": f"{count(stats.hits)} hits, {count(stats.misses)} misses ({percent(stats.hit_rate)} hits)",
        "moved": f"{uploads}, {count(stats.pending)} pending, {count(stats.failed_uploads)} failed",
        "device": f"{count(stats.slots)} slots, {count(stats.resident)} resident, {size(stats.slot_bytes)}",
        "time": ", ".join(f"{name} {seconds(ns / 1e9)}" for name, ns in spent.items()),
    }
    if stats.ram_budget:
        lines["disk"] = (
            f"{size(stats.disk_bytes)} read in {count(stats.disk_reads)} reads, {seconds(stats.disk_wait_ns / 1e9)} "
            f"waiting; {size(stats.ram_bytes)} of {size(stats.ram_budget)} of RAM for experts"
        )
    return [f"{subject}: {figures}" for subject, figures in lines.items()]
