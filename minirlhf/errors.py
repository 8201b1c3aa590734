"""InputError, for mistakes that the user can correct, and the exit codes of a program."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one printable line: the source, the needed value, the given value, a remedy."""

    def __init__(self, message: object) -> None:
        text = str(message)
        text = text if len(text) <= 4000 else f"{text[:2000]} ... {text[-2000:]}"
        # a path or the message of a library can hold newlines, terminal controls and halves of surrogate pairs
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text))


def shown(value: Any, most: int = 80) -> str:
    """A value of a file or a flag, for a message: the beginning of repr(value), in one printable line.

    repr escapes newlines, controls, invisible letters and halves of surrogate pairs. A value of more than `most`
    letters is cut, with "..." and the whole length.
    """
    text, is_text = "".join(islice(_pieces(value, most), most + 3)), isinstance(value, str)
    if len(text) <= most + 2:  # two quotes
        return text
    size = f" ({len(value):,} {'letters' if is_text else 'entries'})" if hasattr(value, "__len__") else ""
    return f"{text[:most]}...{text[0] if is_text else ''}{size}"


def _pieces(value: Any, most: int) -> Iterator[str]:
    """repr(value) in pieces of one letter or more. Only the pieces that are asked for are made."""
    if isinstance(value, list | dict):
        yield "{" if isinstance(value, dict) else "["
        for i, part in enumerate(value):
            yield from [", "] * (i > 0)
            yield from _pieces(part, most)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[part], most)
        yield "}" if isinstance(value, dict) else "]"
    elif isinstance(value, int) and abs(value) >= 1 << 999:  # Python refuses to write more than 4,300 digits
        yield hex(value)
    else:
        yield repr(value[: most + 1] if isinstance(value, str) else value)


def check_range(config: Any, *names: str, least: float = -math.inf, above: float = -math.inf, most: float = math.inf):
    """Raise InputError, naming the field, unless least <= value <= most and value > above. None is always accepted."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (least <= value <= most and value > above):
            bounds = [f"at least {least}"] * (least > -math.inf) + [f"above {above}"] * (above > -math.inf)
            needed = " and ".join(bounds + [f"at most {most}"] * (most < math.inf))
            raise InputError(f"{type(config).__name__}: {name} must be {needed}, got {shown(value)}")


def exits_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a program's `main`: an InputError becomes one line on stderr and exit code 2, without a traceback.

    Under torchrun the line is printed once for all processes; see `torchrun.py`.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        for stream in (sys.stdout, sys.stderr):  # a terminal may lack a letter of a text
            with suppress(AttributeError, ValueError):  # a notebook's stream, a closed stream
                stream.reconfigure(errors="backslashreplace")
        try:
            main()
        except InputError as error:
            from minirlhf.torchrun import end  # here, so that the core loads no leaf

            end(f"error: {error}")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of the output ended first, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None

    return wrapped
