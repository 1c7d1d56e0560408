"""Specification of one architecture of the zoo, and the metadata that all architectures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Value = str | bool | int | float | list[int] | list[float] | list[bool] | list[str]
Keys = Mapping[str, Value | None]

VOCABULARY = 264
"""Tokens: 256 bytes, six merged pairs, a beginning and an end of text."""


@dataclass(frozen=True)
class Geometry:
    """Hold the widths of a model, in elements.

    Attributes:
        embedding: width of the residual stream.
        dense: width of a dense feed-forward layer.
        expert: width of a routed expert.
        shared: width of a shared expert.
        heads: number of attention heads.
        kv_heads: number of heads of keys and values.
    """

    embedding: int
    dense: int
    expert: int
    shared: int
    heads: int = 4
    kv_heads: int = 2

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.embedding // self.heads


NARROW = Geometry(embedding=64, dense=128, expert=96, shared=32)
"""For types with blocks of at most 32: no two widths agree, so that a transposed one cannot pass."""

WIDE = Geometry(embedding=256, dense=256, expert=256, shared=128)
"""For types with blocks of 64 and 256: both kinds of expert rows have the 256 elements these need."""


def no_keys(_: Geometry) -> Keys:
    """Add nothing to the shared metadata."""
    return {}


@dataclass(frozen=True)
class Spec:
    """Describe one architecture: the metadata of its file and its optional tensors.

    Attributes:
        arch: llama.cpp's name of the architecture.
        note: peculiarities of its expert layers.
        layers: number of layers.
        experts: routed experts per layer.
        used: experts per token.
        keys: metadata beyond the shared part, without the architecture prefix; None removes a shared key.
        drop: pattern of optional tensors that the file leaves out.
        keep: pattern of tensors that the file has although `ALWAYS_OPTIONAL` names them.
        merged: True puts gate and up into one tensor.
        type: ggml type of the experts if the caller names none.
    """

    arch: str
    note: str
    layers: int = 2
    experts: int = 8
    used: int = 2
    keys: Callable[[Geometry], Keys] = no_keys
    drop: str = r"^$"
    keep: str = r"^$"
    merged: bool = False
    type: str = "F16"


ALWAYS_OPTIONAL = r"\.(scale|input_scale)$|rope_(freqs|factors)|attn_(q|k|v|qkv|output)\.bias$|^dense_2"
"""Tensors that llama.cpp takes with nearly every architecture and that few real files have."""


def metadata(spec: Spec, widths: Geometry, mtp: bool = False) -> dict[str, Value]:
    """Give all keys of a file except ``general.*`` and the tokenizer, with the architecture's prefix.

    ``mtp`` adds the block of an MTP head, which is like the last layer.
    """
    shared: dict[str, Value | None] = {
        "vocab_size": VOCABULARY,
        "context_length": 512,
        "embedding_length": widths.embedding,
        "block_count": spec.layers,
        "feed_forward_length": widths.dense,
        "attention.head_count": widths.heads,
        "attention.head_count_kv": widths.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": widths.head,
        "rope.freq_base": 10000.0,
        "expert_count": spec.experts,
        "expert_used_count": spec.used,
        "expert_feed_forward_length": widths.expert,
    }
    shared |= spec.keys(widths)
    if mtp:
        for key, value in shared.items():
            if isinstance(value, list) and len(value) == spec.layers and "sections" not in key:
                shared[key] = [*value, value[-1]]  # type: ignore[list-item]
        shared |= {"block_count": spec.layers + 1, "nextn_predict_layers": 1}
    return {f"{spec.arch}.{key}": value for key, value in shared.items() if value is not None}
