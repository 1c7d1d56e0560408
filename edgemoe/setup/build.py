"""Compiles one backend of ggml alone, from the source archive of the llama-cpp-python that is installed.

The folder of the build is fixed, so a killed build continues at the next start. A lock keeps a second process out of
the folder. The compilers inherit the lock, so a compiler that outlives its parent still holds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import IO

from .. import locks
from .cards import NvidiaDriver
from .installed import LIBRARIES, PACKAGE, remove_folder, version
from .programs import Missing, SetupFailed, cause, pip, run
from .toolchain import Toolchain, cmake, for_kind, needs

Progress = Callable[[float, str], None]
KINDS = {
    "cuda": ("GGML_CUDA=ON",),
    "vulkan": ("GGML_VULKAN=ON",),
    "rocm": ("GGML_HIP=ON",),
    "rpc": ("GGML_RPC=ON", "GGML_RPC_RDMA=OFF"),
}
_ALONE = (
    *("CMAKE_BUILD_TYPE=Release", "GGML_BACKEND_DL=ON", "GGML_NATIVE=OFF", "GGML_CCACHE=OFF"),
    *("GGML_BUILD_TESTS=OFF", "GGML_BUILD_EXAMPLES=OFF"),
    *("CMAKE_BUILD_WITH_INSTALL_RPATH=ON", "CMAKE_INSTALL_RPATH=$ORIGIN"),
)
_STEP = re.compile(r"^\[(\d+)/(\d+)\] (.*)")
# Memory that a compiler needs for the largest files of ggml-cuda.
_JOB_BYTES = 2 << 30
# Files with many variants of a kernel. Such a file takes about _HEAVY_STEPS times as long as others (measured with CUDA
# 13.2, one architecture).
_HEAVY = re.compile(r"template-instances/|fattn|mmq|mmf|mmvq|top-k|argsort|cumsum")
_HEAVY_STEPS = 4.0
# Time for the compilers to stop before they are killed.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Order:
    """A backend to compile.

    Attributes:
        kind: one of `KINDS`.
        architectures: architectures of the cards, such as 89 or gfx1100; empty if the backend does not depend on them.
        work: folder of sources, tools and builds.
        driver: NVIDIA's driver.
        archive: source archive of llama-cpp-python; if it is None, pip downloads it.
    """

    kind: str
    architectures: tuple[str, ...]
    work: Path
    driver: NvidiaDriver = field(default_factory=NvidiaDriver)
    archive: Path | None = None


@dataclass(frozen=True)
class Result:
    """A compiled backend.

    Attributes:
        library: file of the backend, in the folder of the build.
        bundled: libraries that must lie beside the backend.
    """

    library: Path
    bundled: tuple[Path, ...]


def compiled(order: Order, progress: Progress = lambda share, step: None) -> Result:
    """Compile a backend. That takes minutes; for CUDA on few processors, an hour or more.

    Args:
        order: backend, architectures and folder.
        progress: called with the share that is done in 0..1 and the step in words.

    Raises:
        Missing: there is no toolchain; the hint names the packages.
        SetupFailed: a step failed.
    """
    order.work.mkdir(parents=True, exist_ok=True)
    with locked(order.work / "lock") as lock:
        progress(0.0, "looking for a compiler")
        toolchains = for_kind(
            order.kind, order.architectures, order.driver, order.work, lambda step: progress(0.0, step)
        )
        first = next(toolchains)  # name a missing compiler before any download
        progress(0.0, "fetching the sources")
        source = unpacked(order.work, order.archive)
        toolchain, ninja, out = _configured(order, chain((first,), toolchains), source, progress)
        target = LIBRARIES[order.kind]
        _compile([ninja, "-C", str(out), "-j", str(_jobs(order.kind)), target], toolchain, lock, progress)
        library = next((path for name in (f"lib{target}.so", f"lib{target}.dylib") for path in out.rglob(name)), None)
        if library is None:
            raise SetupFailed(f"{order.kind} was compiled, but there is no lib{target}")
    return Result(library, toolchain.bundled)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Hold the lock of a folder of builds.

    Raises:
        SetupFailed: another process holds the lock.
    """
    with path.open("a+") as file:
        try:
            locks.lock(file, wait=False)
        except OSError as error:
            file.seek(0)
            text = f"another set-up is at work (process {file.read().strip() or 'unknown'})"
            raise SetupFailed(text, "wait for it, or end that process") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def unpacked(work: Path, archive: Path | None = None) -> Path:
    """Unpack the archive, and return the folder of ggml's sources. Without ``archive``, pip downloads it.

    Raises:
        SetupFailed: pip cannot download the archive.
    """
    place = work / f"{PACKAGE.replace('-', '_')}-{version()}"
    done = place / ".complete"
    if not done.exists():
        archive = archive or _fetched(work)
        remove_folder(place)
        with tarfile.open(archive) as opened:
            opened.extractall(work, filter="data")
        (place / "vendor/llama.cpp/ggml/ggml.pc.in").touch()  # CMake asks for this file, which the archive lacks
        done.touch()
    return place / "vendor/llama.cpp/ggml"


def _fetched(work: Path) -> Path:
    wanted = f"{PACKAGE}=={version()}"
    options = ["download", "--quiet", "--no-deps", "--no-binary", PACKAGE, wanted, "-d", str(work)]
    run([*pip(work), *options], f"fetching the sources of {wanted}")
    return next(work.glob(f"*-{version()}.tar.gz"))


def _configured(
    order: Order, toolchains: Iterable[Toolchain], source: Path, progress: Progress
) -> tuple[Toolchain, str, Path]:
    """Run CMake until it accepts a toolchain; return this toolchain, Ninja's path and the folder of the build."""
    program, ninja = cmake(order.work)
    failure: SetupFailed | None = None
    for toolchain in toolchains:
        progress(0.0, f"preparing, with {toolchain.words}")
        options = [f"-D{option}" for option in (*_ALONE, *KINDS[order.kind], *toolchain.options)]
        out = _folder(order, options)
        # Vulkan's shader compiler is a project of its own, which looks for both programs on the path.
        places = (str(Path(program).parent), str(Path(ninja).parent), os.environ.get("PATH", ""))
        environment = {**toolchain.environment, "PATH": os.pathsep.join(places)}
        command = [program, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", str(source), "-B", str(out)]
        try:
            run([*command, *options], order.kind, environment)
            if order.kind == "vulkan" and not _vulkan_is_recent(out):
                raise Missing("the Vulkan headers are from before 2024", "install Vulkan's SDK and set VULKAN_SDK")
            return replace(toolchain, environment=environment), ninja, out
        except SetupFailed as error:
            remove_folder(out)  # otherwise CMake would keep the failure in its cache
            failure = error
    assert failure is not None
    raise Missing(str(failure), failure.hint or needs(order.kind)) from failure


def _folder(order: Order, options: Sequence[str]) -> Path:
    """Name the folder of a build. Builds with other options have other folders and stay untouched."""
    digest = hashlib.sha256("\n".join(options).encode()).hexdigest()[:8]
    return order.work / "-".join(["build", order.kind, version(), *order.architectures, digest])


def _vulkan_is_recent(out: Path) -> bool:
    """Tell whether the headers that CMake found have an extension that ggml uses without a check."""
    found = re.search(r"^Vulkan_INCLUDE_DIR:PATH=(.+)$", (out / "CMakeCache.txt").read_text(), re.MULTILINE)
    core = Path(found[1], "vulkan", "vulkan_core.h") if found else None
    return core is not None and core.exists() and "VK_EXT_layer_settings" in core.read_text(errors="replace")


def _jobs(kind: str) -> int:
    """Count the compilers to run at a time: one per processor, fewer if memory is short for big files."""
    from .. import limits  # imported late: it loads psutil, and the help text does not need it

    by_memory = limits.memory().available // _JOB_BYTES if kind in ("cuda", "rocm") else limits.processors().logical
    return max(1, min(limits.processors().logical, by_memory))


def _compile(command: Sequence[str], toolchain: Toolchain, lock: IO[str], progress: Progress) -> None:
    """Run Ninja. If this process is stopped, the compilers stop; if it is killed, they keep the lock."""
    environment = os.environ | dict(toolchain.environment)
    pending = Remaining(run([*command, "-n"], "ninja").splitlines())
    said: list[str] = []
    with subprocess.Popen(
        [*command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        pass_fds=[lock.fileno()],
        start_new_session=True,
    ) as ninja:
        try:
            assert ninja.stdout is not None
            for line in ninja.stdout:
                said.append(line)
                if match := _STEP.match(line):
                    progress(*pending.after(int(match[1]), int(match[2]), match[3], time.monotonic()))
        except BaseException:
            _stop(ninja)
            raise
    if ninja.returncode:
        raise SetupFailed(f"the compiler failed: {cause(''.join(said[-200:]))}")


def _stop(ninja: subprocess.Popen[str]) -> None:
    """End the compilers, and wait for their end, so that the next set-up finds the folder free."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(ninja.pid, signal.SIGTERM)
        try:
            ninja.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(ninja.pid, signal.SIGKILL)


class Remaining:
    """Estimates the time left of a build from the steps that are done."""

    def __init__(self, steps: Sequence[str]) -> None:
        """Weigh the ``steps`` that Ninja lists. The list is incomplete if CMake must first look for files again."""
        weights = [_weight(match[3]) for line in steps if (match := _STEP.match(line))]
        self._steps, self._total = len(weights), sum(weights)
        self._done, self._began = 0.0, time.monotonic()

    def after(self, done: int, steps: int, step: str, now: float) -> tuple[float, str]:
        """Give the share that is done after ``step`` (number ``done`` of ``steps``), and a text with the time left."""
        self._done += _weight(step)
        share = min(self._done / self._total if steps == self._steps else done / steps, 0.99)
        seconds = (now - self._began) / share * (1 - share)
        name = Path(step.rsplit(" ", 1)[-1]).name.removesuffix(".o")
        left = f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"
        return share, f"about {left}, {name}" if done > 3 else f"compiling {name}"


def _weight(step: str) -> float:
    return _HEAVY_STEPS if "CUDA" in step and _HEAVY.search(step) else 1.0
