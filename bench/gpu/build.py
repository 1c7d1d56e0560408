"""Finds a device for ggml, or builds a GPU backend from the sources of the tested llama-cpp-python.

python -m bench.gpu.build Vulkan ROCm   # compiles those whose toolchain is there, and says of the others why not
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from edgemoe.engine import host
from edgemoe.errors import EdgeMoEError

ALONE = ("GGML_BACKEND_DL=ON", "GGML_NATIVE=OFF", "GGML_BUILD_TESTS=OFF", "GGML_BUILD_EXAMPLES=OFF")


class NoToolchain(EdgeMoEError):
    """A backend cannot be built on this machine."""


@dataclass(frozen=True)
class Kind:
    """A backend that can be built alone.

    Attributes:
        target: of CMake, and the library's name.
        options: of CMake.
        compiler: program without which it cannot be built.
        needs: what to install.
    """

    target: str
    options: tuple[str, ...]
    compiler: str
    needs: str


KINDS = {
    "CUDA": Kind("ggml-cuda", ("GGML_CUDA=ON", "GGML_CUDA_GRAPHS=ON"), "nvcc", "NVIDIA's CUDA toolkit with cuBLAS"),
    "ROCm": Kind("ggml-hip", ("GGML_HIP=ON",), "hipcc", "AMD's ROCm with hipBLAS and rocBLAS"),
    "Vulkan": Kind(
        "ggml-vulkan", ("GGML_VULKAN=ON",), "glslc", "glslc, Vulkan headers of 2024 or later, SPIRV-Headers"
    ),
    "RPC": Kind("ggml-rpc", ("GGML_RPC=ON",), "c++", "a C++ compiler"),
}


def kind_of(device: str) -> str:
    """Which backend gives a device of that name, empty for none of `KINDS`."""
    return next((kind for kind in KINDS if device.upper().startswith(kind.upper())), "")


def compiler(kind: str) -> str | None:
    """Path of the compiler that a backend needs, None where there is none."""
    name = KINDS[kind].compiler
    usual = {"nvcc": "/usr/local/cuda/bin", "hipcc": "/opt/rocm/bin"}.get(name, "")
    chosen = os.environ.get("CUDACXX") if name == "nvcc" else None
    return chosen or shutil.which(name) or shutil.which(name, path=usual)


def build(kind: str, folder: Path, architecture: str = "native", sources: Path | None = None) -> Path:
    """The backend's library, built unless it is there: minutes on many cores, an hour on two for CUDA.

    Args:
        kind: of `KINDS`.
        folder: for sources and the build; what an interrupted build has compiled is used.
        architecture: of CUDA, such as 89 or 90; ``native`` asks the card.
        sources: llama-cpp-python's source archive; without one, pip fetches it.

    Raises:
        NoToolchain: there is no compiler, or CMake misses something else.
        EdgeMoEError: there are no sources, or they do not compile.
    """
    out = folder / f"build-{kind.lower()}"
    if found := library(kind, out):
        return found
    wanted = KINDS[kind]
    tool = compiler(kind)
    if tool is None:
        raise NoToolchain(f"{kind} cannot be built: there is no {wanted.compiler}", f"install {wanted.needs}")
    flags = [f"-D{option}" for option in (*ALONE, *wanted.options)]
    if kind == "CUDA":
        flags += [f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", f"-DCMAKE_CUDA_COMPILER={tool}"]
        if not _driver_stub(Path(tool)):
            flags += ["-DGGML_CUDA_NO_VMM=ON"]  # the toolkit has no stand-in for the driver to link with
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    source = unpacked(folder, sources)
    configure = ["cmake", *generator, "-S", str(source), "-B", str(out), "-DCMAKE_BUILD_TYPE=Release", *flags]
    try:
        _run(configure, kind)
        if kind == "Vulkan" and not _vulkan_is_recent(out):
            raise EdgeMoEError("Vulkan cannot be built: its headers do not know VK_EXT_layer_settings")
    except EdgeMoEError as error:
        shutil.rmtree(out, ignore_errors=True)  # what was not found is not remembered as missing
        raise NoToolchain(str(error), f"install {wanted.needs}") from error
    _run(["cmake", "--build", str(out), "--target", wanted.target, "-j", str(os.cpu_count() or 1)], kind)
    found = library(kind, out)
    if found is None:
        raise EdgeMoEError(f"{kind} was built, but there is no lib{wanted.target}")
    return found


def library(kind: str, folder: Path) -> Path | None:
    """A backend built before."""
    return next(iter(sorted(folder.rglob(f"*{KINDS[kind].target}.so"))), None)


def unpacked(folder: Path, archive: Path | None = None) -> Path:
    """ggml's sources out of llama-cpp-python's archive, which pip fetches where it is not given.

    Raises:
        EdgeMoEError: pip cannot fetch it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp/ggml"), None)
    if found is None:
        if archive is None:
            fetch = ["download", "--no-deps", "--no-binary", "llama-cpp-python", host.version(), "-d", str(folder)]
            _run([sys.executable, "-m", "pip", *fetch], "the source archive")
            archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        found = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp/ggml"))
        (found / "ggml.pc.in").touch()  # asked for by its CMake, left out of the archive
    return found


def _driver_stub(tool: Path) -> bool:
    root = tool.resolve().parent.parent
    return any(
        True for pattern in ("lib*/stubs/libcuda.so", "targets/*/lib/stubs/libcuda.so") for _ in root.glob(pattern)
    )


def _vulkan_is_recent(out: Path) -> bool:
    """Whether the headers that CMake found have what ggml uses but does not ask for."""
    found = re.search(r"^Vulkan_INCLUDE_DIR:PATH=(.+)$", (out / "CMakeCache.txt").read_text(), re.MULTILINE)
    core = Path(found[1], "vulkan", "vulkan_core.h") if found else None
    return core is not None and core.exists() and "VK_EXT_layer_settings" in core.read_text(errors="replace")


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except FileNotFoundError as error:
        raise EdgeMoEError(f"{what} needs {command[0]}, which is not there", "install it") from error
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if "rror" in line][:3] or done.stdout.splitlines()[-3:]
        raise EdgeMoEError(f"{what} failed ({command[0]} ended with {done.returncode}): {' | '.join(said)}")


def main() -> None:
    """Build what was named, where that is possible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=[*KINDS])
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"))
    parser.add_argument("--architecture", default="native", help="of CUDA, such as 89 or 90")
    given = parser.parse_args()
    for kind in given.kinds:
        try:
            print(f"{kind}: {build(kind, given.folder, given.architecture)}", flush=True)
        except NoToolchain as error:
            print(f"{kind}: not compiled here: {error}; {error.hint}", flush=True)


if __name__ == "__main__":
    main()
