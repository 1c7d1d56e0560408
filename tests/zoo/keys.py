"""Parts of metadata that several architectures share."""

from __future__ import annotations

from .spec import Geometry, Keys

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS = 1, 2, 3, 4
"""Values of ``expert_gating_func``."""


def experts_are_the_ffn(g: Geometry) -> Keys:
    """Give an expert's width as ``feed_forward_length``, as older files do."""
    return {"feed_forward_length": g.expert, "expert_feed_forward_length": None}


def latent_attention(g: Geometry) -> Keys:
    """Give keys of multi-head latent attention: one compressed key and value of 32, eight rotated elements."""
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 24,
        "attention.kv_lora_rank": 32,
        "attention.key_length": 40,
        "attention.value_length": 32,
        "attention.key_length_mla": 24,
        "attention.value_length_mla": 16,
        "rope.dimension_count": 8,
    }


def shared_experts(count: int, dense_first: int = 1) -> Keys:
    """Give keys of ``count`` shared experts and ``dense_first`` leading layers without experts."""
    return {"expert_shared_count": count, "leading_dense_block_count": dense_first}


def routing(gate: int, norm: bool, scale: float = 1.0) -> Keys:
    """Give the keys that turn router logits into weights."""
    return {"expert_gating_func": gate, "expert_weights_norm": norm, "expert_weights_scale": scale}


def window(pattern: list[bool] | int, base: float = 10000.0) -> Keys:
    """Give keys of a sliding window of 16 tokens on the layers that ``pattern`` marks."""
    return {
        "attention.sliding_window": 16,
        "attention.sliding_window_pattern": pattern,
        "rope.freq_base_swa": base,
    }


def state_space(g: Geometry, groups: int, state: int = 16, heads: int = 8) -> Keys:
    """Give keys of Mamba-like layers with an inner width twice the residual stream."""
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * g.embedding,
        "ssm.state_size": state,
        "ssm.time_step_rank": heads,
        "ssm.group_count": groups,
    }


def delta_net(g: Geometry) -> Keys:
    """Give keys of a gated delta net: two key heads, four value heads of 16, full attention in every second layer."""
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 64,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 4,
        "ssm.group_count": 2,
        "full_attention_interval": 2,
        "attention.key_length": 2 * g.head,
        "attention.value_length": 2 * g.head,
        "rope.dimension_count": g.head,
        "expert_shared_feed_forward_length": g.shared,
    }


def recurrent(g: Geometry, marks: str) -> Keys:
    """Give attention to the layers with an A in ``marks``. The other layers are recurrent."""
    return {"attention.head_count_kv": [g.kv_heads if mark == "A" else 0 for mark in marks]}


def delta_attention(g: Geometry) -> Keys:
    """Give keys of Kimi's delta attention in layers 0 and 1, and latent attention in layer 2."""
    return {
        **latent_attention(g),
        "attention.head_count_kv": [0, 0, 1],
        "ssm.conv_kernel": 4,
        "kda.head_dim": 16,
        **shared_experts(1),
        **routing(SIGMOID, True, 2.5),
    }


def nemotron(g: Geometry, marks: str) -> Keys:
    """Give keys of layers of one kind each: M(amba), A(ttention), E(xperts)."""
    return {
        **state_space(g, groups=2),
        "attention.layer_norm_epsilon": 1e-5,
        **recurrent(g, marks),
        "feed_forward_length": [g.expert if mark == "E" else 0 for mark in marks],
        "expert_shared_feed_forward_length": g.shared,
        "expert_shared_count": 1,
        **routing(SIGMOID, True, 2.5),
    }


def every_head(g: Geometry) -> Keys:
    """Give the keys and values as many heads as the queries."""
    return {"attention.head_count_kv": g.heads}


def granite_scales(logits: float = 2.0) -> Keys:
    """Give Granite's four multipliers."""
    return {"logit_scale": logits, "residual_scale": 0.5, "embedding_scale": 2.0, "attention.scale": 0.25}


OF_DENSE = r"ffn_(gate|up|down)\.weight"
OF_EXPERTS = r"ffn_(gate_inp|gate_exps|up_exps|down_exps|gate_up_exps|gate_shexp|up_shexp|down_shexp)\.|exp_probs_b"
FIRST_DENSE = rf"blk\.0\.({OF_EXPERTS})|blk\.[1-9]\.{OF_DENSE}"
"""Layer 0 dense, the others routed, where llama.cpp takes whichever tensors there are."""
