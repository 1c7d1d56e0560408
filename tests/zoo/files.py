"""Write the model files of the zoo."""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType

from edgemoe.engine import host

from .headless import HEADLESS
from .hybrids import HYBRIDS
from .shapes import tensors_of
from .sparse import SPARSE
from .spec import NARROW, VOCABULARY, WIDE, Geometry, Spec, metadata
from .transformers import TRANSFORMERS
from .weights import encoded, experts_by_token

SPECS: dict[str, Spec] = TRANSFORMERS | HYBRIDS | SPARSE
"""Every architecture of the zoo by its name there."""

ARCHITECTURES: tuple[str, ...] = tuple(SPECS)
"""Names of the zoo's models: llama.cpp's architecture, with a suffix where there are two forms of one."""

WITH_MTP: tuple[str, ...] = (
    *("qwen35moe", "qwen3next", "glm4moe", "deepseek2-v3", "deepseek32", "glm-dsa", "mimo2", "hy_v3", "cohere2moe"),
    "step35",
)
"""Those that may be built with an MTP head."""

QUANTS: tuple[str, ...] = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0"),
)
"""ggml types of routed experts."""

MIXES: tuple[str, ...] = ("Q4_K/Q6_K", "Q3_K/Q5_K", "IQ2_XXS/Q2_K", "Q4_0/Q8_0")
"""As in files called Q4_K_M: the second type is that of the down projection in every second layer."""

ROUTED = r"ffn_(gate|up|down|gate_up)_(ch)?exps\.weight$"
"""The tensors of routed experts."""

OLD = host.version() == host.OLDEST.replace(">=", "==")
"""Whether the tests run with the oldest llama-cpp-python that works."""

ABORTS = ("deepseek32", "mamba2")
"""On these, and on MTP heads, the oldest llama-cpp-python fails an assertion of its own, with or without us."""

_SCALES = r"ffn_(gate|up|down)_exps\.scale$"  # NVFP4 comes with a scale per expert
_HALF = r"(attn_(q|k|v|qkv|output|gate)|ffn_(gate|up|down)|_shexp|token_embd|^output)\.weight$"
_EDITION = zlib.crc32(b"".join(source.read_bytes() for source in sorted(Path(__file__).parent.glob("*.py"))))
"""Part of the file name, so that a folder kept from an older zoo is no trap."""


def build(name: str, folder: Path, quant: str | None = None, seed: int = 0, mtp: bool = False) -> Path:
    """Write the model ``name`` into ``folder`` unless it is there, and return its path.

    Args:
        name: a name from `ARCHITECTURES`, or a dense architecture from `HEADLESS`.
        folder: folder of the file. A missing folder is made.
        quant: a name from `QUANTS` or `MIXES`, or None for the usual type of this architecture's files.
        seed: seed of all weights.
        mtp: True adds an MTP head after the last layer, for architectures in `WITH_MTP`.

    Raises:
        KeyError: the name is unknown.
        RuntimeError: llama.cpp does not know the architecture, or wants other metadata.
    """
    spec = SPECS[name] if name in SPECS else HEADLESS[name]
    if OLD and (name in ABORTS or mtp):
        pytest.skip(f"{host.version()} fails an assertion of its own for {name}")
    types = (quant or spec.type).split("/")
    tag = (quant or "default").replace("/", "+") + ("-mtp" if mtp else "")
    path = folder / f"{name}-{tag}-{seed}-{_EDITION:08x}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    widths = _widths(types)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    _write(_header(spec, widths, name, mtp), unfinished)
    keep = f"{spec.keep}|{_SCALES}" if "NVFP4" in types else spec.keep
    writer = _header(spec, widths, name, mtp)
    for tensor in tensors_of(replace(spec, keep=keep), unfinished, mtp):
        if "tid2eid" in tensor.name:
            writer.add_tensor(tensor.name, experts_by_token(tensor, spec.experts, seed))
            continue
        kind = _type(tensor.name, len(tensor.shape), types)
        writer.add_tensor(tensor.name, encoded(tensor, kind, seed), raw_dtype=GGMLQuantizationType[kind])
    _write(writer, unfinished)
    unfinished.replace(path)
    return path


def _widths(types: list[str]) -> Geometry:
    blocks = [GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] for kind in types]
    return WIDE if max(blocks) > 32 else NARROW


def _type(tensor: str, dims: int, types: list[str]) -> str:
    """Choose the type of a tensor: ``types`` for routed experts, halves for plain matrices, floats for the rest."""
    if re.search(ROUTED, tensor):
        layer = int(tensor.split(".")[1])
        return types[-1] if "down" in tensor and layer % 2 else types[0]
    return "F16" if dims == 2 and re.search(_HALF, tensor) else "F32"


def _header(spec: Spec, widths: Geometry, name: str, mtp: bool) -> GGUFWriter:
    writer = GGUFWriter(None, spec.arch)
    writer.add_name(f"zoo {name}")
    writer.add_quantization_version(2)
    for key, value in metadata(spec, widths, mtp).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
            writer.add_key_value(key, value, kinds[type(value)])
    _add_vocabulary(writer)
    return writer


def _add_vocabulary(writer: GGUFWriter) -> None:
    """Make a byte-level BPE vocabulary that can tokenise any text."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}  # GPT-2's stand-ins
    pairs = ["t h", "i n", "e r", "a n", "o u", "s t"]
    tokens = [letters[byte] for byte in range(256)] + [pair.replace(" ", "") for pair in pairs]
    tokens += ["<|begin|>", "<|end|>"]
    assert len(tokens) == VOCABULARY
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (VOCABULARY - 2) + [TokenType.CONTROL] * 2)
    writer.add_token_merges(pairs)
    writer.add_bos_token_id(VOCABULARY - 2)
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_add_bos_token(False)


def _write(writer: GGUFWriter, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
