"""EdgeMoE: Mixture-of-Experts inference with single experts hot on the GPU and cold on the CPU.

The public names are resolved on first use, so ``import edgemoe`` loads neither llama_cpp nor torch. Every other name is
looked up in llama_cpp: ``from edgemoe import Llama, LlamaGrammar`` and ``import edgemoe as llama_cpp`` work.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import OffloadConfig, SimConfig
    from .engine import Llama
    from .errors import (
        BackendMismatch,
        BadGguf,
        Cancelled,
        ComputeFailed,
        ConfigError,
        ContextFailed,
        DoesNotFit,
        EdgeMoEError,
        LoadFailed,
        ModelNotFound,
        UnsupportedModel,
    )
    from .types import ExpertStats

__version__ = "0.1.0"

_HOMES = {
    "Llama": "engine",
    "OffloadConfig": "config",
    "SimConfig": "config",
    "ExpertStats": "types",
    "EdgeMoEError": "errors",
    "ModelNotFound": "errors",
    "BadGguf": "errors",
    "UnsupportedModel": "errors",
    "DoesNotFit": "errors",
    "BackendMismatch": "errors",
    "ConfigError": "errors",
    "ContextFailed": "errors",
    "LoadFailed": "errors",
    "ComputeFailed": "errors",
    "Cancelled": "errors",
}

__all__ = [
    "BackendMismatch",
    "BadGguf",
    "Cancelled",
    "ComputeFailed",
    "ConfigError",
    "ContextFailed",
    "DoesNotFit",
    "EdgeMoEError",
    "ExpertStats",
    "Llama",
    "LoadFailed",
    "ModelNotFound",
    "OffloadConfig",
    "SimConfig",
    "UnsupportedModel",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    # For ``from edgemoe import models`` Python calls this function before it looks for the module.
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is None:
        llama_cpp = importlib.import_module("llama_cpp")
        if hasattr(llama_cpp, name):
            return getattr(llama_cpp, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    theirs = dir(sys.modules["llama_cpp"]) if "llama_cpp" in sys.modules else []
    return sorted({*globals(), *__all__, *(name for name in theirs if not name.startswith("_"))})
