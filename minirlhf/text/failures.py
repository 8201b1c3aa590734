"""Failures of the tokenizers library on a text, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minirlhf.errors import InputError, shown


@contextmanager
def text_errors() -> Iterator[None]:
    """A failure of the library on a text becomes an InputError. Call only the library inside."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception
        raise InputError(
            f"tokenizer: it fails on a text ({shown(str(error), 300)}); leave the text out, or take another tokenizer"
        ) from None
