"""What MODEL means on the command line: a path, a name of the catalogue, or ``org/repo:QUANT``. Never the network.

Files are looked for in the Hugging Face cache, under that library's own environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from .catalog import Model, Variant, load
from .errors import ModelNotFound

DEMO = "demo"
_REPOSITORY = re.compile(r"^(?P<repository>[\w.-]+/[\w.-]+):(?P<quantisation>[\w.-]+)$")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def find(name: str, build_demo: Callable[[], Path] | None = None) -> Path:
    """The file that ``name`` means; of a model in shards, the first.

    Args:
        name: a path, a name of the catalogue with or without ``:QUANT``, ``org/repo:QUANT``, or ``demo``.
        build_demo: builds the demo model unless it is there; the plain builder when None.

    Raises:
        ModelNotFound: there is no such file, or the model is known but not on this machine.
        ConfigError: the user's catalogue cannot be read.
    """
    build = build_demo or _build_demo
    if name == DEMO:
        return build()
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if match := _REPOSITORY.match(name):
        return _in_repository(name, match["repository"], match["quantisation"])
    if path.is_dir() and (_looks_like_a_path(name) or not load().knows(name)):
        raise ModelNotFound(f"{name} is a folder", "give the GGUF file in it")
    if _looks_like_a_path(name):
        raise ModelNotFound(f"there is no file {name}", "give a GGUF file, or 'demo' for a small model to try")
    model, variant = load().resolve(name)
    return build() if model.id == DEMO else _of_catalogue(model, variant)


def entry(name: str) -> Model | None:
    """The model of the catalogue that ``find`` understands by ``name``; None where it is a file or a repository."""
    if Path(name).expanduser().is_file() or not (catalogue := load()).knows(name):
        return None
    return catalogue.resolve(name)[0]


def _looks_like_a_path(name: str) -> bool:
    """Whether someone who wrote this meant a file rather than a name."""
    return name.lower().endswith(".gguf") or "/" in name or "\\" in name or name.startswith(("~", "."))


def downloaded(variant: Variant) -> Path | None:
    """The first file of a variant if all of them are in the Hugging Face cache."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(variant.repository, file.name, revision=variant.revision) for file in variant.files]
    return Path(found[0]) if all(isinstance(file, str) for file in found) and isinstance(found[0], str) else None


def _build_demo() -> Path:
    from .demo import build_demo

    return build_demo()


def _of_catalogue(model: Model, variant: Variant | None) -> Path:
    for candidate in [variant] if variant else model.variants:
        if path := downloaded(candidate):
            return path
    if not model.variants:
        hint = "no file of it is known: edgemoe pull ORG/REPO:QUANT, or give a GGUF file"
    else:
        hint = f"edgemoe pull {model.id}" + (f":{variant.quantisation}" if variant else "")
    raise ModelNotFound(f"{model.name} is not on this machine", hint)


def _in_repository(name: str, repository: str, quantisation: str) -> Path:
    for snapshot in _snapshots(repository):
        # A link to nothing is what remains of a file that was removed.
        if path := pick((path for path in snapshot.rglob("*.gguf") if path.is_file()), quantisation):
            return path
    raise ModelNotFound(f"{name} is not on this machine", f"edgemoe pull {name}")


def _snapshots(repository: str) -> list[Path]:
    """Folders of all revisions of a repository in the cache: the one that ``main`` means first, then the latest."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    commit = main.read_text().strip() if main.is_file() else ""
    found = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)


def pick(paths: Iterable[Path], quantisation: str) -> Path | None:
    """The GGUF file of that quantisation, the first of its shards; None when there is none or a shard is missing."""
    wanted = re.compile(rf"(?<!ud-)(?<![a-z0-9]){re.escape(quantisation.lower())}(?![a-z0-9_])")
    files = [path for path in paths if path.suffix == ".gguf" and not path.name.startswith("mmproj")]
    named = {path for path in files if wanted.search(path.name.lower())}
    for path in sorted(named, key=lambda path: (len(path.name), path.name)):
        shard = _SHARD.search(path.name)
        if shard is None:
            return path
        stem, count = path.name[: shard.start()], int(shard[2])
        shards = [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
        if set(shards) <= named:
            return shards[0]
    return None


def built_demo() -> Path | None:
    """The demo model if it has been built."""
    from .demo import demo_path

    path = demo_path()
    return path if path.exists() else None
