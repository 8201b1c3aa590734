"""What the first bytes of a file tell: binary formats, compression, and the encoding of a text."""

from __future__ import annotations

import codecs
from typing import NamedTuple

from minirlhf.errors import InputError, shown

UNPACK = "unpack it first: "
CONVERT = "convert it to JSONL first"
NO_DATA = "name a data file"
KINDS = (  # first bytes, name, advice
    ((b"PK\x03\x04",), "a zip archive (or .xlsx, .docx, .npz, .pt)", UNPACK + "unzip"),
    ((b"BZh91AY&SY",), "a bzip2 file", UNPACK + "bunzip2"),
    ((b"\xfd7zXZ\x00",), "an xz file", UNPACK + "unxz"),
    ((b"\x28\xb5\x2f\xfd",), "a zstd file", UNPACK + "unzstd"),
    ((b"\x04\x22\x4d\x18",), "an lz4 file", UNPACK + "unlz4"),
    ((b"7z\xbc\xaf\x27\x1c",), "a 7z archive", UNPACK + "7z x"),
    ((b"Rar!\x1a",), "a rar archive", UNPACK + "unrar x"),
    ((b"\x1f\x9d",), "a file of compress", UNPACK + "uncompress"),
    ((b"ARROW1\x00", b"\xff\xff\xff\xff"), "an Arrow file", CONVERT),
    ((b"Obj\x01",), "an Avro file", CONVERT),
    ((b"\x89HDF",), "an HDF5 file", CONVERT),
    ((b"SQLite format 3\x00",), "an SQLite database", CONVERT),
    ((b"\x93NUMPY",), "a NumPy array", CONVERT),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle, which can run programs", CONVERT),
    ((b"\xd0\xcf\x11\xe0",), "an old Office file (.xls, .doc)", "save it as CSV first"),
    ((b"%PDF",), "a PDF", "extract its text first: pdftotext"),
    ((b"{\\rtf",), "an RTF document", "save it as plain text"),
    ((b"\x89PNG",), "a PNG picture", NO_DATA),
    ((b"\xff\xd8\xff",), "a JPEG picture", NO_DATA),
    ((b"GIF87a", b"GIF89a"), "a GIF picture", NO_DATA),
    ((b"\x7fELF",), "a program", NO_DATA),
    ((b"version https://git-lfs",), "a Git LFS pointer instead of the data", "fetch the data: git lfs pull"),
    ((b"/annex/objects/",), "a git-annex pointer instead of the data", "fetch the data: git annex get"),
    ((b"<!doctype html", b"<html"), "an HTML page instead of the data", "fetch the data again, by its raw address"),
)
CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})  # bytes that no text has
MARKS = (  # byte order marks; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8", "UTF-8 with BOM"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)


class Encoding(NamedTuple):
    """How to decode a file."""

    codec: str
    skip: int  # bytes of the byte order mark
    words: str


def is_gzip(head: bytes) -> bool:
    return head.startswith(b"\x1f\x8b")


def is_parquet(head: bytes) -> bool:
    return head.startswith(b"PAR1")


def check_kind(head: bytes) -> None:
    """Raise InputError for a binary file, and for a pointer or a page in place of the data."""
    for begins, name, advice in KINDS:
        if head.startswith(begins) or head[:20].lower().startswith(begins):
            raise InputError(f"needed JSONL, JSON, CSV, plain text, parquet or gzip, got {name}; {advice}")
    if head[257:262] == b"ustar":
        raise InputError(f"needed data files, got a tar archive; {UNPACK}tar xf")


def encoding_of(head: bytes, asked: str | None) -> Encoding:
    """The encoding of a text: by its byte order mark, as asked, or else UTF-8.

    Raises: InputError for an unknown encoding, for another one than the mark's, and for bytes that are no text.
    """
    known = None if asked is None else known_encoding(asked)
    for mark, codec, words in MARKS:
        if head.startswith(mark):
            if known not in (None, codec, codec[:6].removesuffix("-"), "utf-8-sig"):
                raise InputError(f"needed {asked} (--encoding), got a file with the byte order mark of {words}")
            return Encoding(codec, len(mark), words)
    if known is not None:
        if known not in ("utf-8", "utf-8-sig") and _is_utf8(head) and (known.startswith("utf") or not head.isascii()):
            raise InputError(f"needed {asked} (--encoding), got text in UTF-8; leave --encoding out for this file")
        codec = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}.get(known, known)
        return Encoding(codec, 0, "UTF-8" if codec == "utf-8" else asked.upper())
    wide = _wide_codec(head)
    if wide:
        return Encoding(wide, 0, f"{wide[:6].upper()} without BOM")
    if sum(map(head.count, CONTROL)) * 100 > len(head):  # a broken line of a text may hold a few
        begin = shown(head[:16])
        raise InputError(f"needed text, got a binary file that begins with {begin}; is it UTF-16? --encoding utf-16")
    return Encoding("utf-8", 0, "UTF-8")


def _wide_codec(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark: the first two letters of JSON, and of Latin text, are ASCII."""
    for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        begin = head[: 8 if "32" in codec else 4].decode(codec, "replace")
        if 0 in head[:4] and begin.isascii() and all(letter.isprintable() or letter.isspace() for letter in begin):
            return codec
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # a letter may be cut at the end
        return b"\0" not in head
    except UnicodeDecodeError:
        return False


def known_encoding(name: str) -> str:
    """Python's name of an encoding.   Raises: InputError if Python has no encoding of texts of this name."""
    try:
        "text".encode(name).decode(name)  # refuses codecs of bytes, such as zip
        return codecs.lookup(name).name
    except (LookupError, ValueError, AttributeError):
        advice = "use utf-8, utf-16, gb18030, big5, shift_jis or latin-1"
        raise InputError(f"--encoding: needed an encoding that Python knows, got {shown(name)}; {advice}") from None
