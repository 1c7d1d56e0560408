"""The same answers with the hot experts on any ggml device that is at hand: CUDA, ROCm, Vulkan.

    EDGEMOE_DEVICE=Vulkan0 EDGEMOE_DEVICE_LIB=.../libggml-vulkan.so python -m pytest -m slow tests/test_device.py

The library may be left out if llama-cpp-python itself has the device. ``bench/gpu/build.py`` builds one. Each model
runs in its own process, because a driver may end the process.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.gpu.session import Child
from tests.zoo import ARCHITECTURES

DEVICE, LIBRARY = os.environ.get("EDGEMOE_DEVICE", ""), os.environ.get("EDGEMOE_DEVICE_LIB", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DEVICE, reason="set EDGEMOE_DEVICE, and EDGEMOE_DEVICE_LIB where the wheel lacks it"),
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_on_device(name: str, tmp_path: Path) -> None:
    request = {"device": DEVICE, "backend": LIBRARY, "rpc": DEVICE.startswith("RPC")}
    child = Child(request, tmp_path / "log", 600)
    try:
        found = child.ask("zoo", arch=name, device=DEVICE)
    finally:
        child.close()
    assert found["agreed"], found["words"]
