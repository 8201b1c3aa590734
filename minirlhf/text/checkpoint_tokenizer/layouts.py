"""The built-in chat layouts, as data: Jinja that this library and any other tool renders alike.

What an assistant says, its end token included, stands in {% generation %}. `message.content | trim` is the habit of the
models whose layout it is. A system turn that a layout has no place for goes in front of the first user turn.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """A template, the tokens a vocabulary must have for it, and what ends a turn (None: the tokenizer's own EOS)."""

    template: str
    needs: tuple[str, ...] = ()
    turn_end: str | None = None


_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ message.content + '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}{{ message.content + '<|im_end|>' }}{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ message.content | trim + '<|eot_id|>' }}{%- endgeneration -%}
{%- else -%}{{ message.content | trim + '<|eot_id|>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

# the layouts without system turns begin with this: `system` is what goes before the first user turn
_SYSTEM_FIRST = """\
{%- set system, turns = '', messages -%}
{%- if messages[0].role == 'system' -%}
{%- set system, turns = messages[0].content | trim + '\\n\\n', messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
{%- if message.role != ('user' if loop.index0 is even else 'assistant') -%}
{{ raise_exception('needed user and assistant in turn after at most one system turn, got ' + message.role) }}
{%- endif -%}
{%- endfor -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- for message in turns -%}
{%- if message.role == 'user' -%}{{ '[INST] ' + (system if loop.first else '') + message.content + '[/INST]' }}
{%- else -%}{%- generation -%}{{ ' ' + message.content + eos_token }}{%- endgeneration -%}{%- endif -%}
{%- endfor -%}
"""

_GEMMA = """\
{{- bos_token -}}
{%- for message in turns -%}
{%- if message.role == 'user' -%}
{{ '<start_of_turn>user\\n' + (system if loop.first else '') + message.content | trim + '<end_of_turn>' }}
{%- else -%}{{ '<start_of_turn>model\\n' }}
{%- generation -%}{{ message.content | trim + '<end_of_turn>' }}{%- endgeneration -%}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ message.content + eos_token }}{%- endgeneration -%}
{%- else -%}{{ message.content + eos_token }}{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
"""

_ALPACA = """\
{{- bos_token -}}
{{- system or 'Below is an instruction. Write a response that fulfils it.\\n\\n' -}}
{%- for message in turns -%}
{%- if message.role == 'user' -%}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}
{%- else -%}{{ '### Response:\\n' }}
{%- generation -%}{{ message.content + eos_token }}{%- endgeneration -%}{{ '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}
"""

# the text of `render_chat`; the token that ends an answer is the blank line, as there
_PLAIN = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ message.role | capitalize + ':\\n' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ message.content + '\\n\\n' }}{%- endgeneration -%}
{%- else -%}{{ message.content + '\\n\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:\\n' }}{%- endif -%}
"""

LAYOUTS = {
    "chatml": Layout(_CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama3": Layout(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "mistral": Layout(_SYSTEM_FIRST + _MISTRAL),
    "gemma": Layout(_SYSTEM_FIRST + _GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "zephyr": Layout(_ZEPHYR),
    "alpaca": Layout(_SYSTEM_FIRST + _ALPACA),
    "plain": Layout(_PLAIN),
}
