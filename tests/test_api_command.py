"""``edgemoe serve``: its options, and the whole program until a signal ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from serving import build_model

from edgemoe.cli.main import main


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--api-key"),
        (["--parallel", "0"], "--parallel"),
        (["--port", "70000"], "--port"),
        (["--system", "Hi"], "system prompt"),
    ],
)
def test_options_that_make_no_sense_or_no_safe_server(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "nothing.gguf", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgemoe.serve.run import listen

    with listen("127.0.0.1", 0) as other:
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", str(build_model(tmp_path)), "--device", "none", "--port", port]) == 2
    assert port in capsys.readouterr().err


def test_serve_without_its_packages_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("edgemoe.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "demo"]) == 2
    assert 'pip install "edgemoe[serve]"' in capsys.readouterr().err


def test_the_program_answers_until_sigterm(tmp_path: Path) -> None:
    path = build_model(tmp_path)
    command = [sys.executable, "-m", "edgemoe.cli", "serve", str(path), "--device", "none", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--ctx", "1024"], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line + process.stderr.read()
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}).encode()
        request = urllib.request.Request(f"{found[0]}/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert answer["model"] == "tiny" and answer["usage"]["completion_tokens"] <= 4 + 3  # bytes that end a character
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
