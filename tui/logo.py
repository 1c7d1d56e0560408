"""The program's name in half blocks."""

from __future__ import annotations

from textual.content import Content

_LETTERS = {
    "E": ("####", "#   ", "### ", "#   ", "####"),
    "D": ("### ", "#  #", "#  #", "#  #", "### "),
    "G": (" ###", "#   ", "# ##", "#  #", " ###"),
    "M": ("#   #", "## ##", "# # #", "#   #", "#   #"),
    "O": (" ## ", "#  #", "#  #", "#  #", " ## "),
}
_HALVES = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}


def _drawn(word: str) -> list[str]:
    rows = [" ".join(_LETTERS[letter][row] for letter in word) for row in range(5)]
    rows.append(" " * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return ["".join(_HALVES[a == "#", b == "#"] for a, b in zip(upper, lower, strict=True)) for upper, lower in pairs]


LOGO = Content("\n").join(
    Content.assemble((left, "$map-cool"), "  ", (right, "bold $primary"))
    for left, right in zip(_drawn("EDGE"), _drawn("MOE"), strict=True)
)
WORDS = Content.styled("hot experts on the device, cold ones on the CPU", "$muted")
