"""A zoo of tiny random mixture-of-experts models, one per architecture, for tests against plain llama.cpp."""

from __future__ import annotations

from .files import ARCHITECTURES, MIXES, OLD, QUANTS, ROUTED, SPECS, WITH_MTP, build
from .headless import HEADLESS
from .spec import Spec

__all__ = ["ARCHITECTURES", "HEADLESS", "MIXES", "OLD", "QUANTS", "ROUTED", "SPECS", "WITH_MTP", "Spec", "build"]
