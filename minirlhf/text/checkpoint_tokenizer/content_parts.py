"""Templates of models that also see pictures: some of them read a turn's content only as a list of parts.

Such a template writes nothing for a content of plain text, without an error: the model would learn empty turns. A trial
conversation shows it.
"""

from __future__ import annotations

from collections.abc import Callable

WORD = "okapi zebra"  # no template writes these words by itself


def needs_parts(render: Callable[[list[dict]], dict]) -> bool:
    """True if a template writes the content of a turn only if it is a list of parts.

    render: turns -> the dict of `sandbox.reply`.
    """
    turn = {"role": "user", "content": WORD}
    from_text, from_parts = (render([each]).get("text", "") for each in (turn, in_parts(turn)))
    is_dump = "'type'" in from_parts or '"type"' in from_parts  # of the list itself
    return WORD in from_parts and WORD not in from_text and not is_dump


def in_parts(turn: dict) -> dict:
    """The turn with a content of text as a list with one part."""
    content = turn.get("content")
    return {**turn, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn
