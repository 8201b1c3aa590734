"""The built-in chat layouts: Jinja that this library and other tools render alike.

{% generation %} marks the assistant's answer with its end token. A layout trims contents (`message.content | trim`) if
the template of its original models does. A layout without system turns puts the system text before the first user turn.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    template: str  # Jinja
    needs: tuple[str, ...] = ()  # tokens that the vocabulary must have
    turn_end: str | None = None  # the token that ends a turn; None: the tokenizer's EOS


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

# The beginning of the layouts without system turns. `system` is the text to put before the first user turn.
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

# The text of `render_chat`. It has no end token, so EOS ends an answer in training.
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
