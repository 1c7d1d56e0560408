"""Pack the files that a lent machine lacks, for bench/gpu/lease.sh; bench/gpu/README.md lists what has to be there.

python -m bench.gpu.pack --traces FOLDER        # into build/lease; prints the sizes beside the limit
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from bench import twin
from edgemoe.engine import host
from edgemoe.engine.binding import find_core
from edgemoe.setup import installed

from . import cells, routing

LIMIT = 64 << 20  # bytes of the working tree and of all that is carried beside it
# The packages of the bench that the machine's own Python lacks.
PACKAGES = ("llama-cpp-python", "diskcache", "gguf", "platformdirs")
# Parts of llama-cpp-python that only a compiler needs, and a library that nothing loads.
NEEDLESS = ("/include/", "/cmake/", "libllama-common", "libmtmd", "__pycache__")


def main() -> None:
    """Pack, and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/lease"))
    parser.add_argument("--traces", type=Path, help="folder of recorded routing")
    parser.add_argument("--backend", choices=["cuda", "rpc", "vulkan", "none"], default="cuda", help="built by setup")
    parser.add_argument("--more", type=Path, action="append", default=[], help="another file to take along")
    given = parser.parse_args()
    host.core()  # an outdated core would cost the lease
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    packages(given.folder / "site.tar.xz")
    if given.backend != "none":
        backend(given.backend, given.folder / "backend.tar.xz")
    shutil.copy2(find_core(), given.folder)
    for model in cells.MODELS:
        keys = twin.TWINS[model].keys
        layers = int(keys["block_count"]) - int(keys.get("leading_dense_block_count", 0))
        found = routing.routing(model, given.traces, layers, int(keys["expert_count"]), int(keys["expert_used_count"]))
        routing.save(found, given.folder / f"routing-{model}.npz")
    for file in given.more:
        shutil.copy2(file, given.folder)
    sys.exit(report(given.folder))


def packages(archive: Path) -> None:
    """Pack the packages. Libraries with several names are packed once."""
    with tarfile.open(archive, "w:xz") as opened:
        for package in PACKAGES:
            names: dict[tuple[str, int], str] = {}
            for file in importlib.metadata.files(package) or []:
                path, name = Path(str(file.locate())), str(file)
                if name.startswith(("..", "lib/", "bin/", "include/")) or any(part in name for part in NEEDLESS):
                    continue
                library = (path.name.partition(".so")[0], path.stat().st_size)
                if ".so" in path.name and library in names:
                    link = tarfile.TarInfo(name)
                    link.type, link.linkname = tarfile.SYMTYPE, names[library]
                    opened.addfile(link)
                else:
                    opened.add(path.resolve(), name)
                    names[library] = path.name


def backend(kind: str, archive: Path) -> None:
    """Pack the backend that ``edgemoe setup`` built, without the libraries that the machine's toolkit has."""
    folder = installed.folder(kind)
    found = next((backend for backend in installed.built() if backend.kind == kind and backend.current), None)
    if found is None:
        raise SystemExit(f"no {kind} backend of this llama-cpp-python: edgemoe setup --backend {kind} builds it")
    with tarfile.open(archive, "w:xz") as opened:
        for name in ("backend.json", found.library):
            opened.add(folder / name, f"{kind}/{name}")


def report(folder: Path) -> str | int:
    """Print the sizes; give a sentence if the machine does not take that much, else 0."""
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout.split("\0")
    tree = sum(path.stat().st_size for path in map(Path, filter(None, listed)) if path.is_file())
    total = tree
    for file in sorted(folder.iterdir()):
        total += file.stat().st_size
        print(f"{file.stat().st_size / 2**20:7.2f} MiB  {file}")
    print(f"{tree / 2**20:7.2f} MiB  the repository's own files\n{total / 2**20:7.2f} MiB of {LIMIT >> 20} MiB")
    return 0 if total < LIMIT else "that is more than the machine takes"


if __name__ == "__main__":
    main()
