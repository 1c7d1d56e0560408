"""Routers that run ahead, on the input of an earlier layer. The norms of both layers are folded into the weights.

The experts of layer l read ``norm(h) * w``. The router of the next layer multiplies ``norm(h') * w'``. Between h and h'
lie only one attention and the experts. So the router's weights times ``w' / w`` foretell most of its choices.
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

# Names of the norm in front of the experts, in a model's file. A model uses the first of these names that it has.
NORMS = ("ffn_norm", "post_attention_norm", "attn_output_norm", "attn_norm")
# If a norm's weight is below this share of its largest, the norm silences the number, and no division restores it.
LEAST_WEIGHT = 1e-3
SIGMOID = 2  # llama.cpp's number of the gating function with a bias before the comparison


@dataclass(frozen=True)
class Router:
    """A router that is run ahead.

    Attributes:
        weight: bfloat16 bits, ``(experts, width)``.
        bias: added to the logits, ``(experts,)``.
        select: added to the sigmoids of the logits, ``(experts,)``; None if the logits themselves are compared.
    """

    weight: npt.NDArray[np.uint16]
    bias: FloatArray
    select: FloatArray | None


def look_ahead(file: GgufFile, blocks: Sequence[int], lead: int) -> list[Router | None]:
    """Make the router of each expert layer that can be run ``lead`` layers ahead, on the input of that earlier layer.

    Args:
        file: the model.
        blocks: numbers of the expert layers, in the order they run.
        lead: layers ahead.

    Returns:
        a router for each of ``blocks``. None for the first ``lead`` blocks, and if router or norm are not plain
        numbers.
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
    """Read weight and bias of the norm in front of the experts."""
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
