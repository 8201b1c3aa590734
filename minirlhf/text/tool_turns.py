"""Turns with tools, in the form that a chat template reads.

Some templates want a call's arguments as an object, others as a string. Many templates have no tools: they would drop
the calls in silence. A trial conversation shows it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from minirlhf.errors import InputError
from minirlhf.text.chat import call_of, tools_text, turn_text

NAME, VALUE, RESULT = "zebra_count", "okapi", "seven zebras"  # no template writes these words by itself
ID = "abcdefghi"  # Mistral's templates need nine letters or digits
SCHEMA = {"type": "object", "properties": {"place": {"type": "string", "description": "d"}}, "required": ["place"]}
TOOLS = [{"type": "function", "function": {"name": NAME, "description": "Counts.", "parameters": SCHEMA}}]
FORMS = {"object": {"place": VALUE}, "string": json.dumps({"place": VALUE})}


def tool_form(tokenizer: Any) -> str | None:
    """The form of a call's arguments that the chat template reads: "object" or "string"; None if it has no tools."""
    return _form(tokenizer.templates.get("tool_use") or tokenizer.templates.get("default"))


@lru_cache(maxsize=16)
def _form(template: Any) -> str | None:
    for form, arguments in FORMS.items() if template else ():
        call = {"id": ID, "type": "function", "function": {"name": NAME, "arguments": arguments}}
        trial = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": NAME, "tool_call_id": ID, "content": RESULT},
            {"role": "assistant", "content": "Hello"},
        ]
        try:
            text = template.render(trial, False, TOOLS)[0]
        except InputError:
            continue
        if all(word in text for word in ("Counts.", VALUE, RESULT)):
            return form
    return None


def has_tools(turns: list[dict]) -> bool:
    return any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns)


def with_arguments(turn: dict, form: str) -> dict:
    """The turn with the arguments of its calls in this form. Text that is no JSON object stays text."""
    if not turn.get("tool_calls"):
        return turn
    return {**turn, "tool_calls": [_with_arguments(call, form) for call in turn["tool_calls"]]}


def _with_arguments(call: Any, form: str) -> Any:
    function = call_of(call)
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if form == "string" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif form == "object" and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def without_tools(turns: list[dict], tools: list | None) -> list[dict]:
    """The same turns for a template without tools: schemas stand in the system turn, calls in the content of their
    turn, and results in user turns, all of them as `render_chat` writes them.
    """
    plain = []
    for turn in turns:
        role = "user" if turn["role"] == "tool" else turn["role"]
        rest = {key: value for key, value in turn.items() if key not in ("tool_calls", "name", "tool_call_id")}
        if turn["role"] == "tool":
            plain.append({"role": role, "content": turn_text(turn)})
        elif turn.get("tool_calls"):  # the reasoning stays under its key: the template may read it
            content = {**turn, "reasoning_content": None}
            plain.append({**rest, "content": turn_text(content)})
        else:
            plain.append(turn)
    if not tools:
        return plain
    first = plain[0] if plain and plain[0]["role"] == "system" else None
    text = "\n\n".join([tools_text(tools), *([first["content"]] if first else [])])
    return [{**(first or {"role": "system"}), "content": text}, *plain[1 if first else 0 :]]
