"""The margins of pairs: how much higher the score of the chosen answer should be."""

from __future__ import annotations

from collections.abc import Sequence

from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, shown
from minirlhf.rewards.scoring import LARGEST, as_number


def margins_of(rows: Sequence[EncodedRow]) -> list[float]:
    """The number under the key "margin" of each source row; 0 if the key is missing or null.

    Raises: InputError, naming the row, if a margin is no number or too large for fp32.
    """
    margins = []
    for row in rows:
        margin = row.source.get("margin")
        number = 0.0 if margin is None else as_number(margin)
        if not abs(number) <= LARGEST:
            where = f"line {row.source['line']}" if "line" in row.source else shown(row.source["prompt"], 40)
            raise InputError(f"{where}: margin must be a number of at most {LARGEST:g} in size, got {shown(margin)}")
        margins.append(number)
    return margins
