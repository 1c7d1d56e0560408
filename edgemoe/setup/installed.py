"""The backends that ``edgemoe setup`` has built: their folders, and whether this llama-cpp-python may load them.

Each backend lies in a folder of its own, with a record beside it. A backend belongs to one version of ggml. A
backend is never loaded with another version, which may have other structs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import home

SCHEMA = "edgemoe.backend.v1"
PACKAGE = "llama-cpp-python"
# Names of ggml's libraries, by backend. The files of a llama-cpp-python have these names.
LIBRARIES = {
    "cuda": "ggml-cuda",
    "vulkan": "ggml-vulkan",
    "rocm": "ggml-hip",
    "rpc": "ggml-rpc",
    "metal": "ggml-metal",
    "sycl": "ggml-sycl",
}


@dataclass(frozen=True)
class Backend:
    """A backend that was built here.

    Attributes:
        kind: ``cuda``, ``vulkan``, ``rocm`` or ``rpc``.
        version: version of the llama-cpp-python that the backend belongs to.
        architectures: architectures of the cards, empty if the backend does not depend on them.
        library: file name of the backend.
    """

    kind: str
    version: str
    architectures: tuple[str, ...]
    library: str

    @property
    def path(self) -> Path:
        """Give the full path of the library."""
        return folder(self.kind) / self.library

    @property
    def current(self) -> bool:
        """Tell whether the backend belongs to the llama-cpp-python that is installed."""
        return self.version == version() and self.path.exists()


def version() -> str:
    """Give the version of the installed llama-cpp-python, without the suffix of a build."""
    return importlib.metadata.version(PACKAGE).partition("+")[0]


def folder(kind: str) -> Path:
    """Give the folder of a backend's files."""
    return home("data") / "backends" / kind


def built() -> list[Backend]:
    """List the backends that were built, outdated ones too."""
    found = []
    for record in sorted((home("data") / "backends").glob("*/backend.json")):
        try:
            content = json.loads(record.read_text())
            if content.pop("schema") == SCHEMA:
                found.append(Backend(**content | {"architectures": tuple(content["architectures"])}))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a backend without a whole record does not count
    return found


def add(backend: Backend, files: list[Path]) -> Path:
    """Replace the folder of ``backend`` by one with ``files``, and return the library's path."""
    place = folder(backend.kind)
    new = place.with_name(f"{place.name}.new")
    remove_folder(new)
    new.mkdir(parents=True)
    for file in files:
        shutil.move(str(file), new / file.name)
    record = {"schema": SCHEMA, **asdict(backend)}
    (new / "backend.json").write_text(json.dumps(record, indent=1))
    old = place.with_name(f"{place.name}.old")
    remove_folder(old)
    if place.exists():
        place.rename(old)
    new.rename(place)
    remove_folder(old)
    return backend.path


def remove(kind: str) -> bool:
    """Delete a backend; return whether it existed. A process that has loaded the backend can still use it."""
    there = folder(kind).exists()
    remove_folder(folder(kind))
    return there


def remove_folder(path: Path) -> None:
    """Delete a folder if it exists; errors are ignored."""
    shutil.rmtree(path, ignore_errors=True)


def of_package() -> list[str]:
    """List the kinds of backend in the installed llama-cpp-python, by the names of its files."""
    spec = importlib.util.find_spec("llama_cpp")
    places = spec.submodule_search_locations if spec else None
    names = {file.name for place in places or () for file in Path(place, "lib").glob("*ggml-*")}
    return [kind for kind, library in LIBRARIES.items() if any(library in name for name in names)]
