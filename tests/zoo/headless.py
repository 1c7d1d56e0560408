"""Dense architectures with layers without attention heads. llama.cpp runs them, so they must pass."""

from __future__ import annotations

from .keys import state_space
from .spec import Geometry, Keys, Spec


def dense(g: Geometry) -> Keys:
    """Remove the experts."""
    return {"expert_count": None, "expert_used_count": None, "expert_feed_forward_length": None}


def no_heads(g: Geometry) -> Keys:
    """Give the keys of llama.cpp's converters for models without attention."""
    return {
        **dense(g),
        "attention.head_count": 0,
        "attention.head_count_kv": None,
        "rope.dimension_count": None,
        "feed_forward_length": 0,
    }


def rwkv(g: Geometry) -> Keys:
    """Give the keys of both generations of RWKV."""
    return {
        **no_heads(g),
        "feed_forward_length": g.dense,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": None,
        "wkv.head_size": 16,
        "token_shift_count": 2,
    }


HEADLESS: dict[str, Spec] = {
    "mamba": Spec("mamba", "a state space", keys=lambda g: {**no_heads(g), **state_space(g, groups=0)}),
    "mamba2": Spec("mamba2", "a state space of heads", keys=lambda g: {**no_heads(g), **state_space(g, groups=1)}),
    "rwkv6": Spec(
        "rwkv6",
        "time mixing",
        keys=lambda g: {**rwkv(g), "time_mix_extra_dim": 8, "time_decay_extra_dim": 8},
        drop=r"time_mix_lerp_fused",
    ),
    "rwkv7": Spec(
        "rwkv7",
        "time mixing with learnt rates",
        keys=lambda g: {
            **rwkv(g),
            "attention.decay_lora_rank": 8,
            "attention.iclr_lora_rank": 8,
            "attention.value_residual_mix_lora_rank": 8,
            "attention.gate_lora_rank": 8,
        },
    ),
    "deci": Spec(
        "deci",
        "layers with attention, with a linear map in its place, and without either",
        layers=4,
        keys=lambda g: {
            **dense(g),
            "attention.head_count": [g.heads, g.heads, 0, g.heads],
            "attention.head_count_kv": [g.kv_heads, 0, 0, g.kv_heads],
        },
        drop=r"ffn_(gate|up|down)\.bias|blk\.\d\.attn_output\.bias",
    ),
}
