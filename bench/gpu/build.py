"""Build a GPU backend of ggml beside the tested llama-cpp-python, into a folder that belongs to the bench.

python -m bench.gpu.build Vulkan ROCm   # compiles each that has its toolchain; names the reason for the others
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from edgemoe.errors import ConfigError
from edgemoe.setup.build import Order, compiled
from edgemoe.setup.cards import nvidia_driver
from edgemoe.setup.programs import Missing

# Backends by the beginning of their devices' names.
KINDS = {"CUDA": "cuda", "ROCm": "rocm", "Vulkan": "vulkan", "RPC": "rpc"}


def kind_of(device: str) -> str:
    """Name the backend of a device from its name; empty for none of `KINDS`."""
    return next((kind for kind in KINDS if device.upper().startswith(kind.upper())), "")


def build(kind: str, folder: Path, architecture: str = "native", sources: Path | None = None) -> Path:
    """Return the backend's library. An earlier build in the same folder is continued.

    Args:
        kind: one of `KINDS`.
        folder: folder for sources, tools and the build.
        architecture: CUDA architecture, such as 89 or 90. ``native`` asks the card.
        sources: llama-cpp-python's source archive; without one, pip fetches it.

    Raises:
        Missing: the toolchain is missing.
        SetupFailed: the sources are missing, or they do not compile.
        ConfigError: no card reports its architecture.
    """
    driver = nvidia_driver()
    architectures: tuple[str, ...] = ()
    if kind == "CUDA":
        cards = tuple(sorted({number for _, number in driver.cards}))
        architectures = cards if architecture == "native" else (architecture,)
        if not architectures:
            raise ConfigError("there is no card to compile CUDA for", "--architecture names one, such as 89 or 90")
    made = compiled(Order(KINDS[kind], architectures, folder.resolve(), driver, sources))
    for file in made.bundled:
        shutil.copy2(file, made.library.parent)
    return made.library


def main() -> None:
    """Build the named backends as far as possible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=[*KINDS])
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"))
    parser.add_argument("--architecture", default="native", help="of CUDA, such as 89 or 90")
    given = parser.parse_args()
    for kind in given.kinds:
        try:
            print(f"{kind}: {build(kind, given.folder, given.architecture)}", flush=True)
        except Missing as error:
            print(f"{kind}: not compiled here: {error}; {error.hint}", flush=True)


if __name__ == "__main__":
    main()
