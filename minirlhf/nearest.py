"""The known name that a user may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


def nearest(name: str, known: Iterable[str], form: str = "{}") -> str:
    """The end of a message: "; the nearest is NAME", or "" if no known name is like `name`. form: how NAME is written.

    The part after the last dot counts twice: a.lr is near b.lr.
    """
    name = name[:100]  # the time grows with the square of the length

    def likeness(candidate: str) -> list[float]:
        ends = name.rpartition(".")[2], candidate.rpartition(".")[2]
        whole, end = (SequenceMatcher(None, *pair).ratio() for pair in ((name, candidate), ends))
        end = max(end, 0.8) if len(ends[0]) > 1 and ends[1].startswith(ends[0]) else end  # kl is near kl_coef
        return [whole + end, max(whole, end) + 0.05 * (ends[0][:2] == ends[1][:2])]  # few slips are at the beginning

    best = max(known, key=likeness)
    return f"; the nearest is {form.format(best)}" if likeness(best)[1] > 0.67 else ""
