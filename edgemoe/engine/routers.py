"""Routers that look ahead: each is applied to the input of the layer before, with both norms folded in.

The experts of layer l read ``norm(h) * w``; the router of the next one multiplies ``norm(h') * w'``, and h' is h but
for one attention and the experts between. So the router's weights times ``w' / w`` foretell most of its choices.
**Source**: Eliseev and Mazur, "Fast Inference of Mixture-of-Experts Language Models with Offloading", 2023, section
3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..models.gguf import GgufFile, values
from ..types import FloatArray

# The norm in front of the experts, by its name in the file: the first that a model has.
NORMS = ("ffn_norm", "post_attention_norm", "attn_output_norm", "attn_norm")
# A number that a norm silences cannot be restored by dividing by its weight.
LEAST_WEIGHT = 1e-3
SIGMOID = 2  # llama.cpp's number of the gating function with a bias before the comparison


@dataclass(frozen=True)
class Router:
    """A router to look ahead with.

    Attributes:
        weight: bfloat16 bits, ``(experts, width)``.
        bias: added to the logits, ``(experts,)``.
        select: added to their sigmoids, ``(experts,)``; None where the logits themselves are compared.
    """

    weight: npt.NDArray[np.uint16]
    bias: FloatArray
    select: FloatArray | None


def look_ahead(file: GgufFile, blocks: Sequence[int], lead: int) -> list[Router | None]:
    """The router of each expert layer as the layer ``lead`` before it would have to apply it.

    Args:
        file: the model.
        blocks: numbers of the expert layers, in the order they run.
        lead: layers between.

    Returns:
        one for each of ``blocks``; None for the first ``lead``, and where router or norm are not plain numbers.
    """
    return [_router(file, blocks[at - lead], block) if at >= lead else None for at, block in enumerate(blocks)]


def _router(file: GgufFile, before: int, block: int) -> Router | None:
    weight = values(file, f"blk.{block}.ffn_gate_inp.weight")
    here, there = _norm(file, block), _norm(file, before)
    if weight is None or here is None or there is None or weight.ndim != 2 or weight.shape[1] != len(here[0]):
        return None
    kept = np.abs(there[0]) > LEAST_WEIGHT * np.abs(there[0]).max()
    ratio = np.where(kept, here[0] / np.where(kept, there[0], 1), 0)
    bias = weight @ (here[1] - ratio * there[1])
    own = values(file, f"blk.{block}.ffn_gate_inp.bias")
    if own is not None:
        bias = bias + own
    select = values(file, f"blk.{block}.exp_probs_b.bias")
    if file.number("expert_gating_func") != SIGMOID:
        select = None
    elif select is None:
        select = np.zeros(len(weight), dtype=np.float32)
    return Router(_bfloat16(weight * ratio), np.ascontiguousarray(bias, dtype=np.float32), select)


def _norm(file: GgufFile, block: int) -> tuple[FloatArray, FloatArray] | None:
    """Weight and bias of the norm in front of the experts."""
    for name in NORMS:
        weight = values(file, f"blk.{block}.{name}.weight")
        if weight is not None and weight.ndim == 1:
            bias = values(file, f"blk.{block}.{name}.bias")
            return weight, np.zeros_like(weight) if bias is None else bias
    return None


def _bfloat16(numbers: FloatArray) -> npt.NDArray[np.uint16]:
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
