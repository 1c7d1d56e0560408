"""Compiles one backend of ggml alone, from the source archive of the llama-cpp-python that is installed.

The folder of the build is fixed, so a build that was killed goes on where it was. A lock keeps two from one folder. The
compiler inherits it, so a compiler that outlives its parent still holds it.
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
# The biggest files of ggml-cuda take a compiler so much memory.
_JOB_BYTES = 2 << 30
# These files have many variants of their kernels and take longer (measured with CUDA 13.2, one architecture).
_HEAVY = re.compile(r"template-instances/|fattn|mmq|mmf|mmvq|top-k|argsort|cumsum")
_HEAVY_STEPS = 4.0
# Compilers that are told to stop get so long.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Order:
    """A backend to compile.

    Attributes:
        kind: of `KINDS`.
        architectures: processors of the cards, such as 89 or gfx1100; empty where that does not matter.
        work: folder of sources, tools and builds.
        driver: NVIDIA's.
        archive: source archive of llama-cpp-python; pip fetches it when None.
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
        library: its file, in the folder of the build.
        bundled: libraries that must lie beside it.
    """

    library: Path
    bundled: tuple[Path, ...]


def compiled(order: Order, progress: Progress = lambda share, step: None) -> Result:
    """Compile a backend: minutes, for CUDA on few processors an hour or more.

    Args:
        order: backend, processors and folder.
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
        first = next(toolchains)  # a compiler that is missing is named before anything is fetched
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
        SetupFailed: another process holds it.
    """
    import fcntl

    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            text = f"another set-up is at work (process {lock.read().strip() or 'unknown'})"
            raise SetupFailed(text, "wait for it, or end that process") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


def unpacked(work: Path, archive: Path | None = None) -> Path:
    """Folder of ggml's sources out of the archive, which pip fetches when it is not given.

    Raises:
        SetupFailed: pip cannot fetch it.
    """
    place = work / f"{PACKAGE.replace('-', '_')}-{version()}"
    done = place / ".complete"
    if not done.exists():
        archive = archive or _fetched(work)
        remove_folder(place)
        with tarfile.open(archive) as opened:
            opened.extractall(work, filter="data")
        (place / "vendor/llama.cpp/ggml/ggml.pc.in").touch()  # its CMake asks for it, the archive lacks it
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
    """Run CMake with the first toolchain that it accepts; give Ninja's path and the folder of the build as well."""
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
            remove_folder(out)  # CMake would remember the failure
            failure = error
    assert failure is not None
    raise Missing(str(failure), failure.hint or needs(order.kind)) from failure


def _folder(order: Order, options: Sequence[str]) -> Path:
    """Name the folder of a build: one for each set of options, so that a failed one leaves the others alone."""
    digest = hashlib.sha256("\n".join(options).encode()).hexdigest()[:8]
    return order.work / "-".join(["build", order.kind, version(), *order.architectures, digest])


def _vulkan_is_recent(out: Path) -> bool:
    """Tell whether the headers that CMake found have an extension that ggml uses without asking for it."""
    found = re.search(r"^Vulkan_INCLUDE_DIR:PATH=(.+)$", (out / "CMakeCache.txt").read_text(), re.MULTILINE)
    core = Path(found[1], "vulkan", "vulkan_core.h") if found else None
    return core is not None and core.exists() and "VK_EXT_layer_settings" in core.read_text(errors="replace")


def _jobs(kind: str) -> int:
    """Compilers at a time: as many as this process has processors and, for big files, memory for."""
    from .. import limits  # loads psutil, which the help text does without

    by_memory = limits.memory().available // _JOB_BYTES if kind in ("cuda", "rocm") else limits.processors().logical
    return max(1, min(limits.processors().logical, by_memory))


def _compile(command: Sequence[str], toolchain: Toolchain, lock: IO[str], progress: Progress) -> None:
    """Run Ninja; stopping this process stops the compilers, and a killed one leaves them the lock."""
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
    """End the compilers, and wait for that: the next set-up shall find the folder free."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(ninja.pid, signal.SIGTERM)
        try:
            ninja.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(ninja.pid, signal.SIGKILL)


class Remaining:
    """Estimates how long a build takes from the steps that it has done."""

    def __init__(self, steps: Sequence[str]) -> None:
        """Weigh the ``steps`` that Ninja would run now; it does not know them where CMake looks for files first."""
        weights = [_weight(match[3]) for line in steps if (match := _STEP.match(line))]
        self._steps, self._total = len(weights), sum(weights)
        self._done, self._began = 0.0, time.monotonic()

    def after(self, done: int, steps: int, step: str, now: float) -> tuple[float, str]:
        """Share that is done after ``step``, the ``done``-th of ``steps``, and the step with the minutes left."""
        self._done += _weight(step)
        share = min(self._done / self._total if steps == self._steps else done / steps, 0.99)
        seconds = (now - self._began) / share * (1 - share)
        name = Path(step.rsplit(" ", 1)[-1]).name.removesuffix(".o")
        left = f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"
        return share, f"about {left}, {name}" if done > 3 else f"compiling {name}"


def _weight(step: str) -> float:
    return _HEAVY_STEPS if "CUDA" in step and _HEAVY.search(step) else 1.0
