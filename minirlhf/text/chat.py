"""The plain chat layout: turns as readable text, for models that bring no chat template of their own."""

from __future__ import annotations

from minirlhf.errors import InputError

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
HEADERS = {"user": "User:\n", "assistant": "Assistant:\n", "system": "System:\n"}
TURN_END = "\n\n"


def canonical_role(name: object) -> str:
    """One of the keys of `HEADERS`, for any name in `ROLES`.   Raises: InputError for every other name."""
    if not isinstance(name, str) or name not in ROLES:
        raise InputError(f"role: needed one of {', '.join(ROLES)}, got {name!r}; rename the role or drop the row")
    return ROLES[name]


def render_chat(messages: list[dict], add_generation_prompt: bool = False) -> str:
    """Turns as one text: `User:\\n{content}\\n\\nAssistant:\\n{content}\\n\\n`, the content unchanged.

    The layout is text without special tokens, so a turn that itself holds a `User:` line reads like two.

    Args:
        messages: [{"role": a name in `ROLES`, "content": text}, ...]; other keys are ignored.
        add_generation_prompt: end with `Assistant:\\n`, after which the model speaks.
    Returns: the text.   Raises: InputError for an unknown role or a content which is no string.
    """
    text = ""
    for turn, message in enumerate(messages, start=1):
        role, content = canonical_role(message.get("role")), message.get("content")
        if not isinstance(content, str):
            raise InputError(f"turn {turn}: needed content as a string, got {type(content).__name__}; convert it first")
        text += HEADERS[role] + content + TURN_END
    return text + HEADERS["assistant"] if add_generation_prompt else text
