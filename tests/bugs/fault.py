"""A fault of the museum: a change of one line of the package."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault that is `real` was seen in other RLHF code; the others are slips that are easily made.

    old stands exactly once in `file`, below minirlhf/.   program: of programs.py, with these settings.
    test: the test that catches it.   rule: the doctor's rule that sees it; None: no recorded metric shows it.
    """

    program: str
    file: str
    old: str
    new: str
    title: str
    effect: str
    real: bool
    test: str
    rule: str | None
    settings: tuple[str, ...] = ()
