"""Training for tests: a test that trains is skipped where torch is not installed."""

from __future__ import annotations

import pytest

from edgemoe.routing.predictor import Tables
from edgemoe.routing.predictor.train import fit
from edgemoe.types import IdArray


def need_torch() -> None:
    """Skip the calling test, or the tests of the calling fixture, without torch."""
    pytest.importorskip("torch", reason='torch is missing: python -m pip install ".[train]"')


def trained(ids: IdArray, experts: int, tokens: IdArray | None = None) -> Tables:
    """Fit a predictor to routing. Without torch the test is skipped."""
    need_torch()
    return fit(ids, experts, tokens=tokens)
