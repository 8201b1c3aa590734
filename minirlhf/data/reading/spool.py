"""Copies of packed, foreign-encoded and streamed data on disk, as plain UTF-8."""

from __future__ import annotations

import codecs
import gzip
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from minirlhf.errors import InputError

CHUNK = 1 << 20
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200  # text becomes 3 to 20 times as long


class Spool:
    """A temporary file. It has no name where the system allows that, so it goes with the process, even if killed.

    Other processes read it through the owner's open file, by `path`.
    """

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile(prefix="minirlhf-")  # noqa: SIM115 - open as long as its rows are read
        self.path = f"/proc/{os.getpid()}/fd/{self.file.fileno()}"
        if not os.path.exists(self.path):  # macOS
            self.file = tempfile.NamedTemporaryFile(prefix="minirlhf-")  # noqa: SIM115 - deleted at exit
            self.path = self.file.name

    def add(self, chunks: Iterable[bytes]) -> tuple[int, int]:
        """Write the chunks at the end.   Returns: their first byte and the byte after the last."""
        start = self.file.seek(0, os.SEEK_END)
        try:
            for chunk in chunks:
                self.file.write(chunk)
            self.file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise InputError(
                f"needed room for an unpacked copy in {folder}, got: {error.strerror}; unpack the file by hand, or set "
                "TMPDIR to a folder with room"
            ) from None
        return start, self.file.tell()


def unpacked(file: BinaryIO) -> Iterator[bytes]:
    """The content of a gzip file. Raises: InputError for a broken file, and for one that grows without end."""
    packed, size, newlines = os.fstat(file.fileno()).st_size, 0, 0
    try:
        stream = gzip.GzipFile(fileobj=file)
        while chunk := stream.read1(CHUNK):
            size, newlines = size + len(chunk), newlines + chunk.count(b"\n")
            if size > max(BOMB_BYTES, BOMB_RATIO * packed):
                grown = f"got {packed:,} bytes that become more than {size:,}; unpack the file by hand"
                raise InputError(f"needed a gzip file that becomes up to {BOMB_RATIO} times as long, {grown}")
            yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        got = f"a file broken after line {newlines} ({error})"
        raise InputError(f"needed a whole gzip file, got {got}; fetch it again") from None


def recoded(chunks: Iterable[bytes], codec: str, lone_returns: bool) -> Iterator[bytes]:
    """Text in UTF-8. A byte that is no text stays as it is, so that reading finds and names its row."""
    decoder, position = codecs.getincrementaldecoder(codec)("surrogateescape"), 0
    try:
        for chunk in chunks:
            yield _as_utf8(decoder.decode(chunk), lone_returns)
            position += len(chunk)
        yield _as_utf8(decoder.decode(b"", final=True), lone_returns)
    except UnicodeError as error:
        fault = getattr(error, "reason", error)
        raise InputError(f"needed {codec}, got a byte that is none after {position:,} bytes ({fault})") from None


def _as_utf8(text: str, lone_returns: bool) -> bytes:
    return (text.replace("\r", "\n") if lone_returns else text).encode("utf-8", "surrogateescape")
