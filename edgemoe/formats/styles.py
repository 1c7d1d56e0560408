"""The markers of each family: pairs around thinking, and pairs around tool calls. Pure.

A style is chosen by the template's own text, and by a render of it, because some templates assemble their markers.
``learn`` takes the markers of an unlisted family from such a render.
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
    """Describe the markers around tool calls.

    Attributes:
        start: the text before the calls.
        end: the text after the calls; empty if the answer ends there.
        parse: function that reads the text between the markers.
        inner: markers between start and end that may be special tokens.
    """

    start: str
    end: str
    parse: Parse
    inner: tuple[str, ...] = ()


@dataclass(frozen=True)
class Style:
    """Describe the notation of one family.

    Attributes:
        harmony: True for gpt-oss's channels. The other attributes then do not count.
        thinking: pairs of opening and closing markers.
        calls: markers around tool calls.
        dropped: markers around an answer that have no meaning.
        bare: True if an answer may be a call without markers, as Llama's ``[get_weather(city="Oslo")]``.
        call_ends_thinking: True if a tool call may come before thinking was closed.
        thinks: True if the template mentions thinking, so that an answer may begin with it.
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
        """List every marker, the longest first."""
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
"""Pairs around thinking. The first pair that a template names is the pair of its family."""

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
"""Markers around tool calls. A longer marker comes before a marker that it contains."""

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
"""Markers after an answer. They only count at its very end."""


def _whole(text: str, equals: str = "=") -> str:
    """Complete a function without the outer pair of its family; Qwen3-Coder sometimes writes it so."""
    return f"<function{equals}{text}</function>"


UNKNOWN = Style(thinking=THINKING[1:2])
"""Style without a template: only the usual pair, at the begin of an answer."""
ANY = Style(thinking=THINKING, calls=CALLS)
"""Style for texts with an unknown template."""


@lru_cache(maxsize=32)
def style_of(template: str) -> Style:
    """Find the style of the family that ``template`` belongs to."""
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
    if llama:  # Llama's templates do not name their call markers, either
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
    if "<|tool_list_start|>" in shown:  # LFM2's templates do not name their call markers
        found += tuple(call for call in CALLS if call.start == "<|tool_call_start|>" and call not in found)
    if found or not (learnt := learnt_call(compiled(template))):
        return found
    return (CallMarkers(learnt.start, learnt.end, learnt.parse, learnt.inner),)


@lru_cache(maxsize=32)
def compiled(template: str) -> Template | None:
    """Compile a template once; None if it cannot be compiled."""
    try:
        return Template(template)
    except BadTemplate:
        return None


def _render(template: str) -> str:
    """Render the template with a tool and a call, which shows markers that the template assembles."""
    known = compiled(template)
    return known.shown() if known else ""
