"""The turns of a dialogue in all spellings -> {"role": "user" | "assistant" | "system" | "tool", "content": str, ...}.

... are the other keys of the source turn, unchanged, for chat templates. Four of them have one spelling:

    "weight"      0 or 1: is the turn learned? The source may say loss_weight, train or trainable.
    "tool_calls"  [{"type": "function", "function": {"name": str, "arguments": dict}}, ...]. The source may hold a call
                  as the content of a turn of the role function_call, or as JSON text.
    "reasoning_content"  the source may have it as a part of the content.
    "name", "tool_call_id"  as they are.
"""

from __future__ import annotations

import json
from contextlib import suppress

from minirlhf.data.columns import PART_KEYS, TURN_KEYS, WEIGHTS, has_meaning, is_empty, names_of
from minirlhf.data.rows import with_type
from minirlhf.errors import InputError
from minirlhf.foreign import without_repeats
from minirlhf.text.chat import HEADERS, TURN_END, render_chat, turn_text

SPELLINGS = {
    "user": "user human prompter usr 用户",
    "assistant": "assistant gpt bot chatgpt model bing bard claude ai chatbot moss 助手",
    "system": "system developer sys",
    "tool": "tool observation function ipython tool_response function_response tool_result function_result",
    "call": "function_call tool_call",  # an assistant turn whose content is a call
}
ROLES = {name: role for role, names in SPELLINGS.items() for name in names.split()}
SIDES = {"input": "user", "question": "user", "instruction": "user", "query": "user"}  # turns written as pairs
SIDES |= {"output": "assistant", "answer": "assistant", "response": "assistant"}


def turns_of(value: object, key: str, ignored: tuple[str, ...] = ()) -> list[dict]:
    """A message, a list of messages, or their JSON text -> turns.   key: names the column in errors.

    ignored: keys of turns to leave out.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = parsed(value, key)  # a table holds turns as text
    if not isinstance(value, dict | list):
        raise InputError(f"{key}: needed text or turns, got {got(value)}")
    if value and isinstance(value, list) and all(isinstance(text, str) for text in value):
        return alternating(value)
    turns = []
    for number, message in enumerate([value] if isinstance(value, dict) else value, start=1):
        try:
            if not isinstance(message, dict):
                raise InputError(f"needed an object with role and content, got {got(message)}")
            turns.extend(_turns({name: part for name, part in message.items() if name not in ignored}))
        except InputError as error:
            raise InputError(f"{key}: turn {number}: {error}") from None
    return turns


def alternating(texts: list[str]) -> list[dict]:
    """A list of texts: the user's first, then the assistant's, and so on."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _turns(message: dict) -> list[dict]:
    """One turn, or the turns of a message such as {"human": text, "assistant": text}."""
    if not message.keys() & {"role", "from"}:
        sides = {name: ROLES.get(name.lower()) or SIDES.get(name.lower()) for name in message}
        if not message or None in sides.values():
            raise InputError(f"needed an object with role and content, got the keys {names_of(message) or 'none'}")
        turns = [{"role": sides[name], "content": text} for name, text in message.items() if not is_empty(text)]
        return [turn for side in turns for turn in _turns(side)]
    role = _role(_one_of(message, "role", "from"))
    turn = {name: value for name, value in message.items() if name not in TURN_KEYS and not is_empty(value)}
    content = _one_of(message, "content", "value", "text")
    weight = [_weight(turn.pop(name), name, role) for name in WEIGHTS if name in turn]
    calls = [turn.pop(name) for name in ("tool_calls", "function_call") if name in turn]
    if role == "call":
        role, calls, content = "assistant", [*calls, content], ""
        if isinstance(calls[-1], str) and (thought := calls[-1].lstrip()).startswith("<think>"):
            thought, _, calls[-1] = thought.removeprefix("<think>").partition("</think>")
            turn["reasoning_content"] = thought.strip()
    for kind, part in _parts(content, role, bool(calls)):
        if kind == "call":
            calls.append(part)
        else:
            turn[kind] = turn.get(kind, "") + part
    if calls:
        if role != "assistant":
            raise InputError(f"tool_calls: needed an assistant turn, got a {role} turn")
        turn["tool_calls"] = [call for value in calls for call in tool_calls(value)]
    if weight:
        turn["weight"] = weight[0]
    return [{"role": role, "content": turn.pop("content", ""), **turn}]


def _role(name: object) -> str:
    role = ROLES.get(name.strip().lower().replace("-", "_")) if isinstance(name, str) else None
    if role is None:
        raise InputError(f"role: needed one of {', '.join(ROLES)}, got {got(name)}; rename the role or drop the row")
    return role


def _one_of(message: dict, *keys: str) -> object:
    """The value of a key or of its other names."""
    values = {key: message[key] for key in keys if message.get(key) is not None}
    if len({json.dumps(value) for value in values.values()}) > 1:
        came = " and ".join(got(value) for value in values.values())
        raise InputError(f"needed {' or '.join(values)}, got both: {came}")
    return next(iter(values.values()), None)


PARTS = {"text": "content", "reasoning": "reasoning_content", "thinking": "reasoning_content", "tool_call": "call"}


def _parts(content: object, role: str, has_calls: bool) -> list[tuple[str, object]]:
    """The content as ("content" | "reasoning_content" | "call", value) pairs."""
    if isinstance(content, str) or (content is None and has_calls):
        return [("content", content or "")]
    if role == "tool" and content is not None and not _are_parts(content):
        return [("content", json.dumps(content, ensure_ascii=False))]  # a tool's result
    if not isinstance(content, list):
        raise InputError(f"needed text as content, got {got(content)}")
    found = []
    for part in content:
        kind = PARTS.get(str(part.get("type"))) if isinstance(part, dict) else "content"
        value = _one_of(part, "text", "value", part["type"]) if kind and isinstance(part, dict) else part
        if kind is None or not (isinstance(value, str) or kind == "call"):
            raise InputError(f"needed text as content, got {got(value)}")
        more = [name for name in part if name not in (*PART_KEYS, part["type"])] if isinstance(part, dict) else []
        if meant := [name for name in more if has_meaning(name) and not is_empty(part[name])]:
            raise InputError(f"content: needed parts with type and text, got {names_of(meant)} in a part")
        found.append((kind, value))
    return found


def _are_parts(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and part.get("type") in PARTS for part in content)


def _weight(value: object, name: str, role: str) -> int:
    """0 or 1."""
    is_number = isinstance(value, int | float) and (not isinstance(value, bool) or "weight" not in name)
    if not is_number or value not in (0, 1):
        raise InputError(f"{name}: needed 0 or 1, got {got(value)}")
    if value and role != "assistant":
        raise InputError(f"{name}: needed 0, because a {role} turn is not learned, got {got(value)}")
    return int(value)


def tool_calls(value: object) -> list[dict]:
    """Calls in any spelling, or their JSON text -> [{"type": "function", "function": {...}}, ...]."""
    value = parsed(value, "tool call") if isinstance(value, str) else value
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
            raise InputError(f'tool call: needed {{"name": text, "arguments": object}}, got {got(call)}')
        arguments = _one_of(function, "arguments", "parameters")
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):  # text that is no JSON stays as it is
                arguments = json.loads(arguments or "{}", object_pairs_hook=without_repeats)
        names = ("name", "arguments", "parameters")
        more = {} if function is call else {name: part for name, part in function.items() if name not in names}
        function = {"name": function["name"], "arguments": {} if arguments is None else arguments} | more
        rest = {name: part for name, part in call.items() if name not in ("type", "function", *names)}
        calls.append({"type": "function", "function": function, **rest})
    return calls


def tools_of(value: object) -> list[dict]:
    """A list of tools, or its JSON text -> [{"type": "function", "function": {"name": str, ...}}, ...]."""
    value = parsed(value, "tools") if isinstance(value, str) else value
    tools = [value] if isinstance(value, dict) else value
    if not isinstance(tools, list):
        raise InputError(f"tools: needed a list of tools, got {got(value)}")
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"tools: needed tools with a name, got {got(tool)}")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def plain_answer(turns: list[dict]) -> str:
    """The turns of an answer as text: assistant turns joined by blank lines, or with headers if tools spoke."""
    if any(turn["role"] != "assistant" for turn in turns):
        return render_chat(turns).removeprefix(HEADERS["assistant"]).removesuffix(TURN_END)
    texts = [turn_text(turn) for turn in turns]
    return texts[0] if len(texts) == 1 else "\n\n".join(text for text in texts if text.strip())


def is_plain(turns: list[dict]) -> bool:
    """True if the text of an answer is all of it."""
    one = {"role": "assistant", "content": "", "weight": 1}
    return all(one | turn | {"content": ""} == one for turn in turns)


def parsed(text: str, key: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key}: needed JSON, got {got(text)} ({str(error).partition(';')[0]})") from None


def got(value: object) -> str:
    return "null" if value is None else with_type(value)
