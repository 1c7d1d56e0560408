"""Random weights that give a model useful logits, and their quantisation by ggml."""

from __future__ import annotations

import ctypes
import math
import re
import zlib

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from .shapes import GGML, TensorShape

Floats = npt.NDArray[np.float32]

GGML.ggml_quantize_chunk.restype = ctypes.c_size_t
GGML.ggml_quantize_chunk.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
]

GAINS: tuple[tuple[str, float], ...] = (
    (r"ffn_gate_inp\.weight", 3.0),  # router: far apart from each other, so that the choice has no near ties
    (r"ffn_down_(ch)?exps\.weight", 3.0),  # experts: they give most of the layers' sum in the residual stream
    (r"^output\.weight", 3.0),
    (r"attn_(q|k)\.weight", 1.5),
)
"""Standard deviation of a product with a normalised vector, where it is not 1."""


def values(tensor: TensorShape, seed: int) -> Floats:
    """Make the float32 values of ``tensor``. Equal name, shape and seed give equal values."""
    random = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    noise: Floats = random.standard_normal(tensor.shape, dtype=np.float32)
    return _shaped(tensor, noise).astype(np.float32)


def _shaped(tensor: TensorShape, noise: Floats) -> npt.NDArray[np.floating]:
    """Scale ``noise`` to the range of such a tensor's values in a trained model."""
    name = tensor.name
    if "ssm_a" in name:
        return -0.1 - np.abs(noise)  # a decay must be negative, or the state grows without bound
    if "rope_freqs" in name:
        return 1.0 + np.abs(noise)
    if name.endswith("scale") or "layer_output_scale" in name:
        return 1.0 + 0.25 * np.tanh(noise)
    if name.endswith(".bias") or "exp_probs_b" in name:
        return noise * (0.5 if "exps" in name else 0.1)
    if "norm" in name or name.endswith(".ssm_d"):
        return 1.0 + 0.1 * noise
    if name == "token_embd.weight" or "sinks" in name:
        return noise
    gain = next((gain for pattern, gain in GAINS if re.search(pattern, name)), 1.0)
    return noise * (gain / math.sqrt(tensor.shape[-1]))


def experts_by_token(tensor: TensorShape, experts: int, seed: int) -> npt.NDArray[np.int32]:
    """Make the table of a hash-routed layer: different experts for every token id, shape ``(tokens, used)``."""
    random = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    tokens, used = tensor.shape
    return np.stack([random.permutation(experts)[:used] for _ in range(tokens)]).astype(np.int32)


SLOW = ("IQ1", "IQ2", "IQ3")
"""Types that take ggml seconds per megabyte to encode."""


def encoded(tensor: TensorShape, type_name: str, seed: int) -> npt.NDArray[np.uint8]:
    """Give the values of ``tensor`` in the form of `quantised`.

    For a slow type only the first expert is quantised. The other experts have its rows in another order, so they are
    different functions.
    """
    if len(tensor.shape) != 3 or not type_name.startswith(SLOW):
        return quantised(values(tensor, seed), type_name)
    experts, rows, columns = tensor.shape
    first = quantised(values(TensorShape(tensor.name, (rows, columns)), seed), type_name)
    random = np.random.default_rng([seed, zlib.crc32(tensor.name.encode()), 1])
    return np.stack([first, *(first[random.permutation(rows)] for _ in range(experts - 1))])


def quantised(array: Floats, type_name: str) -> npt.NDArray[np.uint8]:
    """Encode ``array`` in ggml's ``type_name``. The last dimension of the result is in bytes.

    Raises:
        ValueError: the last dimension is no multiple of the type's block.
    """
    kind = GGMLQuantizationType[type_name]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    columns = array.shape[-1]
    if columns % block:
        raise ValueError(f"rows of {columns} do not fit {type_name} with blocks of {block}")
    rows = array.size // columns
    source = np.ascontiguousarray(array, dtype=np.float32)
    importance = np.ones(columns, dtype=np.float32)
    out = np.empty((*array.shape[:-1], columns // block * block_bytes), dtype=np.uint8)
    written = GGML.ggml_quantize_chunk(
        int(kind), source.ctypes.data, out.ctypes.data, 0, rows, columns, importance.ctypes.data
    )
    assert written == out.nbytes, (type_name, written, out.nbytes)
    return out
