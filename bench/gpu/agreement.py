"""Same answers first: what does not agree with llama.cpp is not measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe import OffloadConfig

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 197]
STEPS = 12
# How far logits may be apart, as a share of the largest. llama.cpp's own results on the CPU and on Vulkan are up to
# 0.016 apart on the models of tests/zoo.
TOLERANCE = 0.03
ARCHITECTURES = {
    "gpt-oss-20b": "gpt-oss",
    "qwen3-30b-a3b": "qwen3moe",
    "deepseek-v2-lite": "deepseek2-v2",
    "mixtral-8x7b": "llama",
}
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """Whether two sides agree.

    Attributes:
        agreed: as it says.
        apart: largest difference of logits over the steps that both sides computed from the same tokens, as a share.
        words: one sentence.
        checked: what was compared.
    """

    agreed: bool
    apart: float
    words: str
    checked: list[str] = field(default_factory=list)


def answer(llm: Any) -> tuple[list[int], Logits]:
    """The prompt in one batch, then greedy steps: tokens and logits ``(steps, vocabulary)``."""
    from tests.zoo.reference import greedy

    return greedy(llm, PROMPT, STEPS)


def compare(tokens: list[int], logits: Logits, reference: list[int], their_logits: Logits) -> Verdict:
    """Tokens must be equal but where the reference itself has all but a tie; logits must be near while tokens are."""
    if not np.isfinite(logits).all():
        return Verdict(False, float("inf"), "logits are not finite")
    parted = next((i for i, (a, b) in enumerate(zip(tokens, reference, strict=True)) if a != b), None)
    shared = len(tokens) if parted is None else parted + 1
    largest = float(np.abs(their_logits[:shared]).max())
    apart = float(np.abs(logits[:shared] - their_logits[:shared]).max()) / largest
    if apart > TOLERANCE:
        return Verdict(False, apart, f"logits are {apart:.2%} apart, more than {TOLERANCE:.0%}")
    if parted is None:
        return Verdict(True, apart, f"all {len(tokens)} tokens equal, logits {apart:.2%} apart")
    margin = float(their_logits[parted, reference[parted]] - their_logits[parted, tokens[parted]]) / largest
    if margin > TOLERANCE:
        return Verdict(False, apart, f"token {parted + 1} differs, and the reference was sure of it ({margin:.2%})")
    return Verdict(True, apart, f"token {parted + 1} differs in a tie ({margin:.2%}), logits {apart:.2%} apart")


def nearest(verdicts: list[Verdict]) -> Verdict:
    """Of several references the one that is nearest: the dense part may run where either of them ran it."""
    return min(verdicts, key=lambda verdict: (not verdict.agreed, verdict.apart))


def zoo(arch: str, device: str, folder: Path) -> Verdict:
    """A small model of an architecture, whose experts all differ, at a quarter, half and all of them hot."""
    from tests import parity
    from tests.zoo import build
    from tests.zoo.reference import plain

    path = build(arch, folder)
    on_device = device not in ("none", "sim")
    references = []
    for layers in (0, -1) if on_device else (0,):
        llm = plain(path, n_gpu_layers=layers)
        references.append(parity.answer(llm))
        llm.close()
    checked, worst = [], Verdict(True, 0.0, "")
    if device == "none":
        llm = parity.open_ours(path, OffloadConfig(device="none", profile="off"))
        got = parity.answer(llm)
        llm.close()
        verdict = compare(*got, *references[0])
        return Verdict(verdict.agreed, verdict.apart, verdict.words, ["no device"])
    for layers in (0, -1) if on_device else (0,):
        for share in (25, 50, 100):
            found = parity.ours(path, share=share, gpu_layers=layers, device=device)
            verdict = nearest([compare(found.tokens, found.logits, *reference) for reference in references])
            place = "dense part on the device" if layers else "dense part on the CPU"
            checked.append(f"{share} % hot, {place}: {verdict.words}")
            if not found.stats.hits:
                return Verdict(False, 0.0, f"{share} % hot: nothing was computed on {device}", checked)
            if not verdict.agreed:
                return Verdict(False, verdict.apart, checked[-1], checked)
            worst = max(worst, verdict, key=lambda v: v.apart)
    return Verdict(True, worst.apart, f"{len(checked)} placements agree, {worst.apart:.2%} apart at most", checked)
