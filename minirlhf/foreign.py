"""Text, JSON values and errors that do not come from our code. They may hold anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")  # half a surrogate pair: JSON can hold it, but it is no text


def one_line(text: str, most: int = 4000) -> str:
    """The text with its unprintable letters escaped, so that a terminal cannot obey them. A long middle is left out."""
    text = text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def message_of(error: BaseException) -> str:
    """str(error). The class of the error may be a user's, so this may fail too."""
    try:
        return str(error)
    except Exception:
        return "its message cannot be read"


def unicode_text(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair: a tokenizer refuses it, and no file can hold it."""
    return SURROGATE.sub("\ufffd", text)


def copied(value: Any) -> Any:
    """A JSON value with lists and objects of its own, for a user's code: it may change them."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object. Raises: ValueError for a key that stands twice, because readers differ in the value
    that they take.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {beginning_of_repr(twice, 80)} stands twice in an object")
    return found


def beginning_of_repr(value: Any, most: int) -> str:
    """The beginning of repr(value). repr escapes newlines, controls, invisible letters and halves of surrogate pairs.

    A value of more than `most` letters is cut, with "..." and the whole length.
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
        try:
            yield repr(value[: most + 1] if isinstance(value, str) else value)
        except Exception:  # the class may be a user's
            yield f"<{type(value).__name__}>"


def system_error(error: Exception) -> str | None:
    """The reason of an error that the system gave while a file was written; None for any other error."""
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return error.strerror or str(error)
    # safetensors and tokenizers have errors of their own, with the system's error as text
    found = re.search(r"([^:(]+) \(os error \d+\)", str(error))
    return found[1].strip() if found and type(error).__name__ in ("SafetensorError", "Exception") else None


def allocator_error(error: Exception) -> str | None:
    """The message of an allocator (Python's, the CPU's or the GPU's) that has no memory; None for any other error."""
    text, name = str(error), type(error).__name__
    marks = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    if not isinstance(error, MemoryError) and name != "OutOfMemoryError" and not any(mark in text for mark in marks):
        return None
    text = text[max(0, text.find("DefaultCPUAllocator")) :].partition(". ")[0].splitlines()
    return f"needed memory that the device does not have, got: {beginning_of_repr(text[0] if text else name, 120)}"
