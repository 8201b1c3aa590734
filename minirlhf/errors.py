"""InputError, for mistakes that the user can correct, and the exit codes of a program."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class InputError(ValueError):
    """Bad input. The message is one printable line: the source, the needed value, the given value, a remedy."""

    def __init__(self, message: object) -> None:
        from minirlhf.foreign import one_line  # here, so that the core loads no leaf

        super().__init__(one_line(str(message)))  # it may hold a path, or the message of a library


def shown(value: Any, most: int = 80) -> str:
    """A value of a file or a flag, for a message: one printable line of about `most` letters; see `foreign.py`."""
    from minirlhf.foreign import beginning_of_repr

    return beginning_of_repr(value, most)


@contextmanager
def writes(path: object) -> Iterator[None]:
    """Inside the block an error of the system, such as a full disk, becomes an InputError that names `path`."""
    try:
        yield
    except Exception as error:
        from minirlhf.foreign import system_error  # here, so that the core loads no leaf

        if not (reason := system_error(error)):
            raise
        raise InputError(f"{path}: needed to write it, got: {reason}; make room or give rights, then go on") from None


def check_range(config: Any, *names: str, least: float = -math.inf, above: float = -math.inf, most: float = math.inf):
    """Raise InputError, naming the field, unless the value is finite and in these bounds. None is always accepted."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (least <= value <= most and value > above and abs(value) < math.inf):
            bounds = [f"at least {least}"] * (least > -math.inf) + [f"above {above}"] * (above > -math.inf)
            needed = " and ".join(bounds + ([f"at most {most}"] if most < math.inf else ["finite"] * math.isinf(value)))
            raise InputError(f"{type(config).__name__}: {name} must be {needed}, got {shown(value)}")


def exits_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a program's `main`: an InputError becomes one line on stderr and exit code 2, without a traceback.

    An error of an allocator does too.
    Under torchrun the line is printed once for all processes; see `torchrun.py`.
    """

    @functools.wraps(main)
    def wrapped() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError):  # the stream of a notebook, a closed stream
                stream.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of a text
        try:
            main()
        except InputError as error:
            from minirlhf.torchrun import end  # here, so that the core loads no leaf

            end(f"error: {error}")
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            from minirlhf.foreign import allocator_error  # here, so that the core loads no leaf
            from minirlhf.torchrun import end

            if not (reason := allocator_error(error)):
                raise
            end(f"error: {reason}; lower microbatch_tokens or batch_size, or take a smaller model")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise SystemExit(130) from None
        except OSError as error:
            from minirlhf.pipe import end_without_output  # here, so that the core loads no leaf

            end_without_output(error)

    return wrapped
