"""The meaning of MODEL, and ``edgemoe list``: a Hugging Face cache is laid out by hand, nothing is downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import Opened

from edgemoe.cli.main import main
from edgemoe.errors import ConfigError, ModelNotFound
from edgemoe.models import catalog, find
from tests.zoo import build

ROOT = Path(__file__).resolve().parent.parent
Captured = pytest.CaptureFixture[str]
Download = Callable[..., list[Path]]


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Download:
    """Put files into a cache in huggingface_hub's layout: blobs, and links to them per commit."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def put(repository: str, *names: str, commit: str = "1" * 40, branch: str | None = "main") -> list[Path]:
        folder = cache / f"models--{repository.replace('/', '--')}"
        links = [folder / "snapshots" / commit / name for name in names]
        for number, link in enumerate(links):
            blob = folder / "blobs" / f"{commit[:8]}{number}"
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(b"GGUF")
            link.symlink_to(blob)
        if branch:
            (folder / "refs").mkdir(exist_ok=True)
            (folder / "refs" / branch).write_text(commit)
        return links

    return put


def files_of(name: str) -> tuple[str, list[str]]:
    model, variant = catalog.load().resolve(name)
    chosen = variant or model.variants[0]
    return chosen.repository, [file.name for file in chosen.files]


# A path.


def test_a_file_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny.gguf", "mixtral", "no-suffix"):
        Path(name).write_bytes(b"GGUF")
        assert find.find(name) == Path(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find.find("~/tiny.gguf") == tmp_path / "tiny.gguf"


@pytest.mark.parametrize("name", ["no.gguf", "./no", "dir/no", "../no.GGUF", "~/no", "org/repo", "org/repo/no.gguf"])
def test_what_looks_like_a_path_is_one(name: str, download: Download) -> None:
    with pytest.raises(ModelNotFound, match="there is no file") as caught:
        find.find(name)
    assert "demo" in caught.value.hint


def test_a_folder_is_no_model_unless_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("somewhere", "mixtral"):
        Path(name).mkdir()
    for name in ("somewhere", "./mixtral", "."):
        with pytest.raises(ModelNotFound, match="is a folder"):
            find.find(name)
    with pytest.raises(ModelNotFound, match="Mixtral 8x7B"):
        find.find("mixtral")


def test_the_demo_is_built(tmp_path: Path) -> None:
    assert find.find("demo", lambda: tmp_path) == tmp_path
    assert find.find("Demo", lambda: tmp_path) == tmp_path


# A name of the catalogue.


def test_a_downloaded_model_is_found_by_any_name(download: Download) -> None:
    repository, names = files_of("gpt-oss-20b")
    (path,) = download(repository, *names)
    for name in ("gpt-oss-20b", "GPT-OSS", "gpt-oss:mxfp4", "gpt-oss 20B"):
        assert find.find(name) == path


def test_a_model_counts_when_all_its_shards_are_there(download: Download) -> None:
    repository, names = files_of("gpt-oss-120b")
    download(repository, *names[:-1])
    with pytest.raises(ModelNotFound) as caught:
        find.find("gpt-oss-120b")
    assert caught.value.hint == "edgemoe pull gpt-oss-120b"
    download(repository, names[-1])
    assert find.find("gpt-oss-120b").name == names[0]


def test_the_first_variant_that_is_there_is_taken(download: Download) -> None:
    repository, names = files_of("phi-3.5-moe:Q6_K")
    (path,) = download(repository, *names)
    assert find.find("phi-moe") == path
    with pytest.raises(ModelNotFound) as caught:
        find.find("phi-moe:q8_0")
    assert caught.value.hint == "edgemoe pull phi-3.5-moe:Q8_0"


def test_a_model_without_known_files(download: Download) -> None:
    with pytest.raises(ModelNotFound, match="Grok-1 is not on this machine") as caught:
        find.find("grok-1")
    assert "ORG/REPO:QUANT" in caught.value.hint


def test_an_unknown_name(download: Download) -> None:
    with pytest.raises(ModelNotFound, match="'mixtrl'") as caught:
        find.find("mixtrl")
    assert "mixtral" in caught.value.hint


def test_a_broken_catalogue_does_not_stop_a_path(tmp_path: Path) -> None:
    catalog.user_path().parent.mkdir(parents=True)
    catalog.user_path().write_text("x = \n")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert find.find(str(tmp_path / "tiny.gguf"))
    assert find.entry(str(tmp_path / "tiny.gguf")) is None
    with pytest.raises(ConfigError, match="line 1"):
        find.find("mixtral")


# org/repo:QUANT.


def test_a_repository_and_a_quantisation(download: Download) -> None:
    q4, ud, q4_s, _ = download("org/repo-GGUF", "m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-mmproj.gguf")
    assert find.find("org/repo-GGUF:q4_k_m") == q4
    assert find.find("org/repo-GGUF:UD-Q4_K_M") == ud
    assert find.find("org/repo-GGUF:Q4_K_S") == q4_s
    q4.unlink()
    with pytest.raises(ModelNotFound):
        find.find("org/repo-GGUF:Q4_K_M")


@pytest.mark.parametrize("name", ["org/repo-GGUF:Q4_K", "org/repo-GGUF:Q8_0", "org/other:Q4_K_M", "a/b:c"])
def test_a_repository_that_is_not_there(name: str, download: Download) -> None:
    download("org/repo-GGUF", "m-Q4_K_M.gguf", "mmproj-Q8_0.gguf")
    with pytest.raises(ModelNotFound, match="not on this machine") as caught:
        find.find(name)
    assert caught.value.hint == f"edgemoe pull {name}"


def test_no_cache_at_all(download: Download, tmp_path: Path) -> None:
    (tmp_path / "hub").rmdir()
    with pytest.raises(ModelNotFound):
        find.find("org/repo:Q4_K_M")
    assert find.downloaded(catalog.load().resolve("gpt-oss")[0].variants[0]) is None


def test_shards_of_a_repository(download: Download) -> None:
    names = [f"Q4_K_M/m-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    download("org/repo", *names[1:])
    with pytest.raises(ModelNotFound):
        find.find("org/repo:Q4_K_M")
    (first,) = download("org/repo", names[0])
    assert find.find("org/repo:Q4_K_M") == first


def test_the_revision_that_main_means_comes_first_then_the_latest(download: Download) -> None:
    (older,) = download("org/repo", "m-Q4_0.gguf", commit="c" * 40, branch=None)
    (old,) = download("org/repo", "m-Q4_0.gguf", commit="a" * 40, branch=None)
    (main,) = download("org/repo", "m-Q4_0.gguf", commit="b" * 40)
    for seconds, path in enumerate((main, older, old)):
        os.utime(path.parent, (seconds, seconds))
    assert find.find("org/repo:Q4_0") == main
    main.resolve().unlink()
    assert find.find("org/repo:Q4_0") == old


# edgemoe list.


def test_list_shows_sizes_and_files_on_the_disk(download: Download, capsys: Captured) -> None:
    repository, names = files_of("gpt-oss-20b")
    download(repository, *names)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "gpt-oss-20b" in line)
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "gpt-oss-20b", "gpt-oss", "20.9 B", "3.6 B", "32, 4 used", "MXFP4", "11.28 GiB", "yes",
    ]  # fmt: skip
    assert sum("yes" in line for line in lines) == 1
    assert main(["list", "--downloaded", "--names"]) == 0
    assert capsys.readouterr().out == "gpt-oss-20b\n"


def test_list_finds_by_part_of_a_name_family_or_tag(download: Download, capsys: Captured) -> None:
    for part, count in (("GRANITE", 2), ("deepseek-v2", 2), ("reasoning", 5), ("mixtral-8x22b:q4_k_m", 1)):
        assert main(["list", part, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["models"]) == count, part
    assert main(["list", "mixtrl"]) == 3
    out, err = capsys.readouterr()
    assert out == "" and "hint: did you mean mixtral" in err


def test_list_json(download: Download, capsys: Captured) -> None:
    (path,) = download(*[files_of("olmoe")[0], *files_of("olmoe")[1]])
    assert main(["list", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["schema"] == "edgemoe.list.v1"
    facts = {model["id"]: model for model in whole["models"]}
    (variant,) = facts["olmoe-1b-7b"]["variants"]
    assert variant["path"] == str(path) and variant["bytes"] == variant["files"][0]["bytes"] == 4_213_512_672
    assert facts["gpt-oss-20b"]["variants"][0]["path"] is None
    assert facts["demo"]["path"] is None and facts["demo"]["variants"] == []


def test_list_of_nothing(download: Download, capsys: Captured) -> None:
    assert main(["list", "--downloaded", "--names"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["list", "--downloaded"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "edgemoe pull" in err


def test_list_knows_a_demo_that_is_built(download: Download, capsys: Captured) -> None:
    from edgemoe.models.demo import demo_path

    demo_path().parent.mkdir(parents=True)
    demo_path().write_bytes(b"GGUF")
    assert main(["list", "--downloaded", "--names"]) == 0
    assert capsys.readouterr().out == "demo\n"


def test_names_for_completion_touch_neither_the_disk_nor_the_hub(capsys: Captured) -> None:
    code = (
        "import sys\nfrom edgemoe.cli.main import main\n"
        "main(['list', '--names', 'mixtral'])\nprint(sorted(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    *names, modules = done.stdout.splitlines()
    assert names == ["mixtral-8x7b-instruct", "mixtral", "mixtral-8x7b", "mixtral-8x22b-instruct", "mixtral-8x22b"]
    assert "'huggingface_hub'" not in modules and "'numpy'" not in modules


def test_show_notes_a_file_with_a_wrong_name(download: Download, tmp_path: Path, capsys: Captured) -> None:
    file = build("llama", tmp_path)
    (path,) = download(*[files_of("olmoe")[0], *files_of("olmoe")[1]])
    path.resolve().write_bytes(file.read_bytes())
    assert main(["show", "olmoe", "--json"]) == 0
    out, err = capsys.readouterr()
    experts = json.loads(out)["experts"]["per_layer"]
    assert f"note: this is not OLMoE 1B-7B 0924 Instruct: experts per layer: {experts} in the file, 64" in err
    for name in (str(file), "allenai/OLMoE-1B-7B-0924-Instruct-GGUF:Q4_K_M"):
        assert main(["show", name]) == 0
        assert capsys.readouterr().err == ""


def test_the_publishers_sampling_holds_until_one_says_otherwise(download: Download, capsys: Captured) -> None:
    repository, names = files_of("qwen3-30b-a3b")
    download(repository, *names)
    wanted = catalog.load().resolve("qwen3-30b-a3b")[0].sampling
    opened = Opened(answers=["a", "b"])
    assert main(["run", "qwen3-30b-a3b", "hi"], opened) == 0
    assert main(["run", "qwen3-30b-a3b", "hi", "--temperature", "0.1"], opened) == 0
    first, second = (engine.sampling[0] for engine in opened.engines)
    assert wanted.temperature is not None and first["temperature"] == wanted.temperature
    assert first["top_k"] == wanted.top_k == second["top_k"] and second["temperature"] == 0.1
    assert None not in first.values()


def test_every_command_finds_models_by_name(download: Download, capsys: Captured) -> None:
    repository, names = files_of("olmoe")
    (path,) = download(repository, *names)
    path.resolve().write_bytes(b"GGUF" + b"\xff" * 60)
    for command in (["show", "olmoe"], ["run", "olmoe", "hi"], ["profile", "olmoe"], ["train", "olmoe"]):
        assert main([*command]) == 1
        assert names[0] in capsys.readouterr().err, command
    assert main(["show", "gpt-oss"]) == 3
    assert "hint: edgemoe pull gpt-oss-20b" in capsys.readouterr().err


def test_help_is_quick() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edgemoe.cli", "--help"], stdout=subprocess.DEVNULL, env=environment)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0  # 0.1 s on an idle machine
