"""EdgeMoE: Mixture-of-Experts inference with single experts hot on the GPU and cold on the CPU.

The public names are resolved on first use, so ``import edgemoe`` loads neither llama_cpp nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import OffloadConfig, SimConfig
    from .engine import Llama
    from .errors import (
        BackendMismatch,
        BadGguf,
        ConfigError,
        DoesNotFit,
        EdgeMoEError,
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
}

__all__ = [
    "BackendMismatch",
    "BadGguf",
    "ConfigError",
    "DoesNotFit",
    "EdgeMoEError",
    "ExpertStats",
    "Llama",
    "ModelNotFound",
    "OffloadConfig",
    "SimConfig",
    "UnsupportedModel",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
