"""Formulas of LaTeX as text of Unicode. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pylatexenc.latex2text import LatexNodes2Text

_PLAIN = "0123456789+-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVW"
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂ"
_BELOW_PLAIN = "0123456789+-=()aehijklmnoprstuvx"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ"
_SCRIPTS = {"^": dict(zip(_PLAIN, _RAISED, strict=True)), "_": dict(zip(_BELOW_PLAIN, _LOWERED, strict=True))}
_SCRIPT = re.compile(r"([\^_])(?:\{([^{}]*)\}|([A-Za-z0-9+\-]))")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_WORDS = re.compile(r"\\(?:text|mathrm|operatorname|mathbf|mathit)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg|displaystyle|limits|,|;|!|:|quad|qquad)(?![A-Za-z])")
_SPACES = {",": "\ue002", ";": "\ue002", ":": "\ue002", "quad": "\ue002", "qquad": "\ue002"}
_RELATION = re.compile(r"\s*([=<>≤≥≠≈→↦⇒⇔∈∉≡∼⊂⊆∪∩×±])\s*")  # the parser takes the space after a command
_NAME_ENDS = re.compile(r"(\\[A-Za-z]+)(?=[\^_])")  # a raised letter would belong to the name before it
_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))


def in_unicode(formula: str) -> str:
    """Write ``formula``, with its delimiters, in Unicode; one that cannot be read stays as it is."""
    inner = next((formula[len(a) : -len(b)] for a, b in _DELIMITERS if formula.startswith(a)), formula)
    try:
        text = _reader().latex_to_text(_prepared(inner)).translate(_ASCII)
    except Exception:  # of a parser that reads anything a model writes
        return formula
    text = " ".join(_RELATION.sub(r" \1 ", text).split())
    return formula if not text or "\\" in text else text


@lru_cache(maxsize=1)
def _reader() -> LatexNodes2Text:
    from pylatexenc.latex2text import LatexNodes2Text  # loaded with the first formula: its tables take a while

    return LatexNodes2Text(math_mode="text", strict_latex_spaces=False, keep_comments=True)


def _prepared(latex: str) -> str:
    """Write scripts, fractions and spaces, which Unicode has or a line of text shows otherwise."""
    latex = _NAME_ENDS.sub(r"\1{}", latex)
    latex = _NOISE.sub(lambda found: _SPACES.get(found[0][1:], ""), latex)
    before = ""
    while before != latex:  # from the innermost braces outwards
        before = latex
        latex = _SCRIPT.sub(_script, latex)
        latex = _FRACTION.sub(lambda found: f"{_grouped(found[1])}/{_grouped(found[2])}", latex)
        latex = _WORDS.sub(r"\1", latex)
    return latex.replace("\\\\", " ; ").replace("&", " ")


def _script(found: re.Match[str]) -> str:
    marks, text = _SCRIPTS[found[1]], found[2] if found[2] is not None else found[3]
    if all(mark in marks for mark in text):
        return "".join(marks[mark] for mark in text)
    # In marks of their own until the parser is done: the next pass must not see them again.
    return f"{_KEPT[found[1]]}({text})" if len(text) > 1 and not text.startswith("\\") else f"{_KEPT[found[1]]}{text}"


_KEPT = {"^": "\ue000", "_": "\ue001"}
_ASCII = {ord("\ue002"): " "} | {ord(kept): mark for mark, kept in _KEPT.items()}


def _grouped(text: str) -> str:
    text = text.strip()
    return text if re.fullmatch(r"\w+|\\[A-Za-z]+", text) else f"({text})"
