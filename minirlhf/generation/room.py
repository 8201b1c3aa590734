"""Prompts that leave room for an answer in the context."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from minirlhf.data.encoding import EncodedRow


def with_room(context: int, rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """The rows to look at: a prompt that leaves no room in the context is left out, with a warning. It ends no run."""
    fitting = [row for row in rows if len(row.prompt) < context]
    if n := len(rows) - len(fitting):
        warnings.warn(f"{n} of {len(rows)} prompts leave no room in the context of {context}: left out", stacklevel=2)
    return fitting
