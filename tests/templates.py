"""Small chat templates for tests, each in the style of a family, so that tests need no publisher's file."""

from __future__ import annotations

from collections.abc import Mapping

_CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
    {%- if message.reasoning_content and loop.last %}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content or '' }}
    {%- for call in message.tool_calls or [] %}CALL{%- endfor %}
{%- elif message.role == 'tool' %}
    {{- '<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- else %}
    {{- message.content }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

_HERMES = "{{- '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\\n</tool_call>' }}"
_FUNCTION = """{{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for key, value in call.function.arguments | items %}
    {{- '<parameter=' + key + '>\\n' + value + '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}"""
_KEYS = """{{- '<tool_call>' + call.function.name }}
{%- for key, value in call.function.arguments | items %}
    {{- '<arg_key>' + key + '</arg_key><arg_value>' + value + '</arg_value>' }}
{%- endfor %}
{{- '</tool_call>' }}"""
_INVOKE = """{{- '<minimax:tool_call>\\n<invoke name="' + call.function.name + '">' }}
{%- for key, value in call.function.arguments | items %}
    {{- '<parameter name="' + key + '">' + value + '</parameter>' }}
{%- endfor %}
{{- '</invoke>\\n</minimax:tool_call>' }}"""
_DSML = """{%- set d = '｜DSML｜' %}
{{- '<' + d + 'tool_calls>\\n<' + d + 'invoke name="' + call.function.name + '">\\n' }}
{%- for key, value in call.function.arguments | items %}
    {{- '<' + d + 'parameter name="' + key + '" string="true">' + value + '</' + d + 'parameter>\\n' }}
{%- endfor %}
{{- '</' + d + 'invoke>\\n</' + d + 'tool_calls>' }}"""

HERMES = _CHATML.replace("CALL", _HERMES)
OPENED = HERMES.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
QWEN_XML = _CHATML.replace("CALL", _FUNCTION)
GLM = _CHATML.replace("CALL", _KEYS)
MINIMAX = _CHATML.replace("CALL", _INVOKE)
DSML = _CHATML.replace("CALL", _DSML)
PLAIN = """{%- for message in messages %}
{%- if message.role not in ('user', 'assistant') %}{{ raise_exception('Only user and assistant.') }}{%- endif %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{%- endif %}
{{- ('[INST] ' + message.content + ' [/INST]') if message.role == 'user' else message.content + eos_token }}
{%- endfor %}"""
HARMONY = """{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort | default('medium')) + '<|end|>' }}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}
    {%- if message.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif %}
    {{- '<|start|>assistant to=functions.' + message.tool_calls[0].function.name + '<|channel|>commentary json<|message|>' }}
    {{- message.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- elif message.role == 'assistant' %}
    {%- if '<|channel|>' in message.content %}{{ raise_exception('channels in content') }}{%- endif %}
    {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- else %}
    {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""

# Families by one line of their templates, enough for a reader to recognise them.
MENTIONED: Mapping[str, str] = {
    "mistral": "{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}",
    "ministral": "{{ '[THINK]' }}{{ '[/THINK]' }}{{ '[TOOL_CALLS]' }}{{ '[ARGS]' }}",
    "deepseek": "{{ '<｜tool▁calls▁begin｜>' }}{{ '<think>' }}{{ '</think>' }}",
    "kimi": "{{ '<|tool_calls_section_begin|>' }}{{ '<think>' }}{{ '</think>' }}",
    "k3": "{{ '<|open|>think<|sep|><|close|>think<|sep|><|open|>response<|sep|><|close|>response<|sep|><|close|>message<|sep|><|open|>tools<|sep|>' }}",
    "gemma": "{{ '<|channel>thought' }}{{ '<channel|>' }}{{ '<|tool_call>' }}",
    "lfm": "{{ '<|tool_list_start|>' }}",
    "llama": "{{ 'ipython' }}{{ '\"parameters\": ' }}",
    "minimax-m3": "{{ '<mm:think>' }}{{ '</mm:think>' }}{{ ']<]minimax[>[<tool_call>' }}",
    "seed": "{{ '<seed:think>' }}{{ '</seed:think>' }}{{ '<seed:tool_call>' }}",
    "command": "{{ '<|START_THINKING|><|END_THINKING|><|START_RESPONSE|><|END_RESPONSE|><|START_ACTION|>' }}",
    "nemotron-2": "{{ '<think>' }}{{ '</think>' }}{{ '<TOOLCALL>' }}",
    "apertus": "{{ '<|inner_prefix|><|inner_suffix|><|tools_prefix|>' }}",
    "apriel": "{{ '<tool_calls>' }}",
    "hy3": "{{ '<think:opensource></think:opensource><tool_calls:opensource>' }}",
    "granite": "{{ '<|tool_call|>' }}",
    "solar": "{{ '<|tool_calls|>' }}",
    "minicpm": "{{ '<think></think><function name=\"' }}",
}
