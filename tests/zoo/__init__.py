"""A zoo of tiny random mixture-of-experts models, one per architecture, for tests against plain llama.cpp."""

from __future__ import annotations

from .files import ARCHITECTURES, MIXES, QUANTS, ROUTED, SPECS, build
from .spec import Spec

__all__ = ["ARCHITECTURES", "MIXES", "QUANTS", "ROUTED", "SPECS", "Spec", "build"]
