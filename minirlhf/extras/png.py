"""PNG files: arrays of bytes <-> the bytes of a file.

A file is a signature, then chunks of (length, type, data, checksum): IHDR, perhaps a palette PLTE, IDAT (lines
compressed by zlib), IEND. Each line begins with the number of its filter. See https://www.w3.org/TR/png.

H, W pixels, C channels.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np

from minirlhf.errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # the colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
KNOWN = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # the chunks without which no picture can be drawn


def png_bytes(pixels: np.ndarray) -> bytes:
    """A file of pixels [H, W] (grey) or [H, W, 3] (red, green, blue), bytes."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)  # filter 0: the bytes as they are
    header = struct.pack(">IIBBBBB", width, height, 8, GREY if pixels.ndim == 2 else RGB, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return SIGNATURE + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def pixels_of(data: bytes, width: int, height: int) -> np.ndarray:
    """The pixels [H, W, 3] of a file, bytes. Samples of 16 bits are rounded to 8. Profiles of colours are not read.

    Raises: InputError for a picture of another size (nothing is decompressed then), a file that is broken or
    interlaced, and for transparent pixels, because the colour behind them is unknown.
    """
    parts = defaultdict(list)
    for kind, body in _chunks(data):
        if not kind[0] & 32 and kind not in KNOWN:  # an upper-case letter: the picture needs the chunk
            raise InputError(f"needed a PNG of the chunks IHDR, PLTE, IDAT and IEND, got {kind!r}")
        parts[kind].append(body)
    chunks = {kind: b"".join(bodies) for kind, bodies in parts.items()}
    if len(chunks.get(b"IHDR", b"")) != 13 or b"IDAT" not in chunks:
        raise InputError("broken PNG: it has no header or no pixels")
    W, H, depth, colour, *methods = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if (width, height) != (W, H):
        raise InputError(f"needed {width} x {height} pixels, got {W} x {H}; resize the picture")
    if depth not in DEPTHS.get(colour, ()) or methods[:2] != [0, 0] or methods[2] > 1:
        raise InputError(f"broken PNG: no picture has the colour type {colour} with {depth} bits and {methods}")
    if methods[2]:
        raise InputError("needed a PNG that is not interlaced, got an interlaced one (Adam7); save it without")
    samples = _samples(chunks[b"IDAT"], W, H, depth, CHANNELS[colour])
    return _colours(samples, depth, colour, chunks.get(b"PLTE", b""), chunks.get(b"tRNS"))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) of each chunk up to IEND."""
    at, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[at : at + 8]) if at + 8 <= len(data) else (0, b"")
        body, checksum = data[at + 8 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4:
            raise InputError("broken PNG: the file is cut short")
        if zlib.crc32(kind + body) != int.from_bytes(checksum):
            raise InputError(f"broken PNG: the checksum of the chunk {kind!r} is wrong")
        yield kind, body
        at += 12 + length


def _samples(packed: bytes, W: int, H: int, depth: int, C: int) -> np.ndarray:
    """-> samples [H, W, C]: bytes, or numbers of 16 bits."""
    stride, size = (W * C * depth + 7) // 8, max(1, C * depth // 8)  # bytes of a line, and of a pixel
    unpacking = zlib.decompressobj()
    try:
        lines = unpacking.decompress(packed, H * (stride + 1) + 1)  # a bomb stops one byte behind the picture
    except zlib.error as error:
        raise InputError(f"broken PNG: {error}") from None
    if len(lines) != H * (stride + 1) or not unpacking.eof:
        raise InputError(f"broken PNG: needed {H} lines of {stride + 1} bytes, got more or fewer")
    rows = _unfiltered(lines, H, stride, size)
    if depth == 16:
        return rows.view(">u2").reshape(H, W, C)
    if depth == 8:
        return rows.reshape(H, W, C)
    bits = np.unpackbits(rows, axis=1)[:, : W * depth].reshape(H, W, 1, depth)
    return bits @ (1 << np.arange(depth)[::-1])


def _unfiltered(lines: bytes, H: int, stride: int, size: int) -> np.ndarray:
    """Undo the filters -> [H, stride]: a line holds the difference to a prediction from the bytes left of and above it.

    size: bytes of a pixel.
    """
    coded = np.frombuffer(lines, dtype=np.uint8).reshape(H, stride + 1)
    rows = np.zeros((H + 1, stride), dtype=np.uint8)  # above the first line stands a line of zeros
    for above, row, kind, line in zip(rows, rows[1:], coded[:, 0].tolist(), coded[:, 1:], strict=False):
        if kind > 4:
            raise InputError(f"broken PNG: needed a filter from 0 to 4, got {kind}")
        if kind in AVERAGE_OR_PAETH:
            line = _one_by_one(AVERAGE_OR_PAETH[kind], line.tolist(), above.tolist(), size)
        elif kind == 2:  # a difference to the byte above
            line = line + above
        elif kind == 1:  # a difference to the byte on the left
            line = np.cumsum(line.reshape(-1, size), axis=0, dtype=np.uint8).reshape(-1)
        row[:] = line
    return rows[1:]


def _one_by_one(prediction: Callable[[int, int, int], int], line: list[int], above: list[int], size: int) -> list[int]:
    for i, up in enumerate(above):
        left, corner = (line[i - size], above[i - size]) if i >= size else (0, 0)
        line[i] = (line[i] + prediction(left, up, corner)) & 255
    return line


def _paeth(left: int, up: int, corner: int) -> int:
    """The neighbour that is nearest to left + up - corner."""
    return min((left, up, corner), key=lambda neighbour: abs(left + up - corner - neighbour))


AVERAGE_OR_PAETH = {3: lambda left, up, corner: (left + up) // 2, 4: _paeth}


def _colours(samples: np.ndarray, depth: int, colour: int, palette: bytes, transparent: bytes | None) -> np.ndarray:
    """Samples [H, W, C] -> [H, W, 3] bytes.   transparent: the data of the chunk tRNS."""
    most = 2**depth - 1
    if colour == PALETTE:
        colours = np.frombuffer(palette, dtype=np.uint8)
        if len(colours) % 3 or samples.max() >= len(colours) // 3:
            raise InputError(f"broken PNG: a pixel has the colour {samples.max()}, which the palette lacks")
        opacity = np.full(256, 255)
        opacity[: len(transparent or b"")] = np.frombuffer(transparent or b"", dtype=np.uint8)[:256]
        hidden, pixels = opacity[samples] < 255, colours.reshape(-1, 3)[samples[..., 0]]
    else:
        alpha = colour in (GREY_ALPHA, RGB_ALPHA)
        hidden, samples = (samples[..., -1] < most, samples[..., :-1]) if alpha else (np.zeros(1, bool), samples)
        if transparent is not None and not alpha:  # this colour is transparent
            if len(transparent) != 2 * samples.shape[-1]:
                raise InputError("broken PNG: its chunk tRNS is cut short")
            hidden = (samples == np.frombuffer(transparent, dtype=">u2")).all(-1)
        pixels = np.round(samples * (255 / most)).astype(np.uint8) if depth != 8 else samples
    if hidden.any():
        raise InputError("needed a picture without transparent pixels, got some; put it on a background")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
