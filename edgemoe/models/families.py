"""Architectures with expert layers that we can split by expert. tests/test_parity.py runs each of them."""

from __future__ import annotations

import re

from .gguf import EXPERTS, GgufFile

TESTED = frozenset({
    "afmoe", "arctic", "bailingmoe", "bailingmoe2", "bailingmoe3", "cohere2moe", "dbrx", "deepseek", "deepseek2",
    "deepseek2-ocr", "deepseek32", "deepseek4", "dots1", "dots3note", "ernie4_5-moe", "exaone-moe", "gemma4",
    "glm-dsa", "glm4moe", "gpt-oss", "granite_swa", "granitehybrid", "granitemoe", "grok", "grovemoe", "hunyuan-moe",
    "hy_v3", "hy_v4", "jamba", "kimi-k3", "kimi-linear", "laguna", "lfm2moe", "llama", "llama4", "maple", "mellum",
    "mimo2", "minimax-01", "minimax-m2", "minimax-m3", "mistral4", "nemotron_h_moe", "olmoe", "phimoe", "qwen2moe",
    "qwen35moe", "qwen3moe", "qwen3next", "qwen3vlmoe", "smallthinker", "step35",
})  # fmt: skip
# In these architectures llama.cpp applies the experts' scales if a file has them; the others ignore scales. Scales of
# gate and up act between the projections: such layers run as in llama.cpp. Scales of down act after the experts.
SCALED = frozenset({
    "cohere2moe", "deepseek32", "dots3note", "glm-dsa", "hy_v3", "llama", "mellum", "nemotron_h_moe", "qwen35moe",
    "qwen3moe", "qwen3next",
})  # fmt: skip
_SCALE = re.compile(r"^blk\.(\d+)\.ffn_(?:gate|up)_exps\.scale$")


def layers_split(file: GgufFile) -> tuple[int | None, str]:
    """Count the layers that will be split by expert, with a sentence about the others.

    The count is None if no test has run this architecture.
    """
    layers = {int(match[1]) for name in file.run_tensors if (match := EXPERTS.match(name))}
    if file.architecture not in TESTED:
        return None, f"{file.architecture} was never tried: layers that are not understood run as in llama.cpp"
    scaled = {int(match[1]) for name in file.run_tensors if (match := _SCALE.match(name))}
    whole = layers & scaled if file.architecture in SCALED else set()
    if not whole:
        return len(layers), f"all {len(layers)} layers, by a test of this architecture"
    why = "their experts have scales"
    return len(layers) - len(whole), f"{len(whole)} of {len(layers)} layers run as in llama.cpp: {why}"
