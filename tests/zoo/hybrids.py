"""Architectures with latent attention, state spaces, convolutions or delta nets."""

from __future__ import annotations

from .keys import (
    SIGMOID,
    SOFTMAX,
    delta_attention,
    delta_net,
    experts_are_the_ffn,
    granite_scales,
    latent_attention,
    nemotron,
    recurrent,
    routing,
    shared_experts,
    state_space,
)
from .spec import Spec

HYBRIDS: dict[str, Spec] = {
    "deepseek2-v2": Spec(
        "deepseek2",
        "latent attention, softmax, merely scaled weights",
        layers=3,
        used=3,
        keys=lambda g: {**latent_attention(g), **shared_experts(2), **routing(SOFTMAX, False, 2.0)},
        drop=r"exp_probs_b",
    ),
    "deepseek2-v3": Spec(
        "deepseek2",
        "latent attention, sigmoid, selection bias, two of four groups",
        layers=3,
        experts=16,
        used=4,
        keys=lambda g: {
            **latent_attention(g),
            **shared_experts(1),
            **routing(SIGMOID, True, 2.5),
            "expert_group_count": 4,
            "expert_group_used_count": 2,
        },
    ),
    "mistral4": Spec(
        "mistral4",
        "latent attention, softmax, full precision asked for in the down projection",
        layers=2,
        used=4,
        keys=lambda g: {**latent_attention(g), **shared_experts(1, 0), **routing(SOFTMAX, True)},
        drop=r"exp_probs_b",
    ),
    "qwen3next": Spec("qwen3next", "gated delta net, gated shared expert", used=4, keys=delta_net, drop=r"ssm_in"),
    "qwen35moe": Spec(
        "qwen35moe",
        "gated delta net, gated shared expert, rotation in sections, merged gate and up",
        used=4,
        keys=lambda g: {
            **delta_net(g),
            "rope.dimension_sections": [g.head // 4, g.head // 8, g.head // 8, 0],
        },
        merged=True,
    ),
    "granitehybrid": Spec(
        "granitehybrid",
        "Mamba-2 and attention, a shared expert",
        used=4,
        keys=lambda g: {
            **experts_are_the_ffn(g),
            **granite_scales(),
            **state_space(g, groups=1),
            **recurrent(g, "MA"),
            "expert_shared_feed_forward_length": g.shared,
        },
    ),
    "jamba": Spec(
        "jamba",
        "Mamba with norms, attention without rotation, weights not normalised",
        keys=lambda g: {**experts_are_the_ffn(g), **state_space(g, groups=0), **recurrent(g, "MA")},
    ),
    "lfm2moe": Spec(
        "lfm2moe",
        "short convolutions and attention, sigmoid with selection bias",
        layers=3,
        keys=lambda g: {
            "attention.head_count_kv": [0, 0, g.kv_heads],
            "shortconv.l_cache": 3,
            "leading_dense_block_count": 1,
            "expert_gating_func": SIGMOID,
        },
    ),
    "kimi-linear": Spec(
        "kimi-linear",
        "delta attention and latent attention, sigmoid with selection bias",
        layers=3,
        used=3,
        keys=lambda g: delta_attention(g),
        drop=r"attn_q_[ab]",
    ),
    "kimi-k3": Spec(
        "kimi-k3",
        "experts in a narrower latent space, SiTU activation",
        layers=3,
        used=3,
        keys=lambda g: {
            **delta_attention(g),
            "expert_latent_length": max(32, g.embedding // 2) if g.embedding < 256 else 256,
            "attn_res.block_size": 2,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
            "kda.gate_lower_bound": -5.0,
        },
    ),
    "nemotron_h_moe": Spec(
        "nemotron_h_moe",
        "no gate, squared ReLU, layers of one kind each",
        layers=4,
        used=3,
        keys=lambda g: nemotron(g, "MEAE"),
        drop=r"ffn_latent",
    ),
    "nemotron_h_moe-puzzle": Spec(
        "nemotron_h_moe",
        "experts in a latent space; width and number of experts per token differ by layer",
        layers=4,
        used=3,
        keys=lambda g: {
            **nemotron(g, "MEAE"),
            "moe_latent_size": 32 if g.embedding < 256 else 256,
            "expert_used_count": [0, 2, 0, 4],
            "expert_feed_forward_length": [0, g.expert, 0, 2 * g.expert],
        },
    ),
}
