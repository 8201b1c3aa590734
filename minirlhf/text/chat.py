"""The plain chat layout: turns as readable text, for models that bring no chat template of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def answer_spans(
    render: Callable[[list[dict], bool], str], messages: list[dict], text: str, ends: Sequence[str] = ()
) -> list[tuple[int, int]]:
    """Where in the text of all turns the assistant's answers stand, found by rendering the turns before each.

    An answer begins where the turns before it, with the generation prompt, end, and reaches to the end of its own turn;
    what a layout writes after the turn's end token (`ends`), which no model says, is left out. Where a layout writes an
    answer in another way once turns follow (Qwen3 drops its reasoning), the answer ends with its first end token.

    Args:
        render: (turns, add_generation_prompt) -> text.
        text:   that of all turns.
    Raises: InputError if the text before an answer is not how the text of all turns begins.
    """
    spans = []
    for turn, message in enumerate(messages):
        if ROLES.get(message.get("role")) != "assistant":
            continue
        before = render(messages[:turn], True) if turn else ""
        after = render(messages[: turn + 1], False)
        start, stop = len(before), None
        if after.startswith(before) and text.startswith(after):
            said = after[start:].rstrip()
            stop = start + len(said) if said.endswith(tuple(ends)) else len(after)
        elif text.startswith(before):
            stop = min((text.index(end, start) + len(end) for end in ends if end in text[start:]), default=None)
        if not turn or stop is None:
            raise InputError(
                f"turn {turn + 1}: needed a chat template that writes turns one after another, this one writes what "
                "leads to the answer in another way when it follows; use a template with {% generation %} blocks"
            )
        spans.append((start, stop))
    return spans
