"""The needs of a model: bytes and operations, read from its header."""

from __future__ import annotations

from ..models.gguf import EXPERTS, GgufFile, moe_shape
from . import kv_cache
from .kv_cache import USUAL_TYPE
from .placement import BATCH, ModelNeeds

# llama.cpp computes the attention of their sparse layers with plain operations.
WITHOUT_FLASH = ("minimax-m3",)
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


def of(
    file: GgufFile,
    whole_window: bool = True,
    flash: bool = False,
    batch: int = BATCH,
    types: tuple[int, int] = (USUAL_TYPE, USUAL_TYPE),
    sequences: int = 1,
) -> ModelNeeds:
    """Read a model's needs from its header.

    Args:
        file: the header.
        whole_window: layers with a sliding window keep the keys and values of all tokens, not of the window only. This
            is llama-cpp-python's default.
        flash: llama.cpp computes flash attention. llama-cpp-python does so only if the user asks for it.
        batch: most tokens that llama.cpp computes at once (``n_ubatch``).
        types: ggml's numbers for the types of keys and values in the cache; an unknown one counts as f16.
        sequences: most sequences that the context holds (``n_seq_max``).
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
    context = kv_cache.of(file, flash, types)
    return ModelNeeds(
        shape=shape,
        layers=file.run_blocks,
        dense_bytes=dense,
        dense_device_bytes=dense - outside,
        dense_read_bytes=dense - outside,
        dense_operations=sum(tensor.elements for tensor in matrices) + tied,
        expert_operations=sum(tensor.elements for tensor in experts if len(tensor.shape) == 3) // pairs,
        kv_token_bytes=context.token_bytes,
        kv_window_bytes=context.window_bytes,
        kv_compressed=tuple(context.compressed.items()),
        window=0 if whole_window else sequences * kv_cache.window(file),
        state_bytes=sequences * context.state_bytes,
        width=file.number("embedding_length") or 0,
        expert_width=_expert_width(file),
        heads=kv_cache.most_heads(file) + (file.number("attention.indexer.head_count") or 0),
        vocabulary=embedding.shape[1] if embedding and len(embedding.shape) > 1 else 0,
        flash=flash and file.architecture not in WITHOUT_FLASH,
        indexed=file.number("attention.indexer.top_k") or 0,
        linear_heads=kv_cache.most_heads(file) if file.architecture == kv_cache.LIGHTNING else 0,
        batch=batch,
    )


def _expert_width(file: GgufFile) -> int:
    return max((t.shape[0] for name, t in file.run_tensors.items() if name.endswith("ffn_down_exps.weight")), default=0)
