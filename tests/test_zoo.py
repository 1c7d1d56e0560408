"""The zoo itself: every model loads in plain llama.cpp, routes its tokens and gives useful logits."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from tests.zoo import ARCHITECTURES, MIXES, QUANTS, ROUTED, SPECS, build
from tests.zoo.observe import observe
from tests.zoo.reference import forced, greedy, plain

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79]
TEXT = [*PROMPT, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 197, 169, 39, 93, 75]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def test_the_zoo_has_the_peculiar_ones() -> None:
    assert len({spec.arch for spec in SPECS.values()}) >= 24
    assert {"llama", "gpt-oss", "llama4", "gemma4", "deepseek2-v2", "deepseek2-v3"} <= set(ARCHITECTURES)
    assert SPECS["llama4"].used == 1, "no sum follows a single expert"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_routes_and_speaks(name: str, folder: Path) -> None:
    path = build(name, folder)
    assert path.stat().st_size < 3_000_000
    routed = [tensor.name for tensor in GGUFReader(path).tensors if re.search(ROUTED, tensor.name)]
    layers = {int(tensor.split(".")[1]) for tensor in routed}
    seen = observe(path, PROMPT)
    assert len(seen.multiplied) == len(routed), "every routed tensor is multiplied once"
    assert seen.chosen.keys() == layers
    for chosen in seen.chosen.values():
        assert len({tuple(row) for row in chosen.tolist()}) > 2, "tokens choose their experts"
    speaks(path)


@pytest.mark.parametrize("quant", [quant for quant in (*QUANTS, *MIXES) if not quant.startswith("IQ")])
def test_quant(quant: str, folder: Path) -> None:
    quantised(quant, folder)


@pytest.mark.slow
@pytest.mark.parametrize("quant", [quant for quant in (*QUANTS, *MIXES) if quant.startswith("IQ")])
def test_slow_quant(quant: str, folder: Path) -> None:
    quantised(quant, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("quant", ["Q4_K/Q6_K", "MXFP4", "NVFP4"])
def test_every_architecture_takes_other_types(name: str, quant: str, folder: Path) -> None:
    speaks(build(name, folder, quant))


def test_files_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (build("qwen3moe", tmp_path / part, "Q4_K") for part in "ab")
    other = build("qwen3moe", tmp_path / "a", "Q4_K", seed=1)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_built_file_is_left_alone(tmp_path: Path) -> None:
    path = build("llama", tmp_path)
    before = path.stat().st_mtime_ns
    assert build("llama", tmp_path) == path and path.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [path]


def test_experts_in_slow_types_differ(tmp_path: Path) -> None:
    tensors = GGUFReader(build("llama", tmp_path, "IQ3_S")).tensors
    experts = next(tensor.data for tensor in tensors if tensor.name == "blk.0.ffn_up_exps.weight")
    assert len({expert.tobytes() for expert in experts}) == len(experts)


def test_a_refusal_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "llama", replace(SPECS["llama"], arch="no-such-thing"))
    with pytest.raises(RuntimeError, match="unknown model architecture"):
        build("llama", tmp_path)


def test_forced_agrees_with_greedy(folder: Path) -> None:
    llm = plain(build("olmoe", folder))
    tokens, rows = greedy(llm, PROMPT, 6)
    one_by_one = forced(llm, PROMPT + tokens, 1)[len(PROMPT) - 1 : -1]
    assert np.allclose(one_by_one, rows, atol=2e-2), "batches and single tokens differ by rounding only"
    assert np.array_equal(greedy(llm, PROMPT, 6)[1], rows), "every call starts anew"


def test_plain_is_silent_and_does_not_repack(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def redirect(_: object) -> None:
        pytest.fail("file descriptors were redirected")

    monkeypatch.setattr("llama_cpp._utils.suppress_stdout_stderr.__enter__", redirect)
    llm = plain(build("llama", folder, "Q4_0"))
    assert llm.model_params.use_extra_bufts is False
    assert capfd.readouterr() == ("", "")


def quantised(quant: str, folder: Path) -> None:
    path = build("llama", folder, quant)
    routed = {t.name: t.tensor_type.name for t in GGUFReader(path).tensors if re.search(ROUTED, t.name)}
    assert set(routed.values()) == set(quant.split("/"))
    speaks(path)


def speaks(path: Path) -> None:
    """Check for finite logits that depend on the token and on the tokens before it."""
    llm = plain(path)
    rows = forced(llm, TEXT, 1)
    assert np.isfinite(rows).all()
    assert rows.std() > 0.5
    assert len(set(rows.argmax(axis=1))) >= len(TEXT) // 2
    assert not np.allclose(forced(llm, TEXT[-4:], 1)[-1], rows[-1], atol=0.1), "context counts"
