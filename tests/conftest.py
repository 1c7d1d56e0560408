"""Give every test its own home, so that no profile, model or setting of the user is read or written."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("edgemoe", deadline=None)  # timings are never tests
hypothesis.settings.load_profile("edgemoe")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("EDGEMOE_HOME", str(folder))
    return folder
