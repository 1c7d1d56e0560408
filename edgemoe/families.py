"""Architectures whose expert layers are known to be split by expert: each is run by tests/test_parity.py."""

from __future__ import annotations

from .gguf import EXPERTS, GgufFile

TESTED = frozenset({
    "afmoe", "arctic", "bailingmoe", "bailingmoe2", "bailingmoe3", "cohere2moe", "dbrx", "deepseek", "deepseek2",
    "deepseek2-ocr", "deepseek32", "deepseek4", "dots1", "dots3note", "ernie4_5-moe", "exaone-moe", "gemma4",
    "glm-dsa", "glm4moe", "gpt-oss", "granite_swa", "granitehybrid", "granitemoe", "grok", "grovemoe", "hunyuan-moe",
    "hy_v3", "hy_v4", "jamba", "kimi-k3", "kimi-linear", "laguna", "lfm2moe", "llama", "llama4", "maple", "mellum",
    "mimo2", "minimax-01", "minimax-m2", "minimax-m3", "mistral4", "nemotron_h_moe", "olmoe", "phimoe", "qwen2moe",
    "qwen35moe", "qwen3moe", "qwen3next", "qwen3vlmoe", "smallthinker", "step35",
})  # fmt: skip
# llama.cpp scales their results behind the router's choice: such layers run as they are.
WHOLE_TYPES = {"NVFP4"}


def layers_split(file: GgufFile) -> tuple[int | None, str]:
    """How many layers will be split by expert, and what becomes of the others; None where no test has tried."""
    types: dict[int, set[str]] = {}
    for name, tensor in file.tensors.items():
        if match := EXPERTS.match(name):
            types.setdefault(int(match[1]), set()).add(tensor.type_name)
    if file.architecture not in TESTED:
        return None, f"{file.architecture} was never tried: layers that are not understood run as in llama.cpp"
    whole = [layer for layer, found in types.items() if found & WHOLE_TYPES]
    if not whole:
        return len(types), f"all {len(types)} layers, by a test of this architecture"
    kind = ", ".join(sorted(WHOLE_TYPES))
    return len(types) - len(whole), f"{len(whole)} of {len(types)} layers run as in llama.cpp: {kind}"
