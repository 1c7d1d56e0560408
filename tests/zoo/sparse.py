"""Architectures with an indexer, hyper-connections or linear attention: the newest ones of llama.cpp."""

from __future__ import annotations

from .keys import (
    SIGMOID,
    SOFTMAX,
    SQRT_SOFTPLUS,
    delta_attention,
    every_head,
    experts_are_the_ffn,
    latent_attention,
    routing,
    shared_experts,
    window,
)
from .spec import Geometry, Keys, Spec


def indexer(heads: int = 4) -> Keys:
    """Give keys of an indexer that selects every token. A choice among equals would depend on rounding."""
    return {
        "attention.indexer.head_count": heads,
        "attention.indexer.key_length": 64,
        "attention.indexer.top_k": 4096,
    }


def hyper_connections() -> Keys:
    """Give keys of four parallel residual streams."""
    return {
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-6,
    }


def deepseek4(g: Geometry) -> Keys:
    """Give keys of one hash-routed layer, and compressed attention in the last two layers."""
    return {
        **hyper_connections(),
        **indexer(),
        **routing(SQRT_SOFTPLUS, True, 1.5),
        "expert_shared_count": 1,
        "hash_layer_count": 1,
        "swiglu_clamp_exp": 2.0,
        "attention.head_count_kv": 1,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.q_lora_rank": 24,
        "attention.sliding_window": 16,
        "attention.output_group_count": 2,
        "attention.output_lora_rank": 16,
        "attention.compress_rope_freq_base": 160000.0,
        "attention.compress_ratios": [0, 0, 4, 128],
        "rope.dimension_count": 16,
    }


SPARSE: dict[str, Spec] = {
    "deepseek2-ocr": Spec(
        "deepseek2-ocr",
        "as deepseek2 without latent attention",
        layers=3,
        used=3,
        keys=lambda g: {**shared_experts(2), **routing(SOFTMAX, False), **every_head(g)},
        drop=r"exp_probs_b",
    ),
    "deepseek32": Spec(
        "deepseek32",
        "indexed attention, two of four groups",
        layers=3,
        experts=16,
        used=4,
        keys=lambda g: {
            **latent_attention(g),
            **indexer(),
            **shared_experts(1),
            **routing(SIGMOID, True, 2.5),
            "expert_group_count": 4,
            "expert_group_used_count": 2,
        },
    ),
    "deepseek4": Spec(
        "deepseek4",
        "first layer routed by token id, sqrt-softplus, clamped SwiGLU, four residual streams",
        layers=4,
        used=3,
        keys=deepseek4,
        drop=r"exp_probs_b_vl",
    ),
    "glm-dsa": Spec(
        "glm-dsa",
        "indexed attention, sigmoid with selection bias",
        layers=3,
        used=4,
        keys=lambda g: {
            **latent_attention(g),
            **indexer(),
            **shared_experts(1),
            **routing(SIGMOID, True, 2.5),
        },
    ),
    "hy_v4": Spec(
        "hy_v4",
        "four residual streams, SwiGLU clamped for routed experts only",
        layers=3,
        used=3,
        keys=lambda g: {
            **latent_attention(g),
            **hyper_connections(),
            **shared_experts(1),
            **routing(SIGMOID, True, 1.5),
            "hyper_connection.magnitude": 2.0,
            "swiglu_clamp_exp": 2.0,
        },
        drop=r"indexer",
    ),
    "dots3note": Spec(
        "dots3note",
        "latent attention of two widths, indexed attention",
        layers=3,
        used=3,
        keys=lambda g: {
            **latent_attention(g),
            **indexer(),
            **window([False, True, False]),
            **shared_experts(1),
            **routing(SIGMOID, True, 2.5),
            "attention.kv_lora_rank_swa": 32,
            "attention.key_length_swa": 40,
            "attention.value_length_swa": 32,
            "attention.key_length_mla_swa": 24,
            "attention.value_length_mla_swa": 16,
            "attention.indexer.types": [1, 0, 1],
        },
    ),
    "minimax-m3": Spec(
        "minimax-m3",
        "block-sparse attention, clamped GLU, a dense layer first",
        layers=3,
        used=4,
        keys=lambda g: {
            **indexer(g.kv_heads),
            **shared_experts(1),
            **routing(SIGMOID, True, 2.0),
            "rope.dimension_count": g.head // 2,
            "attention.indexer.block_size": 4,
            "attention.indexer.local_blocks": 1,
        },
    ),
    "minimax-01": Spec(
        "minimax-01",
        "lightning attention and softmax attention",
        keys=lambda g: {
            **experts_are_the_ffn(g),
            "residual_scale": 1.5,
            "full_attention_interval": 2,
        },
    ),
    "bailingmoe3": Spec(
        "bailingmoe3",
        "delta attention and latent attention, SwiGLU clamped in one layer",
        layers=3,
        used=3,
        keys=lambda g: {
            **delta_attention(g),
            "kda.gate_lower_bound": -5.0,
            "expert_shared_feed_forward_length": g.shared,
            "swiglu_clamp_exp": [0.0, 0.0, 0.5],
            "swiglu_clamp_shexp": [0.0, 0.0, 0.5],
        },
    ),
}
