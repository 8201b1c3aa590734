"""The one error that is the user's to mend, and how a program ends on it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input: the message says who, what was needed, what came and what to do, in one line."""


def exits_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a program's `main`: an InputError becomes one line on stderr and exit code 2, without a traceback."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except InputError as error:
            who = f"[rank {os.environ['RANK']}] " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
            print(f"{who}error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped
