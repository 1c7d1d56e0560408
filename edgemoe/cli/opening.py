"""Turn the command line's options into an engine: the file, its settings, its sampling."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import context_length
from ..errors import ConfigError
from ..text.console import show_progress

if TYPE_CHECKING:
    from ..config import OffloadConfig
    from ..worker.protocol import Engine

OpenEngine = Callable[..., "Engine"]

DEMO = "demo"
# Tokens of the context, unless the planner chooses: AUTO, the default of the chat.
CONTEXT, AUTO = 4096, "auto"
# Options that are fields of OffloadConfig.
OPTIONS = ("device", "rpc", "vram", "policy", "cache", "kv", "flash", "speculative")
# Rate of a PCIe 4.0 x16 link in practice, so that the sim device is no faster than a real GPU.
SIM_BANDWIDTH = 20 * 10**9


def add_context(group: Any, default: str) -> None:
    """Add the options of a context to a group of options; ``default`` says which length is taken without one."""
    group.add_argument(
        "--ctx",
        type=_length,
        metavar="N",
        help="context in tokens, also as 32k, or auto: as long as the model was trained for, unless that costs much "
        f"speed or memory ({default})",
    )
    group.add_argument(
        "--kv",
        metavar="TYPE",
        help="type of the KV cache: f16, q8_0 (half the memory), q4_0 (a quarter), or that of keys and that of values: "
        "q8_0,q4_0 (f16)",
    )
    group.add_argument(
        "--flash",
        metavar="WHEN",
        help="flash attention: on, off, or auto: for long contexts and quantised values, if the device computes it "
        "(auto)",
    )


def _length(text: str) -> int | str:
    try:
        return context_length(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error}: {error.hint}") from error


def open_in_process(*arguments: Any, **keywords: Any) -> Engine:
    """Open a model in this process, with the arguments of :class:`edgemoe.Llama`."""
    from ..engine import Llama

    engine: Engine = Llama(*arguments, **keywords)
    return engine


def engine_keywords(parsed: argparse.Namespace, name: str) -> dict[str, Any]:
    """Make the keywords of :class:`edgemoe.Llama` from the options."""
    keywords: dict[str, Any] = {"n_ctx": parsed.ctx or CONTEXT, "offload": offload_of(parsed, name)}
    if parsed.threads is not None:
        keywords["n_threads"] = parsed.threads
    if parsed.seed is not None:
        keywords["seed"] = parsed.seed
    return keywords


def offload_of(parsed: argparse.Namespace, name: str) -> OffloadConfig:
    """Choose each setting: the command line first, then the catalogue's hint for model ``name``, then the default."""
    from dataclasses import asdict

    from ..config import OffloadConfig, SimConfig
    from ..models.find import entry

    model = entry(name)
    hints = asdict(model.offload) if model else {}
    given = {option: getattr(parsed, option) for option in OPTIONS}
    layers: tuple[Mapping[str, Any], ...] = (hints, given)
    config = OffloadConfig(**{k: value for layer in layers for k, value in layer.items() if value is not None})
    if name != DEMO:
        return config
    if parsed.device is None and not parsed.rpc and not _gpus():
        config = replace(config, device="sim")
    if config.device == "sim":
        config = replace(config, sim=SimConfig(bandwidth=SIM_BANDWIDTH))
    return config


def _gpus() -> list[str]:
    from ..engine import devices

    return list(devices())


def sampling_of(
    parsed: argparse.Namespace, name: str, path: Path, kept: Mapping[str, float | int] | None = None
) -> dict[str, float | int]:
    """Choose each setting: the command line first, then the user's preset ``kept``, then the publisher's."""
    from ..models.find import recommended_sampling

    recommended = recommended_sampling(name, path)
    given = {"max_tokens": parsed.max_tokens, "temperature": parsed.temperature}
    layers: tuple[Mapping[str, Any], ...] = (recommended, kept or {}, given)
    return {name: value for layer in layers for name, value in layer.items() if value is not None}


def find_model(model: str) -> Path:
    """Find the file of MODEL. The demo model is built if it is missing."""
    from ..models.find import find

    return find(model, _build_demo)


def _build_demo() -> Path:
    from ..models.demo import build_demo

    try:
        return build_demo(progress=show_progress)
    finally:
        show_progress(1.0, "")
