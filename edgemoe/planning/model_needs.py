"""The needs of a model: bytes and operations, read from its header.

The KV cache follows from the shapes of the attention's weights. A layer without a key projection keeps no keys. A layer
with a compressed projection (latent attention) keeps the compressed row. If the weights do not tell, metadata does.

**Source**: sizes of cache and state are those of llama.cpp 0.5.0 (llama-kv-cache.cpp, llama-hparams.cpp), compared with
its reports for every architecture of tests/zoo.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from ..models.gguf import EXPERTS, GgufArray, GgufFile, moe_shape
from .placement import BATCH, ModelNeeds

F32 = 4
# Types that a cache can have, by ggml's number: bytes of a block and numbers in it.
CACHE_TYPES = {
    0: (4, 1),  # f32
    1: (2, 1),  # f16
    2: (18, 32),  # q4_0
    3: (20, 32),  # q4_1
    6: (22, 32),  # q5_0
    7: (24, 32),  # q5_1
    8: (34, 32),  # q8_0
    20: (18, 32),  # iq4_nl
    30: (2, 1),  # bf16
}
USUAL_TYPE = 1
_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
# Weights that only a recurrent layer has: state-space models, gated delta nets, short convolutions, RWKV.
_RECURRENT = ("ssm_", "shortconv", "time_mix")
# Architectures with a recurrent state and a cache in one layer.
_BOTH = ("falcon-h1",)
_ATTENTION = ("attn_k.weight", "attn_qkv.weight", "attn_kv_a_mqa.weight", "attn_kv.weight", "attn_kv_latent.weight")
Shape: TypeAlias = tuple[int, ...]


def of(
    file: GgufFile,
    whole_window: bool = True,
    flash: bool = False,
    batch: int = BATCH,
    types: tuple[int, int] = (USUAL_TYPE, USUAL_TYPE),
) -> ModelNeeds:
    """Read a model's needs from its header.

    Args:
        file: the header.
        whole_window: layers with a sliding window keep all of the context, as llama-cpp-python has it by default.
        flash: flash attention; off in llama-cpp-python unless asked for.
        batch: most tokens that llama.cpp computes at once (``n_ubatch``).
        types: ggml's numbers for the types of keys and values in the cache; an unknown one counts as f16.
    """
    shape = moe_shape(file)
    total = sum(tensor.bytes for tensor in file.run_tensors.values())
    experts = [tensor for name, tensor in file.run_tensors.items() if EXPERTS.match(name)]
    dense = total - sum(tensor.bytes for tensor in experts)
    embedding, output = file.tensors.get(_EMBEDDING), file.tensors.get(_OUTPUT)
    outside = embedding.bytes if embedding and output else 0
    matrices = [t for n, t in file.run_tensors.items() if len(t.shape) > 1 and not EXPERTS.match(n) and n != _EMBEDDING]
    tied = embedding.elements if embedding and not output else 0
    pairs = shape.layers * shape.experts if shape else 1
    kv, windowed, state = _cache(file, flash, types)
    return ModelNeeds(
        shape=shape,
        layers=file.run_blocks,
        dense_bytes=dense,
        dense_device_bytes=dense - outside,
        dense_read_bytes=dense - outside,
        dense_operations=sum(tensor.elements for tensor in matrices) + tied,
        expert_operations=sum(tensor.elements for tensor in experts if len(tensor.shape) == 3) // pairs,
        kv_token_bytes=kv,
        kv_window_bytes=windowed,
        window=0 if whole_window else file.number("attention.sliding_window") or 0,
        state_bytes=state,
        width=file.number("embedding_length") or 0,
        expert_width=_expert_width(file),
        heads=_heads(file) + (file.number("attention.indexer.head_count") or 0),
        vocabulary=embedding.shape[1] if embedding and len(embedding.shape) > 1 else 0,
        flash=flash,
        batch=batch,
    )


def _heads(file: GgufFile) -> int:
    return max(_per_layer(file, "attention.head_count"), default=0)


def _expert_width(file: GgufFile) -> int:
    return max((t.shape[0] for name, t in file.run_tensors.items() if name.endswith("ffn_down_exps.weight")), default=0)


def _cache(file: GgufFile, flash: bool, types: tuple[int, int]) -> tuple[int, int, int]:
    """Count the bytes of KV cache per token, in full and in windowed layers, and the bytes of recurrent state."""
    blocks: dict[int, dict[str, Shape]] = {}
    for name, tensor in file.run_tensors.items():
        if match := _BLOCK.match(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor.shape
    own = file.run_blocks or len(blocks)
    sharing = own - (file.number("attention.shared_kv_layers") or 0)  # the last layers read the cache of other layers
    full = windowed = state = 0
    kept = [_kept(file, layer, blocks.get(layer, {})) if layer < sharing else (0, 0) for layer in range(own)]
    # Without flash attention, values are kept transposed, and every layer's cache is as wide as the widest.
    widest = max((values for _, values in kept), default=0)
    for layer, (keys, values) in enumerate(kept):
        width = _row(keys, types[0]) + _row(widest if values and not flash else values, types[1])
        if _windowed(file, layer):
            windowed += width
        else:
            full += width
        if _recurrent(blocks.get(layer, {})):
            state += F32 * _state_width(file)
    return full, windowed, state


def _row(numbers: int, kind: int) -> int:
    """Count the bytes of ``numbers`` numbers of a type."""
    size, block = CACHE_TYPES.get(kind, CACHE_TYPES[USUAL_TYPE])
    return -(-numbers // block) * size


def _recurrent(tensors: dict[str, Shape]) -> bool:
    return any(name.startswith(_RECURRENT) for name in tensors)


def _kept(file: GgufFile, layer: int, tensors: dict[str, Shape]) -> tuple[int, int]:
    """Count the numbers that the cache keeps of one token in a layer: of keys, and of values."""
    if not any(name in tensors for name in _ATTENTION) or (_recurrent(tensors) and file.architecture not in _BOTH):
        return 0, 0
    index = (file.number("attention.indexer.key_length") or 0) if any("indexer." in name for name in tensors) else 0
    if "attn_kv_a_mqa.weight" in tensors and "attn_k_b.weight" in tensors:
        return tensors["attn_kv_a_mqa.weight"][1] + index, 0  # latent attention: the values are a view of the keys
    heads = _at(file, "attention.head_count_kv", layer)
    keys, values = (heads * _head(file, layer, kind) for kind in ("key", "value"))
    if "attn_k.weight" in tensors:
        keys = tensors["attn_k.weight"][1]
        values = tensors["attn_v.weight"][1] if "attn_v.weight" in tensors else values or keys
    return keys + index, values


def _head(file: GgufFile, layer: int, kind: str) -> int:
    """Count the numbers of one head's key or value."""
    own = file.number(f"attention.{kind}_length_swa") if _windowed(file, layer) else None
    plain = (file.number("embedding_length") or 0) // (_at(file, "attention.head_count", layer) or 1)
    return own or file.number(f"attention.{kind}_length") or plain


def _state_width(file: GgufFile) -> int:
    """Count the numbers that a recurrent layer keeps of a sequence."""
    if head := file.number("wkv.head_size"):
        return (file.number("embedding_length") or 0) * (head + (file.number("token_shift_count") or 2))
    if cells := file.number("shortconv.l_cache"):
        return (file.number("embedding_length") or 0) * (cells - 1)
    kernel = max(0, (file.number("ssm.conv_kernel") or 0) - 1)
    if head := file.number("kda.head_dim"):
        return _heads(file) * head * (3 * kernel + head)
    inner, size = file.number("ssm.inner_size") or 0, file.number("ssm.state_size") or 0
    return kernel * (inner + 2 * (file.number("ssm.group_count") or 0) * size) + size * inner


def _windowed(file: GgufFile, layer: int) -> bool:
    if not file.number("attention.sliding_window"):
        return False
    pattern = file.metadata.get(f"{file.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, GgufArray):
        return layer < len(pattern.values) and bool(pattern.values[layer])
    if isinstance(pattern, int) and pattern > 1:
        return layer % pattern < pattern - 1
    return file.architecture == "gpt-oss" and layer % 2 == 0


def _per_layer(file: GgufFile, key: str) -> list[int]:
    value = file.metadata.get(f"{file.architecture}.{key}")
    if isinstance(value, GgufArray):
        return [int(v) for v in value.values]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _at(file: GgufFile, key: str, layer: int) -> int:
    values = _per_layer(file, key)
    if not values and key == "attention.head_count_kv":
        return _at(file, "attention.head_count", layer)
    return (values[layer] if layer < len(values) else values[0]) if values else 0
