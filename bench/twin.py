"""Write shape twins: files with the exact shapes and types of a real model, and arbitrary weights.

Speed depends on shapes, types and routing. A twin has real shapes and types. `llm.experts.force` of `edgemoe.Llama`
adds real routing from a recorded trace. Every output of a twin says that it is one: its answers are noise.

    python bench/twin.py gpt-oss-20b FOLDER
    python bench/twin.py gpt-oss-20b FOLDER --layers 4    # a small one: same experts, fewer layers, a short vocabulary
    python bench/twin.py qwen3-30b-a3b FOLDER --layers 4 --experts IQ4_XS    # its experts of another type
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from tests.zoo.shapes import TensorShape, all_tensors
from tests.zoo.spec import ALWAYS_OPTIONAL
from tests.zoo.weights import quantised, values

TILE_ROWS = 64  # random numbers are made once, then repeated
# A layer adds little to the hidden state, as in a real model. Without this damping, the logits of llama.cpp's own
# placements differed by 6 % on gpt-oss-20b's twin and by 40 to 90 % on DeepSeek-V2-Lite's. No check could have found an
# error.
ADDS, DAMPING = r"ffn_down|attn_output", 0.02
ALIGNMENT = 32  # alignment of tensors in a GGUF file, in bytes
SHORT_VOCABULARY = 8192  # tokens of a small twin: a whole vocabulary would make two matrices larger than the rest


@dataclass(frozen=True)
class Twin:
    """Describe the header of a real model.

    Attributes:
        arch: llama.cpp's name of the architecture.
        vocabulary: number of tokens.
        keys: metadata without the architecture's prefix.
        dense: type of the matrices of attention and dense layers.
        experts: types of the routed experts: of most projections, and of every second down projection.
        keep: optional tensors that the real file has.
    """

    arch: str
    vocabulary: int
    keys: Mapping[str, int | float]
    dense: str = "Q4_K"
    experts: tuple[str, str] = ("Q4_K", "Q6_K")
    keep: tuple[str, ...] = ()


TWINS = {
    "qwen3-30b-a3b": Twin(
        "qwen3moe",
        151_936,
        {
            "block_count": 48, "embedding_length": 2048, "feed_forward_length": 6144, "attention.head_count": 32,
            "attention.head_count_kv": 4, "attention.key_length": 128, "attention.value_length": 128,
            "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6, "expert_count": 128,
            "expert_used_count": 8, "expert_feed_forward_length": 768,
        },
    ),
    "gpt-oss-20b": Twin(
        "gpt-oss",
        201_088,
        {
            "block_count": 24, "embedding_length": 2880, "feed_forward_length": 2880, "attention.head_count": 64,
            "attention.head_count_kv": 8, "attention.key_length": 64, "attention.value_length": 64,
            "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 150_000.0, "attention.sliding_window": 128,
            "expert_count": 32, "expert_used_count": 4, "expert_feed_forward_length": 2880,
        },
        "Q8_0",
        ("MXFP4", "MXFP4"),
        ("attn_",),
    ),
    "deepseek-v2-lite": Twin(
        "deepseek2",
        102_400,
        {
            "block_count": 27, "embedding_length": 2048, "feed_forward_length": 10944, "attention.head_count": 16,
            "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512,
            "attention.key_length_mla": 192, "attention.value_length_mla": 128, "attention.kv_lora_rank": 512,
            "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10_000.0, "rope.dimension_count": 64,
            "expert_count": 64, "expert_used_count": 6, "expert_feed_forward_length": 1408, "expert_shared_count": 2,
            "leading_dense_block_count": 1, "expert_gating_func": 1, "expert_weights_scale": 1.0,
        },
    ),
    "mixtral-8x7b": Twin(
        "llama",
        32_000,
        {
            "block_count": 32, "embedding_length": 4096, "feed_forward_length": 14336, "attention.head_count": 32,
            "attention.head_count_kv": 8, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e6,
            "rope.dimension_count": 128, "expert_count": 8, "expert_used_count": 2,
        },
    ),
}  # fmt: skip
# The large model has 1.5 times the small model's layers and four times its experts.
TWINS["gpt-oss-120b"] = replace(
    TWINS["gpt-oss-20b"], keys={**TWINS["gpt-oss-20b"].keys, "block_count": 36, "expert_count": 128}
)


def small(twin: Twin, layers: int) -> Twin:
    """Describe the model with ``layers`` layers of experts and a short vocabulary. Experts keep their bytes.

    llama.cpp reads a DeepSeek-V2 without exactly 27 layers as the large model, which compresses its queries.
    """
    blocks = layers + int(twin.keys.get("leading_dense_block_count", 0))
    large = {"attention.q_lora_rank": 1536} if twin.arch == "deepseek2" else {}
    return replace(twin, vocabulary=SHORT_VOCABULARY, keys={**twin.keys, **large, "block_count": blocks})


def place(name: str, folder: Path, layers: int = 0, experts: str = "") -> Path:
    """Give the path that `build` writes a twin to."""
    parts = [name, f"{layers}-layers" if layers else "", experts.lower(), "twin.gguf"]
    return folder / "-".join(filter(None, parts))


def build(name: str, folder: Path, layers: int = 0, experts: str = "") -> Path:
    """Write the twin unless its file exists, and return its path.

    Args:
        name: a name from `TWINS`.
        folder: folder of the file. A missing folder is made.
        layers: layers with experts of a small twin; 0 for all layers.
        experts: type of the routed experts; empty for the model's own.
    """
    path = place(name, folder, layers, experts)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    twin, part = small(TWINS[name], layers) if layers else TWINS[name], path.with_suffix(".part")
    twin = replace(twin, experts=(experts, experts)) if experts else twin
    tensors = list(_tensors(twin, part))
    writer = _described(twin, f"{name}, {layers} layers" if layers else name, tensors, part)
    for tensor in tensors:
        writer.write_tensor_data(_bytes(tensor, _type(twin, tensor)))
    writer.close()
    part.rename(path)
    return path


def hollow(name: str, folder: Path) -> Path:
    """Write a twin with a hole in place of the weights. This is fast and enough for a plan."""
    path = folder / f"{name}-hollow.gguf"
    tensors = list(_tensors(TWINS[name], path))
    writer = _described(TWINS[name], name, tensors, path)
    writer.close()
    padded = (GGUFWriter.ggml_pad(_size(TWINS[name], tensor)[1], ALIGNMENT) for tensor in tensors)
    with path.open("r+b") as stream:
        stream.truncate(GGUFWriter.ggml_pad(path.stat().st_size, ALIGNMENT) + sum(padded))
    return path


def _described(twin: Twin, title: str, tensors: list[TensorShape], path: Path) -> GGUFWriter:
    """Write everything but the weights; the writer is ready for them."""
    writer = _header(twin, title)
    for tensor in tensors:
        shape, size = _size(twin, tensor)
        kind = GGMLQuantizationType[_type(twin, tensor)]
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _size(twin: Twin, tensor: TensorShape) -> tuple[tuple[int, ...], int]:
    """Give the shape in bytes, and the bytes of the whole tensor."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[_type(twin, tensor)]]
    shape = (*tensor.shape[:-1], tensor.shape[-1] // block * size)
    return shape, int(np.prod(shape))


def _tensors(twin: Twin, scratch: Path) -> Iterator[TensorShape]:
    """List all tensors. llama.cpp allocates every tensor of a probe, so the probe has few experts and layers."""
    layers, experts, used = (int(twin.keys[key]) for key in ("block_count", "expert_count", "expert_used_count"))
    # llama.cpp recognises the small models of this architecture by the number of layers.
    asked = layers if twin.arch == "deepseek2" else int(twin.keys.get("leading_dense_block_count", 0)) + 1
    short = replace(twin, keys={**twin.keys, "block_count": asked, "expert_count": used})
    _finish(_header(short, "short"), scratch)
    for found in _wanted(twin, scratch):
        per_expert = re.search(r"_exps\.|ffn_gate_inp\.", found.name)
        tensor = TensorShape(found.name, (experts, *found.shape[1:])) if per_expert else found
        yield tensor
        if tensor.name.startswith(f"blk.{asked - 1}."):
            for layer in range(asked, layers):
                yield TensorShape(tensor.name.replace(f"blk.{asked - 1}.", f"blk.{layer}."), tensor.shape)


def _wanted(twin: Twin, header: Path) -> Iterator[TensorShape]:
    for tensor in all_tensors(header):
        if re.search(ALWAYS_OPTIONAL, tensor.name) and not tensor.name.split(".")[-2].startswith(twin.keep or ("-",)):
            continue
        if "exp_probs_b" in tensor.name:
            continue
        if "gate_up_exps" in tensor.name:
            experts, rows, columns = tensor.shape
            for kind in ("gate_exps", "up_exps"):
                yield TensorShape(tensor.name.replace("gate_up_exps", kind), (experts, rows // 2, columns))
        else:
            yield tensor


def _type(twin: Twin, tensor: TensorShape) -> str:
    name, columns = tensor.name, tensor.shape[-1]
    if len(tensor.shape) == 1 or name.endswith(".bias") or "ffn_gate_inp" in name:
        return "F32"
    kind = twin.dense
    if "_exps" in name:
        kind = twin.experts["down" in name and int(name.split(".")[1]) % 2]
    elif name.startswith("output") or "attn_v" in name:
        kind = "Q6_K" if twin.dense == "Q4_K" else twin.dense
    if columns % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
        return "Q5_0" if kind == "Q4_K" else "Q8_0"  # llama.cpp's quantiser does the same
    return kind


def _bytes(tensor: TensorShape, kind: str) -> np.ndarray:
    factor = np.float32(DAMPING if re.search(ADDS, tensor.name) else 1.0)
    if kind == "F32":
        return values(tensor, 0) * factor
    rows = int(np.prod(tensor.shape[:-1]))
    tile = quantised(values(TensorShape(tensor.name, (min(rows, TILE_ROWS), tensor.shape[-1])), 0) * factor, kind)
    return np.resize(tile, (rows, tile.shape[1])).reshape(*tensor.shape[:-1], tile.shape[1])


def _header(twin: Twin, name: str) -> GGUFWriter:
    writer = GGUFWriter(None, twin.arch)
    writer.add_name(f"{name} (shape twin: arbitrary weights)")
    writer.add_context_length(8192)
    writer.add_vocab_size(twin.vocabulary)
    for key, value in twin.keys.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"{twin.arch}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>"] + [f"t{i}" for i in range(1, twin.vocabulary)])
    writer.add_token_types([1] * twin.vocabulary)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    return writer


def _finish(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TWINS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=0, help="with experts; 0 for all")
    parser.add_argument("--experts", default="", help="their type, as IQ4_XS; the model's own by default")
    chosen = parser.parse_args()
    print(build(chosen.name, chosen.folder, chosen.layers, chosen.experts))
