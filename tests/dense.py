"""A tiny dense llama model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter


def write_dense(path: Path, width: int = 64, layers: int = 2, vocabulary: int = 256) -> Path:
    """Write a model with random weights and without experts."""
    random = np.random.default_rng(0)
    out = GGUFWriter(path, "llama")
    out.add_context_length(256)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(width)
    out.add_head_count(2)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(vocabulary)
    out.add_tokenizer_model("no_vocab")

    def add(name: str, *shape: int) -> None:
        out.add_tensor(name, (random.standard_normal(shape) * 0.2).astype(np.float32))

    add("token_embd.weight", vocabulary, width)
    add("output.weight", vocabulary, width)
    out.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(width, np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            add(f"blk.{layer}.{part}.weight", width, width)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
