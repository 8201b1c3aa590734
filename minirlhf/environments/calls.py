"""Tool calls in the text that a policy wrote.

plain           <calculator>12+35</calculator>                          the text is the tool's first argument
Qwen, Hermes    <tool_call>{"name": "calculator", "arguments": {...}}</tool_call>
Mistral         [TOOL_CALLS][{"name": "calculator", "arguments": {...}}]  or  [TOOL_CALLS]calculator[ARGS]{...}
Llama           {"name": "calculator", "parameters": {...}}              the whole turn; <|python_tag|> may come first

A text in tags is a call only if the tags have the name of a tool, because a text may hold other tags, such as <think>.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from minirlhf.environments.tools.failure import ToolError
from minirlhf.errors import shown
from minirlhf.foreign import without_repeats

ARGUMENTS = ("arguments", "parameters")  # names of the same key
BETWEEN = re.compile(r"[\s,;]*")  # between two calls
decoder = json.JSONDecoder(object_pairs_hook=without_repeats)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Any  # a dict by JSON, a text between plain tags
    error: str = ""  # a sentence, if the text is a call with a fault; `name` and `arguments` are then empty

    @property
    def plain(self) -> bool:
        return isinstance(self.arguments, str)


def find_calls(text: str, names: Collection[str]) -> list[Call]:
    """The calls of a turn, in their order; [] for a turn without a call.   names: of the known tools."""
    text = text.strip()
    tags = "|".join(map(re.escape, names)) or "(?!)"  # without names no tag is a tool's
    marked = rf"<(?P<tool>{tags})>|<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>"
    calls, position = [], 0
    while found := re.compile(marked).search(text, position):
        reader = partial(_tagged, name=found["tool"]) if found["tool"] else READERS[found[0]]
        some, position = reader(text, found.end())
        calls += some
    if not calls and text.startswith("{"):
        calls = [call for call in _json(text, 0)[0] if not call.error]  # other JSON is an answer
    return calls


def _tagged(text: str, start: int, name: str) -> tuple[list[Call], int]:
    """-> (the call between plain tags, the position after it)."""
    end = text.find(f"</{name}>", start)
    if end < 0:
        return [Call("", "", f"the call has no end; write </{name}> after it")], len(text)
    return [Call(name, text[start:end].strip())], end + len(f"</{name}>")


def _hermes(text: str, start: int) -> tuple[list[Call], int]:
    end = text.find("</tool_call>", start)
    end = len(text) if end < 0 else end
    return _json(text[start:end], 0)[0], end


def _mistral(text: str, start: int) -> tuple[list[Call], int]:
    if not (named := re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]").match(text, start)):
        return _json(text, start)
    try:
        arguments, end = _value(text, named.end())
    except ToolError as error:
        return [Call("", {}, str(error))], len(text)
    return [_call({"name": named[1], "arguments": arguments})], end


def _json(text: str, start: int) -> tuple[list[Call], int]:
    """-> (the calls of one or several JSON values, the position after them)."""
    calls, position = [], BETWEEN.match(text, start).end()
    try:
        while position < len(text) and (text[position] in "[{" and not text.startswith("[TOOL_CALLS]", position)):
            value, end = _value(text, position)
            calls += map(_call, value if isinstance(value, list) else [value])
            position = BETWEEN.match(text, end).end()
    except ToolError as error:
        return [*calls, Call("", {}, str(error))], len(text)
    return calls or [Call("", {}, 'needed a call in JSON: {"name": ..., "arguments": {...}}')], position


READERS = {"<tool_call>": _hermes, "[TOOL_CALLS]": _mistral, "<|python_tag|>": _json}


def _value(text: str, start: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, BETWEEN.match(text, start).end())
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise ToolError(f"the call is no JSON: {reason}") from None


def _call(value: Any) -> Call:
    key = next((key for key in ARGUMENTS if isinstance(value, dict) and key in value), None)
    if key is None or not isinstance(value.get("name"), str):
        return Call("", {}, f'needed "name" and "arguments" in a call, got {shown(value, 60)}')
    arguments = value[key]
    if isinstance(arguments, str):  # some models write the arguments as a text of JSON
        try:
            arguments = _value(arguments, 0)[0]
        except ToolError as error:
            return Call("", {}, str(error))
    if not isinstance(arguments, dict):
        return Call("", {}, f"needed an object of arguments, got {shown(arguments, 60)}")
    return Call(value["name"], arguments)
