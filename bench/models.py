"""Write MoE files of real shapes with random weights, to measure speed without a real model.

Speed depends on shapes, types and routing, not on the values of the weights. Experts are written as Q4_K and Q6_K, as
Q4_K_M mixes them. The routing of random weights is almost uniform. Locality and hit rates are therefore not realistic.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

Q4_K, Q6_K = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K


@dataclass(frozen=True)
class Shape:
    """Describe a MoE of the llama architecture: widths, counts, and the vocabulary."""

    layers: int
    width: int
    ffn: int
    experts: int
    used: int
    heads: int
    vocab: int = 8192


SHAPES = {
    # about 400 MB: 16 layers of a Granite-like 1B-A400M
    "small": Shape(layers=16, width=1024, ffn=512, experts=32, used=8, heads=16),
    # about 1.4 GB: 8 layers of Qwen3-30B-A3B's expert shape
    "qwen3": Shape(layers=8, width=2048, ffn=768, experts=128, used=8, heads=32),
}


def write(path: Path, shape: Shape, seed: int = 0) -> Path:
    """Write the model unless its file exists."""
    if path.exists():
        return path
    random = np.random.default_rng(seed)
    part = path.with_suffix(".part")
    out = gguf.GGUFWriter(str(part), "llama")
    out.add_context_length(8192)
    out.add_embedding_length(shape.width)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.ffn)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.heads // 4)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_expert_count(shape.experts)
    out.add_expert_used_count(shape.used)
    out.add_vocab_size(shape.vocab)
    out.add_rope_dimension_count(shape.width // shape.heads)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(["<s>"] + [f"t{i}" for i in range(1, shape.vocab)])
    out.add_token_types([1] * shape.vocab)
    out.add_token_merges(["a b"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)

    def add(name: str, *ne: int, kind: gguf.GGMLQuantizationType | None = None, scale: float | None = None) -> None:
        values = random.standard_normal(ne, dtype=np.float32)
        values *= np.float32(scale if scale is not None else ne[-1] ** -0.5)
        if kind is None:
            out.add_tensor(name, values)
        else:
            out.add_tensor(name, _quantize(values, kind), raw_dtype=kind)

    kv_width = shape.width // 4
    add("token_embd.weight", shape.vocab, shape.width, kind=Q4_K, scale=1.0)
    add("output.weight", shape.vocab, shape.width, kind=Q6_K)
    out.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    for i in range(shape.layers):
        block = f"blk.{i}."
        better = Q6_K if i < shape.layers // 8 or i % 3 == 2 else Q4_K  # Q4_K_M's mix
        out.add_tensor(block + "attn_norm.weight", np.ones(shape.width, np.float32))
        out.add_tensor(block + "ffn_norm.weight", np.ones(shape.width, np.float32))
        add(block + "attn_q.weight", shape.width, shape.width, kind=Q4_K)
        add(block + "attn_k.weight", kv_width, shape.width, kind=Q4_K)
        add(block + "attn_v.weight", kv_width, shape.width, kind=better)
        add(block + "attn_output.weight", shape.width, shape.width, kind=Q4_K)
        add(block + "ffn_gate_inp.weight", shape.experts, shape.width, scale=0.2)
        add(block + "ffn_gate_exps.weight", shape.experts, shape.ffn, shape.width, kind=Q4_K)
        add(block + "ffn_up_exps.weight", shape.experts, shape.ffn, shape.width, kind=Q4_K)
        add(block + "ffn_down_exps.weight", shape.experts, shape.width, shape.ffn, kind=better)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    part.rename(path)
    return path


def _quantize(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Quantise rows with ggml's own quantiser."""
    lib = llama_cpp.llama_cpp._lib
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows, width = values.size // values.shape[-1], values.shape[-1]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    out = np.empty(rows * width // block * block_bytes, dtype=np.uint8)
    lib.ggml_quantize_chunk(
        ctypes.c_int(int(kind)),
        values.ctypes.data_as(ctypes.c_void_p),
        out.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(rows),
        ctypes.c_int64(width),
        None,
    )
    return out.reshape(*values.shape[:-1], -1)
