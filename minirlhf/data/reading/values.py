"""The values of data files, read one at a time, and read again from disk."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import BinaryIO, NamedTuple

from minirlhf.data.reading.containers import DOCUMENTS, JsonLines
from minirlhf.data.reading.files import STDIN, files_of
from minirlhf.data.reading.kinds import Encoding, check_kind, encoding_of, is_gzip, is_parquet
from minirlhf.data.reading.parquet import json_lines
from minirlhf.data.reading.recognise import Region, recognise
from minirlhf.data.reading.spool import CHUNK, Spool, recoded, unpacked
from minirlhf.errors import InputError, shown

HEAD = 1 << 16  # bytes by which the kind and the encoding of a file are recognised
OFFSET_BITS = 42  # of `Source.at`: files of up to 4 TB
STDIN_NAME = "standard input"


class Source(NamedTuple):
    """A value of a data file."""

    unit: str  # "line", "row" (of an array, of parquet), "document" or "file"
    number: int  # from 1, in its file
    value: object  # the JSON value, or an InputError that names the fault of a broken value
    file: str
    at: int  # the position for `Values.at`


@dataclass(frozen=True)
class Part:
    """A file of a `Values`."""

    name: str  # for messages
    source: str  # the data file's path
    stamp: tuple[int, int]  # the data file's size and time of change
    path: str  # where the text is: the data file, or a copy
    region: Region
    words: str  # the format


@dataclass(frozen=True)
class Values:
    """The values of one or several files. An iteration reads them from disk, one at a time.

    Other processes may use a copy, by fork or pickle, as long as this process lives: each access opens the file.
    """

    parts: tuple[Part, ...]
    notes: tuple[str, ...]  # files that are left out
    spool: Spool | None  # the copies; they go with the last `Values` that holds them

    @property
    def format(self) -> str:
        """In words: "JSONL", or "3 files: CSV with header (2), JSONL (1)"."""
        words = Counter(part.words for part in self.parts)
        if len(self.parts) == 1:
            return self.parts[0].words
        counts = (f"{name} ({count})" for name, count in words.most_common())
        return (
            f"{len(self.parts)} files: {', '.join(counts)}"
            if len(words) > 1
            else f"{len(self.parts)} files: {next(iter(words))}"
        )

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of the text, unpacked."""
        return sum(part.region.end - part.region.start for part in self.parts)

    def __iter__(self) -> Iterator[Source]:
        for index, part in enumerate(self.parts):
            container, start, end, line = part.region
            with _opened(part) as file:
                file.seek(start)
                for offset, number, value in container.scan(file, end, line):
                    yield Source(container.unit, number, value, part.name, index << OFFSET_BITS | offset)

    def at(self, at: int) -> object:
        """Read again the value at a position that an iteration gave."""
        part = self.parts[at >> OFFSET_BITS]
        with _opened(part) as file:
            file.seek(at & ((1 << OFFSET_BITS) - 1))
            return next(part.region.container.scan(file, part.region.end)).value

    def __reduce__(self) -> tuple:
        return Values, (self.parts, self.notes, None)  # an open file stays with its process


def open_values(
    source: str | os.PathLike | Sequence, *, encoding: str | None = None, as_text: bool = False, documents: str = "line"
) -> Values:
    """Recognise the files of a source. Packed and foreign-encoded files are copied as UTF-8 into a temporary file.

    Args:
        source:   a file, a folder, a pattern, "-" for standard input, several with commas, or a list of these.
        encoding: of the files, such as "gb18030"; by default UTF-8, or as their byte order marks say.
        as_text:  read everything that is not JSON as plain text, tables too.
        documents: of plain text: a "line", a part up to a "blank_line", or a "file".
    Raises: InputError if a file is missing, binary or broken as a whole.
    """
    if documents not in DOCUMENTS:
        raise InputError(f"open_values: documents: needed one of {', '.join(DOCUMENTS)}, got {shown(documents)}")
    spool = cache(Spool)  # made for the first copy
    names, notes = files_of(source)
    parts = []
    for name in names:
        title, path = (STDIN_NAME, _standard_input().path) if name == STDIN else (name, name)
        with _named(title), open(path, "rb") as file:
            parts.append(_part(file, title, path, encoding, as_text, documents, spool))
    return Values(tuple(parts), tuple(notes), spool() if spool.cache_info().currsize else None)


def _part(
    file: BinaryIO, name: str, path: str, asked: str | None, as_text: bool, documents: str, spool: Callable[[], Spool]
) -> Part:
    status, head = os.fstat(file.fileno()), file.read(HEAD)
    file.seek(0)
    made = partial(Part, name, path, (status.st_size, status.st_mtime_ns))
    check_kind(head)
    if is_parquet(head):
        region = Region(JsonLines("parquet", "row"), *spool().add(json_lines(path)))
        return made(spool().path, region, "parquet")
    chunks, packed = iter(partial(file.read, CHUNK), b""), is_gzip(head)
    if packed:
        chunks = unpacked(file)
        first = _at_least(chunks, HEAD)
        head, chunks = first[:HEAD], chain([first], chunks)
        check_kind(head)
        if is_gzip(head) or is_parquet(head):
            raise InputError("needed text inside the gzip file, got a packed file; unpack it first: gunzip")
    encoding = encoding_of(head, asked)
    lone_returns = _has_lone_returns(head, encoding)
    recognised = partial(recognise, name=name, encoding=encoding.words, as_text=as_text, documents=documents)
    if packed or encoding.codec != "utf-8" or lone_returns:
        chunks = _without_mark(chunks, encoding.skip)
        if encoding.codec != "utf-8" or lone_returns:
            chunks = recoded(chunks, encoding.codec, lone_returns)
        start, end = spool().add(chunks)
        path = spool().path
        with open(path, "rb") as copy:
            region = recognised(copy, start, end)
    else:
        region = recognised(file, encoding.skip, status.st_size)
    details = [region.container.words, *[encoding.words] * (encoding.words != "UTF-8"), *["gzip"] * packed]
    return made(path, region, ", ".join(details))


def _at_least(chunks: Iterator[bytes], size: int) -> bytes:
    """The first chunks, joined until they have `size` bytes."""
    found = b""
    while len(found) < size and (chunk := next(chunks, b"")):
        found += chunk
    return found


def _has_lone_returns(head: bytes, encoding: Encoding) -> bool:
    text = head.decode(encoding.codec, "replace")[:-1]  # the last letter may be the first of "\r\n"
    return "\r" in text and "\n" not in text


def _without_mark(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    yield next(chunks, b"")[skip:]
    yield from chunks


@cache
def _standard_input() -> Spool:
    """A copy of standard input, which can be read only once."""
    stream = getattr(sys.stdin, "buffer", None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(f"{STDIN_NAME}: needed one process, got several, which would share it; write a file first")
    if stream is None or sys.stdin.isatty():
        raise InputError(f"{STDIN_NAME}: needed data, got a terminal; write: cat FILE | ... --data -")
    spool, first = Spool(), stream.read(HEAD)
    with _named(STDIN_NAME):
        check_kind(first)
        if first and not first.strip(b"\0"):
            raise InputError("needed data, got nothing but NUL bytes")  # such as those of /dev/zero, which never end
        spool.add(chain([first], iter(partial(stream.read, CHUNK), b"")))
    return spool


@contextmanager
def _opened(part: Part) -> Iterator[BinaryIO]:
    """The file with the part's text. It must stay as it was when the values were opened."""
    with _named(part.name), open(part.path, "rb") as file:
        if part.path == part.source:
            _check_unchanged(part, file)
        yield file
        if part.path == part.source:
            _check_unchanged(part, file)


def _check_unchanged(part: Part, file: BinaryIO) -> None:
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != part.stamp:
        other_size = status.st_size != part.stamp[0]
        got = f"{status.st_size:,} bytes instead of {part.stamp[0]:,}" if other_size else "one that was written since"
        raise InputError(f"needed the file as it was when it was opened, got {got}; start again")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the file's name before the message of an error."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except OSError as error:
        raise InputError(
            f"{name}: needed a readable data file, got: {error.strerror or error}; check the path"
        ) from None
