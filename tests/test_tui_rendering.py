"""Rendering of answers: fences, tables, formulas, tasks, footnotes, and lines wider than the screen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tui import chat, shown
from test_tui_commands import ask
from test_tui_messages import copied
from textual.content import Content
from textual.geometry import Offset

from edgemoe.tui.formulas import in_unicode
from edgemoe.tui.tables import BETWEEN, LEAST_COLUMN, Table, row_lines, widths
from edgemoe.tui.widgets.code_block import CodeBlock, FenceHead
from edgemoe.tui.widgets.code_lines import CodeLines
from edgemoe.tui.widgets.sideways import Sideways
from edgemoe.tui.widgets.table import TableLines

LONG = "x = '" + "a" * 120 + "end'"


def table(header: list[str], *rows: list[str]) -> Table:
    return Table([*map(Content, header)], [[*map(Content, row)] for row in rows], ["left"] * len(header))


async def test_a_fence_names_its_language_and_copies_its_code() -> None:
    async with chat(answers=["```python\nx = 1\n```\n\nand\n\n```\nplain\n```\n"]) as driver:
        texts = copied(driver)
        await ask(driver, "hi")
        await driver.until(lambda: "python" in shown(driver) and len(driver.all(FenceHead)) == 2)
        head = driver.all(FenceHead)[0]
        at = head.render().plain.index("copy")
        await driver.pilot.click(head, offset=(at + head.content_region.x - head.region.x, 0))
        await driver.until(lambda: texts == ["x = 1"], str(texts))


async def test_long_lines_have_a_bar_and_keys() -> None:
    async with chat(answers=[f"```python\n{LONG}\n```\n"]) as driver:
        await ask(driver, "hi")
        wide = driver.all(Sideways)[0]
        await driver.until(lambda: wide.show_horizontal_scrollbar)
        assert "end'" not in shown(driver) and "▂▂" in shown(driver)
        await driver.pilot.press("ctrl+up", *["right"] * 12)
        await driver.until(lambda: "end'" in shown(driver) and wide.scroll_offset.x > 40)
        await driver.pilot.press(*["left"] * 12)
        await driver.until(lambda: wide.scroll_offset == Offset(0, 0))


async def test_short_lines_have_no_bar() -> None:
    async with chat(answers=["```python\nx = 1\n```\n"]) as driver:
        await ask(driver, "hi")
        await driver.until(lambda: bool(driver.all(Sideways)))
        assert not driver.all(Sideways)[0].show_horizontal_scrollbar


async def test_a_difference_has_colours() -> None:
    async with chat(answers=["```diff\n@@ -1 +1 @@\n-old\n+new\n same\n```\n"]) as driver:
        await ask(driver, "hi")
        await driver.until(lambda: any(block.coloured for block in driver.all(CodeBlock)))
        looks = [[span.style for span in line.spans] for line in driver.all(CodeBlock)[0].query_one(CodeLines)._lines]
        assert looks == [["$secondary"], ["$error"], ["$success"], []]


async def test_tasks_and_footnotes_as_people_see_them() -> None:
    answer = "- [x] done\n- [ ] open[^1]\n\n[ ] no list[^note]\n\n[^1]: https://example.org\n[^note]: A note.\n"
    async with chat(answers=[answer]) as driver:
        await ask(driver, "hi")
        await driver.until(lambda: "☑ done" in shown(driver) and "☐ open¹" in shown(driver))
        assert "[ ] no list[note]" in shown(driver) and "¹ https://example.org" in shown(driver)
        assert "[note] A note." in shown(driver)


async def test_a_table_wraps_its_cells_and_keeps_the_alignment() -> None:
    rows = "| name | what it is | n |\n|---|---|---:|\n| one | " + "word " * 30 + "| 1 |\n| two | **b** | 1234 |\n"
    async with chat(answers=[rows]) as driver:
        await ask(driver, "hi")
        await driver.until(lambda: "1234" in shown(driver))
        lines = [line.plain for line in driver.all(TableLines)[0]._lines]
        assert lines[0].startswith("name  what it is") and lines[1].startswith("────")
        assert sum("word" in line for line in lines) == 3 and max(map(len, lines)) <= 74
        assert next(line for line in lines if line.startswith("one")).endswith("   1")
        assert not driver.all(Sideways)[0].show_horizontal_scrollbar


async def test_a_table_of_many_columns_scrolls_to_the_side() -> None:
    head = " | ".join(f"column number {number}" for number in range(25))
    rows = f"| {head} |\n|{'---|' * 25}\n| {' | '.join(f'cell number {n}' for n in range(25))} |\n"
    async with chat(answers=[rows]) as driver:
        await ask(driver, "hi")
        await driver.until(lambda: driver.all(Sideways)[0].show_horizontal_scrollbar)
        await driver.pilot.press("ctrl+up", *["right"] * 60)
        await driver.until(lambda: "24" in shown(driver))
        assert len(driver.all(TableLines)[0].walk_children()) == 0, "no widget for a cell"


async def test_a_table_that_grows_is_laid_out_anew_only_where_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[str] = []

    def counted(row: list[Content], *more: object) -> list[Content]:
        laid_out.append(row[0].plain)
        return row_lines(row, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("edgemoe.tui.widgets.table.row_lines", counted)
    shows = TableLines(table(["name", "n"], ["a", "1"]))
    shows._lay_out(40)
    shows._table = table(["name", "n"], ["a", "1"], ["b", "2"])
    shows._room = 0
    shows._lay_out(40)
    assert laid_out == ["name", "a", "name", "b"]


@given(st.lists(st.integers(0, 90), min_size=1, max_size=12), st.integers(1, 160))
def test_columns_shrink_to_the_room_and_not_below_their_least(lengths: list[int], room: int) -> None:
    found = widths(table(["h"] * len(lengths), ["x" * length for length in lengths]), room)
    least = [min(max(length, 1), LEAST_COLUMN) for length in lengths]
    between = len(BETWEEN) * (len(lengths) - 1)
    assert all(low <= width <= max(length, 1) for low, width, length in zip(least, found, lengths, strict=True))
    assert sum(found) + between <= max(room, sum(least) + between)
    if sum(max(length, 1) for length in lengths) + between <= room:
        assert found == [max(length, 1) for length in lengths]


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\(\alpha^2 + \frac{a+b}{2} \le \sqrt{x_i}\)", "α² + (a+b)/2 ≤ √(xᵢ)"),
        (r"\[ \int_0^\infty e^{-x^2} dx = \frac{\sqrt{\pi}}{2} \]", "∫₀^∞e^(-x²) dx = √(π)/2"),
        (r"$\sum_{i=1}^{n} i$", "∑ᵢ₌₁ⁿ i"),
        (r"$\mathbb{R}^n \to \text{if } x \in A$", "ℝⁿ → if x ∈ A"),
        (r"$x_{\text{max}}^{\alpha}$", "xₘₐₓ^α"),
        (r"$\left( \frac{1}{1+\frac{a}{b}} \right)$", "( 1/(1+a/b) )"),
        ("$a_{ij} b$", "aᵢⱼ b"),
        (r"$\badcommand{x}$", "x"),
        (r"$$\begin{$$", r"$$\begin{$$"),
    ],
)
def test_formulas_in_unicode(latex: str, text: str) -> None:
    assert in_unicode(latex) == text


async def test_prices_are_no_formulas() -> None:
    async with chat(answers=["from $5 to $6, or $7_000 and $8"]) as driver:
        await ask(driver, "hi")
        await driver.until(lambda: "from $5 to $6, or $7_000 and $8" in shown(driver))
