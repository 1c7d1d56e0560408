"""The experts panel: figures, picking an expert, pinning it, and the unusual experts of a conversation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fake_engine import PinningExperts
from hypothesis import given
from hypothesis import strategies as st
from test_tui import Driver, chat, plain, shown
from textual.widgets import Static

from edgemoe.tui.afterglow import FADE, LEFT, Afterglow
from edgemoe.tui.balance import LEAST_PAIRS, balance, rank, unusual
from edgemoe.tui.expert_figures import Sample, TokenTime, Traffic, by_rank, figures
from edgemoe.tui.expert_map import Spot, fit, place, spot_at
from edgemoe.tui.records import ExpertMaps
from edgemoe.tui.widgets.answer_turn import AnswerTurn
from edgemoe.tui.widgets.expert_map import ExpertMap
from edgemoe.tui.widgets.prompt import Prompt
from edgemoe.types import ExpertStats, ModelShape


def picked(driver: Driver) -> str:
    return plain(driver.screen.query_one("#expert-picked", Static))


async def test_keys_pick_an_expert_and_show_its_figures() -> None:
    async with chat(size=(80, 30), answers=["a b c d"]) as driver:
        await driver.send("go")
        await driver.until(lambda: bool(driver.all(AnswerTurn)))
        await driver.ready()
        await driver.pilot.press("f3")
        await driver.until(lambda: "layer 0, expert 0: on the" in picked(driver), "picked")
        await driver.pilot.press("down", "right", "right", "left", "left", "left")
        await driver.until(lambda: "layer 1, expert 7" in picked(driver))
        assert "◆" in shown(driver)
        assert "entropy" in picked(driver) and "hottest quarter" in picked(driver) and "place" in picked(driver)
        assert "P pin" not in picked(driver)
        await driver.pilot.press("p")
        await driver.pilot.press("escape")
        await driver.until(lambda: driver.screen.query_one(Prompt).has_focus and not picked(driver))


async def test_a_window_that_narrows_and_widens_keeps_the_panel_in_its_place() -> None:
    async with chat(size=(120, 40)) as driver:
        panel = driver.screen.query_one("#experts")
        await driver.until(lambda: panel.region.height == 40 and driver.prompt.region.right == panel.region.x)
        for size in ((80, 24), (120, 40), (60, 20), (250, 70)):
            await driver.pilot.resize_terminal(*size)
            await driver.until(
                lambda: driver.prompt.size.width > 40 and panel.display == (driver.app.size.width >= 110)
            )
        assert panel.region.right == 250
        panel.styles.width = None
        await driver.until(lambda: panel.region.width == 48)


async def test_an_expert_is_picked_by_the_mouse_on_every_layout() -> None:
    async with chat(size=(80, 24), shape=ModelShape(40, 64, 4, (1,) * 40)) as driver:
        await driver.pilot.press("ctrl+e")
        chart = driver.screen.query_one(ExpertMap)
        await driver.until(lambda: chart._fitted is not None, "a drawn map")
        assert chart._fitted is not None
        column, line = place(Spot(12, 33), chart._fitted, 64)
        await driver.pilot.click(ExpertMap, offset=(column, line))
        at = spot_at(column, line, chart._fitted, 40, 64)
        assert at is not None
        await driver.until(lambda: f"layer {at.layer}, expert {at.expert}:" in picked(driver))


async def test_pinning_is_offered_where_the_engine_can_and_marked() -> None:
    async with chat(size=(80, 30), pins=True) as driver:
        await driver.pilot.press("f3", "right")
        await driver.until(lambda: "expert 1:" in picked(driver) and "P pin" in picked(driver))
        await driver.pilot.press("p")
        await driver.until(lambda: "expert 1: on the device, pinned" in picked(driver))
        await driver.pilot.press("p")
        await driver.until(lambda: "pinned" not in picked(driver))
        experts = driver.engine.experts
        assert isinstance(experts, PinningExperts) and experts.pinned == [(0, 1, True), (0, 1, False)]


async def test_what_is_unusual_about_a_conversation() -> None:
    async with chat(size=(130, 40), answers=["word " * 60], delay_s=0.0001) as driver:
        for _ in range(2):
            await driver.pilot.press("f3")
            await driver.pilot.press("space")
            assert "more than usual" not in shown(driver)
            await driver.pilot.press("ctrl+n")
            driver.prompt.focus()
            await driver.send("go")
            await driver.until(lambda: bool(driver.all(AnswerTurn)) and len(driver.all(AnswerTurn)[0].text) > 290)
            await driver.ready()
        await driver.pilot.press("f3")
        panel = driver.screen.query_one("ExpertPanel")
        await driver.until(lambda: panel._unusual() is not None, "enough to compare")  # type: ignore[attr-defined]
        await driver.pilot.press("space")
        await driver.until(lambda: "bright = more than usual" in shown(driver))
        await driver.pilot.press("space")
        await driver.until(lambda: "bright = often" in shown(driver))


# Pure parts.


@given(st.integers(1, 60), st.integers(1, 130), st.integers(20, 160), st.integers(2, 50), st.data())
def test_a_place_in_the_map_leads_back_to_its_expert(
    layers: int, experts: int, columns: int, lines: int, data: st.DataObject
) -> None:
    layout = fit(layers, experts, columns, lines)
    spot = Spot(data.draw(st.integers(0, layers - 1)), data.draw(st.integers(0, experts - 1)))
    found = spot_at(*place(spot, layout, experts), layout, layers, experts)
    tall = layout.layer_group * (2 if layout.dense else 1)
    assert found is not None
    assert found.layer <= spot.layer < found.layer + tall
    assert found.expert <= spot.expert < found.expert + layout.expert_group


def test_balance_of_a_layer() -> None:
    even = balance(np.ones(8, np.float32))
    assert (even.entropy, even.most, even.quarter) == (3.0, 3.0, 0.25)
    assert balance(np.array([9, 0, 0, 0], np.float32)) == (0.0, 2.0, 1.0)
    assert balance(np.zeros(4, np.float32)) == (0.0, 2.0, 0.0)
    assert rank(np.array([1, 5, 5], np.float32), 0) == 3 and rank(np.array([1, 5, 5], np.float32), 2) == 1


def test_unusual_needs_enough_on_both_sides_and_shows_only_more() -> None:
    before = np.array([[LEAST_PAIRS, LEAST_PAIRS]], np.float32)
    assert unusual(before + 1, before) is None and unusual(before, before * 0) is None
    special = unusual(before + np.array([[300, 100]], np.float32), before)
    assert special is not None and special.tolist() == [[0.25, 0.0]]


def test_figures_fit_and_bars_are_full_only_when_all_is_there() -> None:
    shape, traffic = ModelShape(2, 8, 2, (1 << 20,) * 2), Traffic()
    for second, moved in enumerate((0, 0, 4 << 20, 12 << 20)):
        traffic.add(moved, float(second))
    assert traffic.rate() == 6 << 20 and traffic.rates() == [0, 4 << 20, 8 << 20]
    sample = Sample(ExpertStats(resident=15), shape, [0.5] * 9, traffic)
    for width in (48, 76, 130):
        text = "\n".join(line.plain for line in figures(sample, width, "high" if width > 50 else "usual"))
        assert max(map(len, text.split("\n"))) <= width
        assert "15 of 16" in text and "94 %" in text and "─  15 of" in text and "━  16.0 MiB" in text
        assert "6.0 MiB/s" in text and "8M/s" in text, "the scale ends at the next power of two"
    ahead = Sample(ExpertStats(prefetch_useful=41, prefetch_late=2, prefetch_wasted=7))
    assert any("ahead: 41 useful · 2 late · 7 wasted" in line.plain for line in figures(ahead, 76))
    assert figures(Sample(), 76) and len(figures(sample, 76, "low")) == 2


def test_a_model_larger_than_ram_shows_its_part_on_the_disk() -> None:
    shape, width = ModelShape(4, 8, 2, (1 << 30,) * 4), 80
    told = [line.plain for line in figures(Sample(shape=shape, in_ram=0.75), width)]
    assert any("RAM" in line and "75 %" in line and "24.00 GiB" in line for line in told)
    assert any("disk" in line and "8.00 GiB only there" in line for line in told)
    for known in (1.0, None):
        told = [line.plain for line in figures(Sample(shape=shape, in_ram=known), width)]
        assert any("100 %" in line and "32.00 GiB" in line for line in told)
        assert not any("disk" in line for line in told)


def test_the_time_of_a_token_in_its_parts() -> None:
    before = ExpertStats(tokens=10, hits=5, moe_ns=0)
    now = ExpertStats(tokens=14, hits=9, moe_ns=40_000_000, cpu_ns=20_000_000, join_ns=4_000_000)
    token = TokenTime.between(before, now, 0.1)
    assert token == TokenTime(dense=15.0, cold=5.0, wait=1.0, other=4.0) and token.total == 25.0
    assert TokenTime.between(before, replace(now, prefill_hits=3), 0.1) is None, "a prompt is no token"
    assert TokenTime.between(before, before, 0.1) is None
    lines = [line.plain for line in figures(Sample(token=token), 70)]
    assert any("25 ms" in line and line.count("█") == 70 - 21 for line in lines)
    assert any("attention 15.0  ■ hot 4.0  ■ cold 5.0  ■ waiting 1.0" in line for line in lines)


def test_the_curve_by_rank_colours_what_is_on_the_device() -> None:
    heat = np.array([[6, 2, 1, 1]], np.float32)
    title, *rows = by_rank(heat, np.array([[True, True, False, False]]), 46, 5)
    assert "the hottest 50 % take 80 % of routing" in title.plain
    assert len(rows) == 4 and {span.style for span in rows[0].spans} >= {"$map-hot", "$map-cool"}
    assert by_rank(heat * 0, heat > 1, 46, 5) == []


def test_an_afterglow_fades_and_layers_have_hit_rates() -> None:
    glowing, none = Afterglow(), np.full((1, 2), -1, np.int32)
    resident = np.array([[True, False, False, False]])
    assert glowing.hit_rates(1) == [None]
    glowing.see(ExpertMaps(resident, np.array([[0, 0, 0, 0]], np.float32), none))
    used = ExpertMaps(resident, np.array([[3, 1, 0, 0]], np.float32), np.array([[1, -1]], np.int32))
    glowing.see(used)
    assert glowing.hit_rates(1) == [0.75]
    assert np.allclose(glowing.glow(used), [[LEFT, 1, 0, 0]]), "the last token shines most"
    glowing.see(ExpertMaps(resident, np.array([[3, 1, 1, 0]], np.float32), none))
    assert np.allclose(glowing.glow(replace(used, last=none)), [[FADE * LEFT, FADE * LEFT, LEFT, 0]])
    glowing.settle()
    assert not glowing.glow(replace(used, last=none)).any()


async def test_what_is_in_ram_comes_from_the_engine_to_the_panel() -> None:
    async with chat(size=(80, 30), answers=["a b c d"]) as driver:
        driver.engine.experts.ram = 0.5
        await driver.pilot.press("ctrl+e")
        await driver.send("go")
        await driver.until(lambda: "disk" in plain(driver.screen.query_one("#expert-figures", Static)))
