"""Values for the variables of a chat template, such as enable_thinking.

The values become defaults at the top of the template: every tool that reads the saved template renders as training did,
and a value in a call still wins.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.foreign import without_repeats
from minirlhf.text.checkpoint_tokenizer.answer_end import with_answer_end
from minirlhf.text.checkpoint_tokenizer.template import ChatTemplate
from minirlhf.text.parts import TokenizerParts

SET_BY_CALLS = {"messages", "tools", "documents", "add_generation_prompt"}
WHO = "template_variables"


def with_variables(parts: TokenizerParts, variables: dict[str, Any] | str) -> TokenizerParts:
    """The parts with new defaults for variables that the chat template reads.

    variables: {name: JSON value}, or its text.
    Raises: InputError for text that is no JSON object, or a name that no template reads.
    """
    values = _object(variables) if isinstance(variables, str) else variables
    if not parts.templates:
        raise InputError(f"{WHO}: the tokenizer has no chat template, so nothing reads {', '.join(map(shown, values))}")
    fixed = SET_BY_CALLS | parts.special.keys()
    reads = {name: _read_by(template.source) - fixed for name, template in parts.templates.items()}
    known = set().union(*reads.values())
    for name, value in values.items():
        if name not in known:
            listed = ", ".join(sorted(known)) or "no variables"
            raise InputError(f"{WHO}: the chat template does not read {shown(name)}; it reads {listed}")
        _literal(value)
    templates = {
        name: ChatTemplate(
            _defaults({key: values[key] for key in values if key in reads[name]}) + template.source, parts.special
        )
        for name, template in parts.templates.items()
    }
    return with_answer_end(replace(parts, templates=templates))


def _object(text: str) -> dict:
    try:
        values = json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f'{WHO}: needed a JSON object such as {{"enable_thinking": false}}, got {shown(text)}')
    return values


def _read_by(source: str) -> set[str]:
    from minirlhf.text.checkpoint_tokenizer import sandbox

    return sandbox.variables_of(source)


def _defaults(values: dict[str, Any]) -> str:
    """Jinja that sets names that no call has set. It writes nothing: the line break after a block is trimmed."""
    sets = [
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in values.items()
    ]
    return "".join(sets) + "\n" if sets else ""


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it. Jinja reads the escapes of JSON's strings."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return f"{{{', '.join(f'{_literal(name)}: {_literal(part)}' for name, part in value.items())}}}"
    raise InputError(f"{WHO}: needed a JSON value, got {shown(value)}")
