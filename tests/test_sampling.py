"""Sampling of a model that is opened by its path: the catalogue's settings by content or name, else the file's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_cli import Opened

from edgemoe.cli.main import main
from edgemoe.machine.truncated_model import write
from edgemoe.models import catalog, find
from edgemoe.models.catalog import load
from edgemoe.models.find import published, recommended_sampling
from edgemoe.models.gguf import GgufFile, GgufTensor

OF_THE_FILE = {"temp": 1.0, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "penalty_repeat": 1.05}


def written(path: Path, **general: Any) -> Path:
    """Write a small file with these keys of ``general.``. ``sampling_`` begins a key of ``general.sampling.``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {"general." + key.replace("sampling_", "sampling."): value for key, value in general.items()}
    write(path, {"general.architecture": "qwen3moe", **keys}, [GgufTensor("output_norm.weight", (32,), 0, 0, 128)])
    return path


def shaped(model_id: str, **general: str) -> GgufFile:
    """Make the header of a file with the experts of a model of the catalogue."""
    model = load().resolve(model_id)[0]
    tensors = {}
    for layer in range(model.layers - model.expert_layers, model.layers):
        name = f"blk.{layer}.ffn_up_exps.weight"
        tensors[name] = GgufTensor(name, (32, 32, model.experts), 0, 0, 4096 * model.experts)
    keys = {"general.architecture": "a", "a.block_count": model.layers, "a.expert_used_count": model.experts_used}
    metadata = {**keys, **{f"general.{key}": value for key, value in general.items()}}
    return GgufFile(Path("model.gguf"), 3, 32, metadata, tensors)


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b"),
        ("gpt-oss-20b-F16.gguf", "gpt-oss-20b"),
        ("openai_gpt-oss-20b-MXFP4.gguf", "gpt-oss-20b"),
        ("gpt-oss-120b-mxfp4-00001-of-00003.gguf", "gpt-oss-120b"),
        ("gpt-oss-safeguard-20b-mxfp4.gguf", None),
        ("Qwen3.6-35B-A3B-UD-Q4_K_XL.gguf", "qwen3.6-35b-a3b"),
        ("Qwen_Qwen3.6-35B-A3B-IQ2_XXS.gguf", "qwen3.6-35b-a3b"),
        ("Qwen3.5-35B-A3B-Q4_K_M.gguf", None),
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "qwen3-30b-a3b"),
        ("Qwen3-30B-A3B-Thinking-2507-Q4_K_M.gguf", None),
        ("Qwen3-30B-A3B-Instruct-2507-UD-Q4_K_XL.gguf", None),
        ("Qwen3-30B-A3B-2507-Q4_K_M.gguf", None),
        ("Qwen3-Coder-30B-A3B-Instruct-Q4_K_M.gguf", None),
        ("Qwen3-Next-80B-A3B-Instruct-Q4_K_M.gguf", "qwen3-next-80b-a3b"),
        ("Qwen3-Next-80B-A3B-Thinking-Q4_K_M.gguf", None),
        ("DeepSeek-V3-0324-Q4_K_M.gguf", None),
        ("GLM-4.5-Air-Q4_K_M-00001-of-00002.gguf", "glm-4.5-air"),
        ("LFM2-8B-A1B-Q4_K_M.gguf", "lfm2-8b-a1b"),
        ("LFM2.5-8B-A1B-Q4_K_M.gguf", None),
        ("model.gguf", None),
    ],
)
def test_a_file_is_known_by_its_name_and_never_taken_for_a_sibling(file: str, model: str | None) -> None:
    found = published(Path(file), None)
    assert (found.id if found else None) == model


@pytest.mark.parametrize("model", load().models, ids=lambda model: model.id)
def test_every_file_of_the_catalogue_is_known(model: catalog.Model) -> None:
    for variant in model.variants:
        assert published(Path(variant.files[0].name), None) == model


@pytest.mark.parametrize(
    ("shape", "header", "model"),
    [
        ("qwen3-30b-a3b", {"name": "Qwen3 30B A3B"}, "qwen3-30b-a3b"),
        ("qwen3-30b-a3b", {"name": "Qwen3-30B-A3B", "basename": "Qwen3", "size_label": "30B-A3B"}, "qwen3-30b-a3b"),
        ("qwen3-30b-a3b", {"name": "hf", "basename": "Qwen3", "size_label": "30B-A3B"}, "qwen3-30b-a3b"),
        ("qwen3-30b-a3b", {"name": "Qwen3 30B A3B Thinking 2507"}, None),
        (
            "qwen3-30b-a3b",
            {"name": "Qwen3 30B A3B", "basename": "Qwen3", "size_label": "30B-A3B", "finetune": "Thinking"},
            None,
        ),
        ("qwen3-30b-a3b", {"name": "Qwen3 30B A3B", "version": "2507"}, None),
        ("gpt-oss-20b", {"name": "Qwen3 30B A3B"}, None),  # other experts
        ("gpt-oss-20b", {"name": "Openai_Gpt Oss 20b"}, "gpt-oss-20b"),
        ("glm-4.5-air", {"name": "GLM 4.5 Air"}, "glm-4.5-air"),
    ],
)
def test_a_renamed_file_is_known_by_its_content(shape: str, header: dict[str, str], model: str | None) -> None:
    found = published(Path("model.gguf"), shaped(shape, **header))
    assert (found.id if found else None) == model


def test_a_header_that_names_another_model_outweighs_the_files_name() -> None:
    file = shaped("qwen3-30b-a3b", name="Qwen3 30B A3B Thinking 2507")
    assert published(Path("Qwen3-30B-A3B-Q4_K_M.gguf"), file) is None


def test_the_catalogue_comes_first_and_whole(tmp_path: Path) -> None:
    keys = {f"sampling_{key}": value for key, value in OF_THE_FILE.items()}
    path = written(tmp_path / "gpt-oss-20b-mxfp4.gguf", **keys)
    wanted = {"temperature": 1.0, "top_p": 1.0}
    assert recommended_sampling("gpt-oss-20b", path) == recommended_sampling(str(path), path) == wanted


@pytest.mark.parametrize(
    "file", ["some.gguf", "Qwen3.6-35B-A3B-UD-Q4_K_XL.gguf"]
)  # the catalogue has no settings for it
def test_else_the_file_says_it(file: str, tmp_path: Path) -> None:
    path = written(tmp_path / file, **{f"sampling_{key}": value for key, value in OF_THE_FILE.items()})
    got = recommended_sampling(str(path), path)
    assert got == pytest.approx(
        {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "repeat_penalty": 1.05}, abs=1e-6
    )
    assert isinstance(got["top_k"], int)


def test_values_that_no_sampler_takes_are_left_out(tmp_path: Path) -> None:
    path = written(
        tmp_path / "some.gguf", sampling_temp=-1.0, sampling_top_p=7.0, sampling_top_k="x", sampling_min_p=0.1
    )
    assert recommended_sampling(str(path), path) == pytest.approx({"min_p": 0.1})


def test_without_either_nothing_is_recommended(tmp_path: Path) -> None:
    path = written(tmp_path / "some.gguf")
    assert recommended_sampling(str(path), path) == {}
    assert recommended_sampling("/no/such.gguf", Path("/no/such.gguf")) == {}
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html><html>")
    assert recommended_sampling("page.gguf", tmp_path / "page.gguf") == {}


def test_the_users_catalogue_is_obeyed_and_a_broken_one_stops_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "gpt-oss-20b-mxfp4.gguf", sampling_temp=0.5)
    catalog.user_path().parent.mkdir(parents=True, exist_ok=True)
    catalog.user_path().write_text('[[model]]\nid = "gpt-oss-20b"\nsampling = { top_k = 7 }\n')
    assert recommended_sampling(str(path), path) == {"top_k": 7}
    catalog.user_path().write_text("[[")
    assert recommended_sampling(str(path), path) == {"temperature": 0.5}


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "some.gguf", sampling_temp=0.5)
    monkeypatch.setattr("edgemoe.models.gguf.values", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("edgemoe.models.gguf.model_identity", lambda *_: pytest.fail("weights were read"))
    assert recommended_sampling(str(path), path) == {"temperature": 0.5}


def test_run_takes_it(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.gguf", sampling_temp=0.25)
    opened = Opened(answers=["a", "b"])
    assert main(["run", str(path), "hi"], opened) == 0
    assert main(["run", str(path), "hi", "--temperature", "0.1"], opened) == 0
    assert [engine.sampling[0]["temperature"] for engine in opened.engines] == [0.25, 0.1]


def test_the_demo_is_greedy() -> None:
    assert recommended_sampling(find.DEMO, Path("demo.gguf")) == {"temperature": 0.0}
