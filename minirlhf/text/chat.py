"""The plain chat layout: turns as readable text, for models without a chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from minirlhf.errors import InputError, shown

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
ROLES |= {"tool": "tool"}
HEADERS = {"user": "User:\n", "assistant": "Assistant:\n", "system": "System:\n", "tool": "Tool:\n"}
TURN_END = "\n\n"


def canonical_role(name: object) -> str:
    """A name in `ROLES` -> a key of `HEADERS`.   Raises: InputError for any other name."""
    if not isinstance(name, str) or name not in ROLES:
        raise InputError(f"role: needed one of {', '.join(ROLES)}, got {shown(name)}; rename the role or drop the row")
    return ROLES[name]


def render_chat(messages: list[dict], add_generation_prompt: bool = False, tools: list | None = None) -> str:
    """Turns as one text: `User:\\n{content}\\n\\nAssistant:\\n{content}\\n\\n`, the content unchanged.

    The layout has no special tokens, so a turn that contains a `User:` line reads like two turns.

    Args:
        messages: [{"role": a name in `ROLES`, "content": text, ...}, ...]; see `turn_text` for the other keys.
        add_generation_prompt: end with `Assistant:\\n`; the model continues from there.
        tools: schemas of tools. The text begins with `Tools:\\n` and a line of JSON for each tool.
    Returns: the text.   Raises: InputError for an unknown role, or a content that is not a string.
    """
    text = tools_text(tools) + TURN_END if tools else ""
    for turn, message in enumerate(messages, start=1):
        role, content = canonical_role(message.get("role")), message.get("content")
        if not isinstance(content, str):
            raise InputError(f"turn {turn}: needed content as a string, got {type(content).__name__}; convert it first")
        text += HEADERS[role] + turn_text(message) + TURN_END
    return text + HEADERS["assistant"] if add_generation_prompt else text


def turn_text(message: dict) -> str:
    """A turn as plain text: the reasoning between <think> tags, the content, and each tool call between <tool_call>
    tags. The result of a tool begins with the tool's name.
    """
    content, reasoning, calls = message["content"], message.get("reasoning_content"), message.get("tool_calls")
    parts = [f"<think>\n{reasoning}\n</think>\n"] if reasoning else []
    if message["role"] == "tool" and message.get("name"):
        parts.append(f"{message['name']}:")
    parts += [content] if content or not calls else []
    parts += [f"<tool_call>\n{_json(call_of(call))}\n</tool_call>" for call in calls or ()]
    return "\n".join(parts)


def tools_text(tools: list) -> str:
    """The schemas of tools as plain text."""
    return "\n".join(["Tools:", *map(_json, tools)])


def call_of(call: object) -> object:
    """{"name", "arguments"} of a tool call in the form of OpenAI; any other call is returned whole."""
    return call["function"] if isinstance(call, dict) and isinstance(call.get("function"), dict) else call


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def answer_spans(
    render: Callable[[list[dict], bool], str], messages: list[dict], text: str, ends: Sequence[str] = ()
) -> list[tuple[int, int]]:
    """The (start, end) of each answer in the text of all turns. The turns before an answer are rendered to find it.

    An answer starts where the earlier turns with the generation prompt end. It ends with the last end token (`ends`) of
    its own turn; the layout may write more after that token, but the model does not. If the layout changes an answer
    once turns follow (Qwen3 drops its reasoning), the answer ends with its first end token.

    Args:
        render:   (turns, add_generation_prompt) -> text.
        messages: all turns.   text: their rendered text.
        ends:     the texts of the end tokens.
    Raises: InputError if `text` does not begin with the text before an answer.
    """
    spans = []
    for turn, message in enumerate(messages):
        if ROLES.get(message.get("role")) != "assistant":
            continue
        if not turn:
            raise InputError(
                "turn 1: no turn leads to this answer, so its tokens cannot be located; begin with a user turn, or use "
                "a template with {% generation %} blocks"
            )
        before = render(messages[:turn], True)
        after = render(messages[: turn + 1], False)
        start, stop = len(before), None
        if after.startswith(before) and text.startswith(after):
            answer = after[start:].rstrip()
            stop = start + len(answer) if answer.endswith(tuple(ends)) else len(after)
        elif text.startswith(before):
            stop = min((text.index(end, start) + len(end) for end in ends if end in text[start:]), default=None)
        if stop is None:
            raise InputError(
                f"turn {turn + 1}: this template renders earlier turns differently once an answer follows, so the "
                "answer's tokens cannot be located; use a template with {% generation %} blocks"
            )
        spans.append((start, stop))
    return spans
