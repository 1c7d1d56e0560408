"""Finds the compilers of a backend: programs of this machine first; for NVIDIA, then the compiler from PyPI.

Nothing needs root. If only the system's packages have a part, the error names the command that installs it.

**Source**: the packages on PyPI are those in the metadata of cuda-toolkit 13.2. CUDA 13 dropped cards below compute
capability 7.5 (its release notes). CUDA 13.2 runs on every driver of CUDA 13 (minor version compatibility).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cards import ROOT, NvidiaDriver
from .programs import Missing, SetupFailed, pip_install, run

CMAKE = ("cmake>=3.28,<5", "ninja>=1.11")
_OLDEST_CMAKE = (3, 21)  # ggml's CMake of HIP needs this version; the other backends accept older versions
TOOLKIT = ("cuda-toolkit[nvcc,cublas,cccl]==13.2.*",)
_TOOLKIT_CUDA, _TOOLKIT_OLDEST = (13, 2), 75
_OLDEST_CUDA = (11, 8)
# cuBLAS opens NVRTC by name when it is first used.
_BUNDLED = ("libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*", "libnvrtc.so.*", "libnvrtc-builtins.so.*")
# Folders of a toolkit with a stand-in for the driver's library. The stand-in is for linking only.
_STUBS = ("lib64/stubs", "targets/*/lib/stubs", "lib/*/stubs")

# Packages by family of Linux distributions, and the command that installs them.
_INSTALL = {
    "debian": "sudo apt install",
    "fedora": "sudo dnf install",
    "arch": "sudo pacman -S",
    "suse": "sudo zypper install",
    "alpine": "sudo apk add",
}
_COMPILER = {
    "debian": "g++",
    "fedora": "gcc-c++",
    "arch": "gcc",
    "suse": "gcc-c++",
    "alpine": "g++ linux-headers",
}
_VULKAN = {
    "debian": "glslc libvulkan-dev spirv-headers",
    "fedora": "glslc vulkan-loader-devel vulkan-headers spirv-headers-devel",
    "arch": "shaderc vulkan-headers vulkan-icd-loader spirv-headers",
    "suse": "shaderc vulkan-devel spirv-headers",
    "alpine": "shaderc vulkan-loader-dev vulkan-headers spirv-headers",
}


@dataclass(frozen=True)
class Toolchain:
    """Compilers and settings for a backend.

    Attributes:
        words: name for people.
        options: definitions for CMake, without ``-D``.
        environment: variables for CMake and the compilers.
        bundled: libraries that must lie beside the backend, because no system folder has them.
    """

    words: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    bundled: tuple[Path, ...] = ()


def install_command(packages: Mapping[str, str], root: Path = ROOT) -> str:
    """Give the command that installs ``packages`` on this Linux distribution; Debian's names if it is unknown."""
    try:
        text = (root / "etc/os-release").read_text()
    except OSError:
        text = ""
    names = " ".join(re.findall(r'^ID(?:_LIKE)?="?([^"\n]*)', text, re.MULTILINE)).split()
    aliases = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "opensuse": "suse", "sles": "suse"}
    family = next((f for name in names if (f := aliases.get(name, name)) in packages), "")
    return f"{_INSTALL[family]} {packages[family]}" if family else f"install {packages['debian']} or similar packages"


def cmake(work: Path) -> tuple[str, str]:
    """Return the paths of CMake and Ninja: of this machine, or from PyPI."""
    found, ninja = shutil.which("cmake"), shutil.which("ninja")
    if found and ninja and _version(found, "--version") >= _OLDEST_CMAKE:
        return found, ninja
    place = work / "tools" / "cmake"
    pip_install(CMAKE, place, work)
    return str(place / "cmake" / "data" / "bin" / "cmake"), str(place / "bin" / "ninja")


def host_compiler(root: Path = ROOT) -> None:
    """Check that there is a C++ compiler.

    Raises:
        Missing: there is no C++ compiler; the hint has the command that installs one.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "c++", "g++", "clang++")):
        hint = "xcode-select --install" if sys.platform == "darwin" else install_command(_COMPILER, root)
        raise Missing("there is no C++ compiler", hint)


def for_kind(
    kind: str,
    architectures: Sequence[str],
    driver: NvidiaDriver,
    work: Path,
    say: Callable[[str], None] = lambda step: None,
) -> Iterator[Toolchain]:
    """Give the toolchains to try for a backend, best first.

    Args:
        kind: backend.
        architectures: architectures of the cards, as in `cards.Card`.
        driver: NVIDIA's driver.
        work: folder for the compiler from PyPI.
        say: called with the name of a step that takes minutes.

    Raises:
        Missing: there is no toolchain; the hint names the packages.
    """
    host_compiler()
    if kind == "cuda":
        yield from _cuda(architectures, driver, work, say)
    elif kind == "rocm":
        yield _rocm(architectures)
    elif kind == "vulkan":
        yield _vulkan()
    else:
        yield Toolchain("the C++ compiler")


def _cuda(
    architectures: Sequence[str], driver: NvidiaDriver, work: Path, say: Callable[[str], None]
) -> Iterator[Toolchain]:
    vmm = driver.cuda != (0, 0)  # ggml-cuda's pools of virtual memory must link with the driver's library
    target = ";".join(f"{number}-real" for number in architectures)
    options = ("GGML_CUDA_GRAPHS=ON", "GGML_CUDA_NCCL=OFF", f"CMAKE_CUDA_ARCHITECTURES={target}")
    if own := nvcc(architectures, driver):
        root = Path(own).resolve().parent.parent
        linked = vmm and any(True for place in _STUBS for _ in root.glob(f"{place}/libcuda.so"))
        places = (f"CMAKE_CUDA_COMPILER={own}", "CMAKE_INSTALL_RPATH_USE_LINK_PATH=ON")
        yield Toolchain(f"NVIDIA's compiler at {own}", (*options, *places, _no_vmm(linked)))
    _check_pypi(architectures, driver)
    say("fetching NVIDIA's compiler from PyPI (about 1 GB)")
    yield _from_pypi(options, vmm, work)


def _from_pypi(options: Sequence[str], vmm: bool, work: Path) -> Toolchain:
    place = work / "tools" / "cuda"
    pip_install(TOOLKIT, place, work)
    root = next(place.glob("nvidia/cu*"))
    bundled = _linkable(root / "lib")
    linked = vmm and _link_driver(root / "lib" / "stubs")
    places = (f"CMAKE_CUDA_COMPILER={root}/bin/nvcc", f"CUDAToolkit_ROOT={root}")
    words = "NVIDIA's compiler from PyPI, {}.{}".format(*_TOOLKIT_CUDA)
    return Toolchain(words, (*options, *places, _no_vmm(linked)), bundled=bundled)


def nvcc(architectures: Sequence[str], driver: NvidiaDriver) -> str:
    """Find an installed compiler of NVIDIA that suits the cards and their driver; give its path, or empty for none."""
    chosen = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    usual = [shutil.which("nvcc", path=place) for place in ("/usr/local/cuda/bin", "/opt/cuda/bin")]
    for path in dict.fromkeys(path for path in (*chosen, *usual) if path):
        try:
            version = _version(path, "--version")
            known = set(re.findall(r"compute_(\d+)", run([path, "--list-gpu-arch"], "nvcc")))
        except SetupFailed:
            continue
        suits_driver = driver.cuda == (0, 0) or version[0] <= driver.cuda[0]
        if version >= _OLDEST_CUDA and suits_driver and known.issuperset(architectures):
            return path
    return ""


def _check_pypi(architectures: Sequence[str], driver: NvidiaDriver) -> None:
    old = [number for number in architectures if int(number) < _TOOLKIT_OLDEST]
    other = "or use Vulkan: edgemoe setup --backend vulkan"
    if old:
        point = f"{old[0][:-1]}.{old[0][-1]}"
        text = f"the card has compute capability {point}, and NVIDIA's compiler on PyPI begins at 7.5"
        raise Missing(text, f"install NVIDIA's CUDA toolkit 12, {other}")
    if (0, 0) < driver.cuda < (_TOOLKIT_CUDA[0], 0):
        text = "the NVIDIA driver supports CUDA {}.{}, and the compiler on PyPI needs a driver of CUDA 13.0"
        raise Missing(text.format(*driver.cuda), f"update the driver (580 or newer), {other}")


def _linkable(folder: Path) -> tuple[Path, ...]:
    """Link the libraries of a wheel to names that a linker looks for; return the libraries that the backend needs."""
    kept = tuple(sorted(path for pattern in _BUNDLED for path in folder.glob(pattern)))
    for path in kept:
        link = folder / f"{path.name.partition('.so')[0]}.so"
        if not link.exists():
            link.symlink_to(path.name)
    return kept


def _link_driver(stubs: Path) -> bool:
    """Let the linker find the driver's library, which the wheels lack; False if this process has not loaded it."""
    loaded = re.search(r"\S+/libcuda\.so\S*", Path("/proc/self/maps").read_text())
    if not loaded:
        return False
    stubs.mkdir(exist_ok=True)
    link = stubs / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(loaded[0])
    return True


def _no_vmm(linked: bool) -> str:
    return f"GGML_CUDA_NO_VMM={'OFF' if linked else 'ON'}"


def _vulkan() -> Toolchain:
    sdk = os.environ.get("VULKAN_SDK", "")
    if not shutil.which("glslc") and not (sdk and shutil.which("glslc", path=f"{sdk}/bin")):
        raise Missing("there is no glslc, which compiles Vulkan's shaders", needs("vulkan"))
    return Toolchain("glslc and the C++ compiler")


def needs(kind: str, root: Path = ROOT) -> str:
    """Name the packages that a backend needs, if possible as the command of this distribution."""
    toolkits = {"cuda": "install NVIDIA's CUDA toolkit", "rocm": "install ROCm 6.1 or newer with hipBLAS and rocBLAS"}
    return toolkits.get(kind) or install_command(_VULKAN if kind == "vulkan" else _COMPILER, root)


def rocm_root() -> Path | None:
    """Find the folder of AMD's toolkit; None if there is none."""
    places = [os.environ.get("ROCM_PATH"), "/opt/rocm", "/usr"]
    return next((Path(place) for place in places if place and Path(place, "bin", "hipcc").exists()), None)


def _rocm(architectures: Sequence[str]) -> Toolchain:
    root = rocm_root()
    if root is None:
        raise Missing("there is no hipcc, AMD's compiler", f"{needs('rocm')}, or use --backend vulkan")
    compiler = root / "llvm" / "bin" / "clang"
    environment = {"ROCM_PATH": str(root)} | ({"HIPCXX": str(compiler)} if compiler.exists() else {})
    targets = (f"GPU_TARGETS={';'.join(architectures)}",) if architectures else ()
    return Toolchain(f"AMD's compiler at {root}", (*targets, "CMAKE_INSTALL_RPATH_USE_LINK_PATH=ON"), environment)


def _version(program: str, option: str) -> tuple[int, int]:
    found = re.search(r"(?:release|version) (\d+)\.(\d+)", run([program, option], Path(program).name))
    return (int(found[1]), int(found[2])) if found else (0, 0)
