"""Errors keep their text on the way from the engine's process to the chat's process."""

from __future__ import annotations

import pickle

import pytest

from edgemoe import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.BadGguf("cut off", "download it again"),
        errors.DoesNotFit(5 << 20, 1 << 20, "vram=1GiB"),
        errors.BackendMismatch("llama-cpp-python==0.4", "llama-cpp-python>=0.3.28,<=0.3.36"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_processes_whole(error: errors.EdgeMoEError) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error) and str(arrived) == str(error) and vars(arrived) == vars(error)
