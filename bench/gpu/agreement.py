"""Compare answers first. A model that does not agree with llama.cpp is not measured."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgemoe import OffloadConfig

FEW = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 197]
PROMPT = FEW * 2  # long enough for a prefill
PROMPTS = PROMPT, FEW[::-1], [token + 1 for token in PROMPT]
STEPS = 12
ENOUGH = 50  # from this percentage of hot experts on, the device must compute; with fewer slots it may not
# Largest difference of logits that agrees, as a share of the largest logit. On the models of tests/zoo, llama.cpp's own
# results on the CPU and on Vulkan differ by up to 0.016.
TOLERANCE = 0.03
FAR = 1.5  # limit as a multiple of the difference between llama.cpp's own placements
ARCHITECTURES = {
    "gpt-oss-20b": "gpt-oss",
    "qwen3-30b-a3b": "qwen3moe",
    "deepseek-v2-lite": "deepseek2-v2",
    "mixtral-8x7b": "llama",
}
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """Hold the result of a comparison of two sides.

    Attributes:
        agreed: True if the two sides agree.
        apart: largest difference of logits, as a share of the largest logit. Only steps from equal tokens count.
        words: the result in one sentence.
        checked: names of the comparisons.
    """

    agreed: bool
    apart: float
    words: str
    checked: list[str] = field(default_factory=list)


def answer(llm: Any) -> tuple[list[int], Logits]:
    """Compute the prompt in one batch, then greedy steps. Give tokens and logits ``(steps, vocabulary)``."""
    from tests.zoo.reference import greedy

    return greedy(llm, PROMPT, STEPS)


def compare(tokens: list[int], logits: Logits, reference: list[int], their_logits: Logits) -> Verdict:
    """Compare with a reference: equal tokens except at its near ties, and near logits until tokens differ."""
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
    """Choose the verdict of the nearest reference. The references run the dense part in different places."""
    return min(verdicts, key=lambda verdict: (not verdict.agreed, verdict.apart))


def beside(verdict: Verdict, apart: float) -> Verdict:
    """Accept a difference about as large as between llama.cpp's own placements: its CPU kernels round differently."""
    if verdict.agreed or not 0 < verdict.apart <= FAR * apart:
        return verdict
    words = f"{verdict.words}, but llama.cpp's own placements are {apart:.2%} apart"
    return Verdict(True, verdict.apart, words, verdict.checked)


def zoo(arch: str, device: str, folder: Path) -> Verdict:
    """Compare a small model of an architecture, with distinct experts, at a quarter, half and all of them hot.

    llama.cpp's own placements are the references. Routers of random models sometimes have near ties, and another expert
    gives another answer. One of three prompts may therefore disagree.
    """
    from tests.zoo import build

    path = build(arch, folder)
    references = [_plain(path, **placement) for placement in _placements(device)]
    checked, apart = [], 0.0
    for layers, share in _ours(device):
        answers, hits, able = _answers(path, device, layers, share)
        verdicts = [
            nearest([compare(*answer, *reference[i]) for reference in references]) for i, answer in enumerate(answers)
        ]
        agreed = [verdict for verdict in verdicts if verdict.agreed]
        words = f"{share} % hot, dense part on the {'device' if layers else 'CPU'}: "
        words += "" if able else f"{device} lacks an operation of the experts, the CPU computes them: "
        checked.append(words + "; ".join(verdict.words for verdict in verdicts))
        if device != "none" and able and not hits and share >= ENOUGH:
            return Verdict(False, 0.0, f"{share} % hot: nothing was computed on {device}", checked)
        if len(agreed) < len(PROMPTS) - 1:
            return Verdict(False, max(verdict.apart for verdict in verdicts), checked[-1], checked)
        apart = max([apart, *(verdict.apart for verdict in agreed)])
    return Verdict(True, apart, f"{len(checked)} placements agree, {apart:.2%} apart at most", checked)


def _placements(device: str) -> list[dict[str, Any]]:
    """List llama.cpp's placements: on the CPU, on the device, and only the experts on the device."""
    if device in ("none", "sim"):
        return [{}]
    return [{}, {"n_gpu_layers": -1}, {"n_gpu_layers": -1, "offload_kqv": False, "op_offload": False}]


def _ours(device: str) -> list[tuple[int, int]]:
    """List pairs of GPU layers and percent of hot experts."""
    shares = (0,) if device == "none" else (25, 50, 100)
    return [(layers, share) for layers in ((0,) if device in ("none", "sim") else (0, -1)) for share in shares]


def _plain(path: Path, **placement: Any) -> list[tuple[list[int], Logits]]:
    from tests.zoo.reference import greedy, plain

    with _dense_on_cpu() if "op_offload" in placement else contextlib.nullcontext():
        llm = plain(path, **placement)
    try:
        return [greedy(llm, prompt, STEPS) for prompt in PROMPTS]
    finally:
        llm.close()


def _answers(path: Path, device: str, layers: int, share: int) -> tuple[list[tuple[list[int], Logits]], int, bool]:
    """Give our answer, the pairs that the device computed, and whether the device has every operation for them."""
    from tests import parity
    from tests.zoo.reference import greedy

    config = OffloadConfig(device, 0, policy="off", profile="off", stream_tokens=4)
    llm = parity.open_ours(path, config, layers)
    try:
        if share:
            parity.heat(llm, share)
        answers = [greedy(llm, prompt, STEPS) for prompt in PROMPTS]
        able = any(layer.support != 0 for layer in llm._native.layers())
        return answers, llm.experts.stats().hits, able
    finally:
        llm.close()


class _Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p)]


@contextlib.contextmanager
def _dense_on_cpu() -> Iterator[None]:
    """Change llama_cpp's default parameters for a while: all tensors except the experts stay in the CPU's buffers."""
    from llama_cpp import llama_cpp as binding

    plain, buffer_type = binding.llama_model_default_params, binding._lib.ggml_backend_cpu_buffer_type
    buffer_type.restype, buffer_type.argtypes = ctypes.c_void_p, []
    pattern = rb"^(?!.*ffn_(gate|up|down|gate_up)_exps).*$"
    overrides = (_Override * 2)(_Override(pattern, buffer_type()))

    def params() -> Any:
        found = plain()
        found.tensor_buft_overrides = ctypes.addressof(overrides)
        return found

    binding.llama_model_default_params = params
    try:
        yield
    finally:
        binding.llama_model_default_params = plain
