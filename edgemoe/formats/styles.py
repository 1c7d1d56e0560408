"""The markers of each family: what opens and closes thinking, what encloses tool calls. Pure.

A style is chosen by the template's own text, and by a render of it where the template puts its markers together.
``learn`` takes the markers of a family that is not listed here from such a render.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from ..errors import BadTemplate
from . import calls
from .calls import Parse
from .learn import learnt_call, learnt_thinking
from .template import Template


@dataclass(frozen=True)
class CallMarkers:
    """What encloses tool calls.

    Attributes:
        start: the text before them.
        end: the text behind them; empty where only the end of the answer is.
        parse: reads what stands between.
        inner: markers between that may be tokens of their own.
    """

    start: str
    end: str
    parse: Parse
    inner: tuple[str, ...] = ()


@dataclass(frozen=True)
class Style:
    """How one family writes.

    Attributes:
        harmony: channels, as gpt-oss writes them; nothing else matters then.
        thinking: pairs of opening and closing markers.
        calls: what encloses tool calls.
        dropped: markers that stand around an answer and mean nothing.
        bare: an answer that is nothing but a call is one: Llama's ``[get_weather(city="Oslo")]``.
        call_ends_thinking: a tool call may come before thinking was closed.
        thinks: the template knows of thinking, so that an answer may begin with it.
    """

    harmony: bool = False
    thinking: tuple[tuple[str, str], ...] = ()
    calls: tuple[CallMarkers, ...] = ()
    dropped: tuple[str, ...] = ()
    bare: bool = False
    call_ends_thinking: bool = False
    thinks: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Every marker, the longest first."""
        if self.harmony:
            return HARMONY
        found = [marker for pair in self.thinking for marker in pair] + list(self.dropped)
        for call in self.calls:
            found += [call.start, call.end, *call.inner]
        return tuple(sorted({marker for marker in found if marker}, key=lambda marker: (-len(marker), marker)))


HARMONY = ("<|constrain|>", "<|channel|>", "<|message|>", "<|return|>", "<|start|>", "<|call|>", "<|end|>")

THINKING = (
    ("<|channel>thought", "<channel|>"),
    ("<think>", "</think>"),
    ("<mm:think>", "</mm:think>"),
    ("<seed:think>", "</seed:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
"""Pairs around thinking; of those that a template names the first is its family's."""

_KIMI = ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
_DEEPSEEK = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
_SOLAR = ("<|tool_call:begin|>", "<|tool_call:args|>", "<|tool_call:end|>")
_K3 = ("<|open|>", "<|close|>", "<|sep|>")

CALLS = (
    CallMarkers("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", calls.by_tokens(*_KIMI), _KIMI),
    CallMarkers("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", calls.by_tokens(*_DEEPSEEK), _DEEPSEEK),
    CallMarkers("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", calls.invocations, ("｜DSML｜",)),
    CallMarkers("<｜DSML｜function_calls>", "</｜DSML｜function_calls>", calls.invocations, ("｜DSML｜",)),
    CallMarkers("<|tool_call>", "<tool_call|>", calls.gemma, ('<|"|>',)),
    CallMarkers("<|tool_call_start|>", "<|tool_call_end|>", calls.anything),
    CallMarkers("<|python_start|>", "<|python_end|>", calls.anything),
    CallMarkers("<|python_tag|>", "", calls.anything),
    CallMarkers("<minimax:tool_call>", "</minimax:tool_call>", calls.invocations),
    CallMarkers("]<]minimax[>[<tool_call>", "]<]minimax[>[</tool_call>", calls.minimax_m3, ("]<]minimax[>[",)),
    CallMarkers("<seed:tool_call>", "</seed:tool_call>", calls.functions),
    CallMarkers("<atem:function_calls>", "</atem:function_calls>", calls.invocations),
    CallMarkers("<TOOLCALL>", "</TOOLCALL>", calls.in_json),
    CallMarkers("<|START_ACTION|>", "<|END_ACTION|>", calls.in_json),
    CallMarkers("<|tools_prefix|>", "<|tools_suffix|>", calls.in_json),
    CallMarkers("<|tool_calls|>", "<|calls|>", calls.by_tokens(*_SOLAR), (*_SOLAR, "<|tool_call:name|>")),
    CallMarkers("<|open|>tools<|sep|>", "<|close|>tools<|sep|>", calls.k3, _K3),
    CallMarkers("<|tool_call|>", "", calls.in_json),
    CallMarkers("<|function_call|>", "", calls.in_json),
    CallMarkers("[TOOL_CALLS]", "", calls.named_json, ("[CALL_ID]", "[ARGS]")),
    CallMarkers("<tool_calls:opensource>", "</tool_calls:opensource>", calls.nested),
    CallMarkers("<tool_calls>", "</tool_calls>", calls.anything),
    CallMarkers("<tool_call>", "</tool_call>", calls.anything),
)
"""What encloses tool calls, the longer markers before those that they contain."""

_FUNCTION = CallMarkers("<function=", "</function>", lambda text, schemas: calls.functions(_whole(text), schemas))
_NAMED_FUNCTION = CallMarkers(
    '<function name="', "</function>", lambda text, schemas: calls.functions(_whole(text, ' name="'), schemas)
)
_AROUND = (
    *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    *("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
)
ENDS = (
    *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|eot|>", "<|eom|>", "<|eot_id|>", "<|eom_id|>"),
    *("<｜end▁of▁sentence｜>", "<turn|>", "<|tool_response>", "<end_of_turn>", "<eos>", "</s>", "[e~[", "<|user|>"),
    *("<|observation|>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>", "<|end_of_msg|>", "<|assistant_end|>"),
    *("<|end_of_sentence|>", "<|role_end|>", "[|endofturn|]", "<seed:eos>"),
)
"""Markers behind an answer: only at its very end are they taken for such."""


def _whole(text: str, equals: str = "=") -> str:
    """A function without the outer pair of its family, as Qwen3-Coder writes it at times."""
    return f"<function{equals}{text}</function>"


UNKNOWN = Style(thinking=THINKING[1:2])
"""Without a template: nothing but the usual pair, where an answer begins with it."""
ANY = Style(thinking=THINKING, calls=CALLS)
"""For texts whose template is no longer known."""


@lru_cache(maxsize=32)
def style_of(template: str) -> Style:
    """The style of the family that ``template`` belongs to."""
    if not template:
        return UNKNOWN
    if "<|channel|>" in template and "<|message|>" in template:
        return Style(harmony=True, thinks=True)
    shown = template + "\n" + _render(template)
    thinking = _thinking(template, shown)
    enclosing = _enclosing(template, shown)
    if any(call.start == "<tool_call>" for call in enclosing) and "<function=" in shown:
        enclosing += (_FUNCTION,)
    if '<function name="' in shown:
        enclosing += (_NAMED_FUNCTION,)
    dropped = tuple(marker for marker in _AROUND if marker in shown)
    llama = "ipython" in template and '"parameters": ' in template
    if llama:  # named nowhere either
        enclosing += tuple(call for call in CALLS if call.start.startswith("<|python_") and call not in enclosing)
    kimi = any(call.start == "<|tool_calls_section_begin|>" for call in enclosing)
    return Style(False, thinking, enclosing, dropped, llama, kimi, thinks=thinking != UNKNOWN.thinking or _named(shown))


def _named(shown: str) -> bool:
    return all(marker in shown for marker in UNKNOWN.thinking[0])


def _thinking(template: str, shown: str) -> tuple[tuple[str, str], ...]:
    for pair in THINKING:
        if pair[1] in shown and (pair[0] in shown or f"{pair[0]}\n" in shown):
            return (pair,)
    for name in re.findall(r"[<\[]([\w:.-]*(?:think|thought|reason)[\w:.-]*)[>\]]", template, re.IGNORECASE):
        for opening, closing in (f"<{name}>", f"</{name}>"), (f"[{name}]", f"[/{name}]"):
            if opening in template and closing in template:
                return ((opening, closing),)
    pair_or_none = learnt_thinking(compiled(template))
    return (pair_or_none,) if pair_or_none else UNKNOWN.thinking


def _enclosing(template: str, shown: str) -> tuple[CallMarkers, ...]:
    found = tuple(call for call in CALLS if call.start in shown)
    if any(call.start == "]<]minimax[>[<tool_call>" for call in found):
        found = tuple(call for call in found if call.start != "<tool_call>")
    if "<|tool_list_start|>" in shown:  # LFM2 names its call markers nowhere
        found += tuple(call for call in CALLS if call.start == "<|tool_call_start|>" and call not in found)
    if found or not (learnt := learnt_call(compiled(template))):
        return found
    return (CallMarkers(learnt.start, learnt.end, learnt.parse, learnt.inner),)


@lru_cache(maxsize=32)
def compiled(template: str) -> Template | None:
    """The template, None where it cannot be compiled; compiled once."""
    try:
        return Template(template)
    except BadTemplate:
        return None


def _render(template: str) -> str:
    """The template with a tool and a call: markers that it puts together are seen in it."""
    known = compiled(template)
    return known.shown() if known else ""
