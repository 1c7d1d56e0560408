"""Run llama-cpp-python's own tests with our class in place of theirs.

    python tests/upstream.py FOLDER [--main FILE] [--only none,sim]

``FOLDER`` is the unpacked source archive of llama-cpp-python 0.3.36 (it has ``tests`` and ``vendor``). Its tests
download models; here a local model replaces each of them. The tests run three times: unchanged, then on ``none``, then
on ``sim`` with half of the experts hot. A test that expects words of its own model gets the local model's words from
the first run. The program prints the passed tests. It fails if a test passes unchanged but not with our class.

This file is also the pytest plugin of those runs.
"""

from __future__ import annotations

import argparse
import builtins
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUNS = ("plain", "none", "sim")
# Replacements for the models that the tests name. MAIN is a file; the others are models of the zoo.
EMBEDDING = "CompendiumLabs/bge-small-en-v1.5-gguf"
MAIN = "lmstudio-community/Qwen3.5-0.8B-GGUF"
STAND_INS = {
    EMBEDDING: "qwen3moe",
    "ggml-org/models": "llama",
    "QuantFactory/mamba-130m-hf-GGUF": "mamba",
    "tiiuae/Falcon-H1-Tiny-90M-Instruct-GGUF": "jamba",
}
# Words and token ids of the tests' own main model.
WORDS = ('" jumps over the lazy dog."', '"true"', "[9419, 11, 1814, 0]")
_EXPECTED = re.compile(r"assert (.+) == (" + "|".join(map(re.escape, WORDS)) + r")$", re.MULTILINE)


def main() -> int:
    """Run everything and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="unpacked source archive of llama-cpp-python 0.3.36")
    parser.add_argument("--main", help="GGUF file of the main model; the demo model by default")
    parser.add_argument("--only", default="none,sim", help="of none and sim, with commas")
    given = parser.parse_args()
    runs = ["plain", *(name for name in given.only.split(",") if name in RUNS)]
    with tempfile.TemporaryDirectory() as kept:
        results = {name: _run(name, given.folder, given.main, Path(kept) / "words.json") for name in runs}
    return _report(results)


def _run(name: str, folder: Path, main_model: str | None, words: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "results.jsonl"
        # The archive's own llama_cpp is not compiled, and its folder would hide the installed one.
        shutil.copytree(folder / "tests", Path(scratch) / "suite")
        tests = Path(scratch) / "suite" / "test_llama.py"
        tests.write_text(_EXPECTED.sub(r"assert \1 == local_words(\1, \2)", tests.read_text()))
        (Path(scratch) / "vendor").symlink_to((folder / "vendor").resolve(), target_is_directory=True)
        environment = os.environ | {
            "UPSTREAM_RUN": name,
            "UPSTREAM_LOG": str(log),
            "UPSTREAM_SCRATCH": scratch,
            "UPSTREAM_WORDS": str(words),
            "UPSTREAM_MAIN": main_model or "",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", "pytest", "-p", "tests.upstream", "-c", os.devnull, "--rootdir", scratch]
        command += ["-q", "--tb=short", "-p", "no:cacheprovider", "suite"]
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        lines = log.read_text().splitlines() if log.exists() else []
        if not lines:
            sys.exit(f"{name}: nothing ran\n{done.stdout}\n{done.stderr}")
        results = dict(json.loads(line) for line in lines)
        if done.returncode < 0:
            results["(the run)"] = f"ended by signal {-done.returncode}"
        return results


def _report(results: dict[str, dict[str, str]]) -> int:
    names = sorted({test for result in results.values() for test in result})
    worse = []
    for test in names:
        row = {name: result.get(test, "missing") for name, result in results.items()}
        passed = {name for name, outcome in row.items() if outcome == "passed"}
        text = "passes" if len(passed) == len(row) else f"passes on {', '.join(sorted(passed)) or 'none of them'}"
        if "plain" not in passed:
            text += f"; plain fails: {(row['plain'].splitlines() or [''])[-1]}"
        print(f"{test}: {text}")
        for name, outcome in row.items():
            if name not in passed and "plain" in passed:
                worse.append(test)
                print(f"  {name}: {outcome}")
    for name, result in results.items():
        print(f"{name}: {sum(outcome == 'passed' for outcome in result.values())} of {len(result)} pass")
    return 1 if worse else 0


# ---- the plugin ----


def pytest_configure(config: Any) -> None:
    """Put local models in the place of downloads, and our class in the place of theirs."""
    if "UPSTREAM_RUN" not in os.environ:
        return
    import huggingface_hub

    huggingface_hub.hf_hub_download = _local
    builtins.local_words = _local_words  # type: ignore[attr-defined]
    multiprocessing.cpu_count = lambda: 1
    try:
        import scipy.special  # noqa: F401
    except ImportError:
        _stand_in_for_scipy()
    if (run := os.environ["UPSTREAM_RUN"]) != "plain":
        _use_ours(run)


def pytest_runtest_logreport(report: Any) -> None:
    """Note how a test ended."""
    if "UPSTREAM_LOG" in os.environ and (report.when == "call" or report.outcome != "passed"):
        outcome = "passed" if report.outcome == "passed" else str(report.longrepr)[-2000:] or report.outcome
        with open(os.environ["UPSTREAM_LOG"], "a", encoding="utf-8") as log:
            log.write(json.dumps([report.nodeid, outcome]) + "\n")


def _local(repo: str, filename: str, **_: Any) -> str:
    from edgemoe.models.demo import build_demo
    from tests.rewrite import U32, rewrite, tensors_of
    from tests.zoo import build

    if repo == MAIN:
        return os.environ["UPSTREAM_MAIN"] or str(build_demo())
    scratch = Path(os.environ["UPSTREAM_SCRATCH"])
    path = build(STAND_INS[repo], scratch)
    if repo == EMBEDDING:  # one vector for each text: their mean
        more = {f"{STAND_INS[repo]}.pooling_type": (U32, 1)}
        path = rewrite(path, scratch / "embedding.gguf", tensors_of(path), more)
    return str(path)


def _local_words(got: Any, theirs: Any) -> Any:
    """Give the local model's answer to plain llama_cpp in the place of ``theirs``."""
    path, number = Path(os.environ["UPSTREAM_WORDS"]), next(_asked)
    words = json.loads(path.read_text()) if path.exists() else {}
    if os.environ["UPSTREAM_RUN"] == "plain":
        words[f"{number} {theirs}"] = got
        path.write_text(json.dumps(words))
    return words.get(f"{number} {theirs}", theirs)


_asked = itertools.count()


def _use_ours(device: str) -> None:
    import llama_cpp

    from edgemoe import Llama, OffloadConfig

    class Ours(Llama):
        """Open our class on the device of this run."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            config = OffloadConfig(device=device, vram="50%", profile="off")
            super().__init__(*arguments, offload=config, **keywords)

    llama_cpp.Llama = Ours


def _stand_in_for_scipy() -> None:
    import numpy as np

    def log_softmax(values: Any, axis: int | None = None) -> Any:
        shifted = values - np.max(values, axis=axis, keepdims=True)
        return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))

    scipy, special = types.ModuleType("scipy"), types.ModuleType("scipy.special")
    special.log_softmax = log_softmax  # type: ignore[attr-defined]
    scipy.special = special  # type: ignore[attr-defined]
    sys.modules |= {"scipy": scipy, "scipy.special": special}


if __name__ == "__main__":
    sys.exit(main())
