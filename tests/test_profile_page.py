"""``--html`` writes one self-contained page with the measurements, and its labels do not overlap."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from edgemoe.cli.main import main
from edgemoe.profiling import charts
from edgemoe.profiling.page import page
from tests.routing import wide_model

RUN = ["-p", "16", "-n", "12", "-r", "2", "--threads", "1", "-o", "json"]


@pytest.fixture(scope="module", params=["sim", "none"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("page")
    with wide_model(folder) as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_HOME", str(folder / "home"))
        written: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: written.append(str(text)))
        place = ["--device", request.param, "--vram", "50%"]
        assert main(["profile", str(path), *RUN, *place, "--html", str(folder / "page.html")]) == 0
    return json.loads(written[0]), (folder / "page.html").read_text("utf-8")


class _Checker(HTMLParser):
    """Check that every open element is closed, in order."""

    VOID = {"meta", "br", "line", "rect", "circle", "polyline", "path"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_page_is_whole_and_needs_no_network(made: tuple[dict[str, Any], str]) -> None:
    profile, text = made
    checker = _Checker()
    checker.feed(text)
    assert not checker.open
    wanted = {"Decode, tokens per second", "Where a token's time goes", "Latency, cumulative", "What is in memory"}
    wanted |= {"Memory over time", "Hit rate by cache size", "How often each expert was used", "All rows"}
    if profile["memory"]["device_used_bytes"]:
        wanted |= {"Hit rate of each layer", "Where each expert is"}
    assert wanted <= set(checker.headings)
    assert not re.search(r"https?://|src=|@import|url\(|NaN|nan ", text.replace("http-equiv", ""))
    for row in profile["rows"]:
        assert f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}" in text


def test_labels_of_a_plot_do_not_overlap(made: tuple[dict[str, Any], str]) -> None:
    """Check that texts on one line of a picture do not overlap. A character is 6.6 units wide and 12 units high."""
    for picture in re.findall(r"<svg role.*?</svg>", made[1], re.DOTALL):
        found = re.findall(r'<text class="\w+" x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)">([^<]*)<', picture)
        boxes = []
        for x, y, anchor, words in found:
            width = 6.6 * len(words)
            assert anchor != "end" or float(x) > charts.LEFT or float(x) - width >= 15, (
                f"{words} on the label of its axis"
            )
            left = float(x) - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            boxes.append((left, left + width, float(y), words))
        for i, (left, right, y, words) in enumerate(boxes):
            for other_left, other_right, other_y, other in boxes[:i]:
                assert abs(y - other_y) > 10 or left >= other_right or right <= other_left, (words, other)


def test_names_are_data_not_markup(made: tuple[dict[str, Any], str]) -> None:
    profile = json.loads(json.dumps(made[0]))
    profile["rows"][0]["model_filename"] = "<script>alert(1)</script>$body"
    profile["notes"].append("a < b & c")
    text = page(profile)
    assert "<script>alert" not in text and "a &lt; b &amp; c" in text


def test_a_run_without_anything_is_still_a_page(made: tuple[dict[str, Any], str]) -> None:
    empty = made[0] | {"rows": [], "latency": [], "time": [], "observed": None, "spans": [], "stopped": "interrupted"}
    assert "Ended early" in page(empty)


@pytest.mark.parametrize("most", [0.003, 0.1, 1.0, 7.3, 12.0, 99.0, 25000.0])
def test_ticks_are_round_and_few(most: float) -> None:
    found = charts.ticks(most)
    assert found[0] == 0 and found[-1] <= most * 1.001 and 3 <= len(found) <= 7
    assert len({charts.number(value) for value in found}) == len(found) or most < 0.05
