"""PNG files: every colour type and depth gives the pixels that Pillow reads; broken files are refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest

from minirlhf.errors import InputError
from minirlhf.extras.png import CHANNELS, DEPTHS, SIGNATURE, pixels_of, png_bytes

W, H = 5, 6


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def file(lines, depth=8, colour=0, *more, size=(W, H), interlaced=0, methods=(0, 0)):
    """A file of compressed lines.   more: chunks between header and pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, *methods, interlaced))
    return SIGNATURE + header + b"".join(more) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def lines_of(rows, filters=(0,)):
    """Lines of bytes [H, stride] with filter 0."""
    rows = np.asarray(rows).astype(np.uint8)
    return b"".join(bytes([filters[i % len(filters)]]) + row.tobytes() for i, row in enumerate(rows))


def filtered(rows, size):
    """Lines with the filters 1, 2, 3, 4, 1, ...   size: bytes of a pixel."""
    rows, lines = np.asarray(rows).astype(int), []
    for i, row in enumerate(rows):
        above = rows[i - 1] if i else np.zeros_like(row)
        a, c = (np.concatenate([np.zeros(size, int), line[:-size]]) for line in (row, above))
        near = [abs(above - c), abs(a - c), abs(a + above - 2 * c)]  # of left + above - corner to left, above, corner
        paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), a, np.where(near[1] <= near[2], above, c))
        kind = 1 + i % 4
        lines.append(
            bytes([kind]) + ((row - [a, above, (a + above) // 2, paeth][kind - 1]) % 256).astype(np.uint8).tobytes()
        )
    return b"".join(lines)


def random_rows(depth, colour, seed=0):
    """Bytes [H, stride]; alpha is opaque."""
    rng, C = np.random.default_rng(seed), CHANNELS[colour]
    if depth == 16:
        samples = rng.integers(0, 2**16, (H, W, C))
        samples[..., -1] |= 0xFFFF * (C in (2, 4))
        return samples.astype(">u2").view(np.uint8).reshape(H, -1)
    samples = rng.integers(0, 2**depth, (H, W, C))
    samples[..., -1] |= 255 * (C in (2, 4))
    if depth == 8:
        return samples.astype(np.uint8).reshape(H, -1)
    bits = (samples >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.reshape(H, -1).astype(np.uint8), axis=1)


PLTE = chunk(b"PLTE", bytes(range(1, 256)) * 3 + b"\0\0\0")


@pytest.mark.parametrize("seed", [0, 1])
def test_a_file_gives_the_pixels_that_were_written(seed):
    rng = np.random.default_rng(seed)
    for shape in ((H, W), (H, W, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        found = pixels_of(png_bytes(pixels), W, H)
        assert found.shape == (H, W, 3) and found.dtype == np.uint8
        assert (found == (pixels[..., None] if pixels.ndim == 2 else pixels)).all()


def test_samples_of_few_bits_by_hand():
    """Grey of 2 bits: 0, 1, 2, 3 are 0, 85, 170, 255. Of 16 bits: 0x80ff is 33,023 / 257 = 128.49, so 128."""
    found = pixels_of(file(b"\0" + bytes([0b00_01_10_11]), 2, size=(4, 1)), 4, 1)
    assert found[0, :, 0].tolist() == [0, 85, 170, 255]
    found = pixels_of(file(b"\0" + bytes([0x80, 0xFF, 0xFF, 0xFF]), 16, size=(2, 1)), 2, 1)
    assert found[0, :, 0].tolist() == [128, 255]


def test_filters_by_hand():
    """Two lines of three grey pixels; each filter predicts from left (a), above (b) and above left (c)."""
    first = bytes([0, 10, 20, 30])
    expected = {  # the second line holds 1, 2, 3 as differences
        1: [1, 3, 6],  # a
        2: [11, 22, 33],  # b
        3: [6, 15, 25],  # (a + b) // 2: 1 + 5, 2 + (6 + 20) // 2, 3 + (15 + 30) // 2
        4: [11, 22, 33],  # Paeth: 10; a 11, b 20, c 10: 21 is nearest to 20; a 22, b 30, c 20: 32 is nearest to 30
    }
    for kind, line in expected.items():
        found = pixels_of(file(first + bytes([kind, 1, 2, 3]), size=(3, 2)), 3, 2)
        assert found[1, :, 0].tolist() == line


@pytest.mark.parametrize(("colour", "depth"), [(colour, depth) for colour in DEPTHS for depth in DEPTHS[colour]])
def test_each_colour_type_and_depth_is_what_pillow_reads(colour, depth):
    image = pytest.importorskip("PIL.Image")
    lines = filtered(random_rows(depth, colour), max(1, CHANNELS[colour] * depth // 8))
    data = file(lines, depth, colour, *([PLTE] if colour == 3 else []))
    with image.open(io.BytesIO(data)) as opened:
        grey16 = opened.mode.startswith("I")
        expected = np.array(opened)[..., None] if grey16 else np.array(opened.convert("RGB"))
    found = pixels_of(data, W, H).astype(int)
    if grey16:
        assert (found == np.round(expected / 257)).all()
    else:  # Pillow cuts 16 bits to the upper byte, and the nearest byte is that one or the next
        assert (abs(found - expected) <= (depth == 16)).all()


GOOD = file(lines_of(np.zeros((H, W), np.uint8)))
CUT = GOOD[: len(GOOD) // 2]
BOMB = SIGNATURE + GOOD[8:33] + chunk(b"IDAT", zlib.compress(bytes(10**7))) + chunk(b"IEND", b"")
BAD = {
    "cut": (CUT, "the file is cut short"),
    "signature only": (SIGNATURE, "the file is cut short"),
    "no end": (GOOD[:-12], "the file is cut short"),
    "no pixels": (GOOD[:33] + chunk(b"IEND", b""), "it has no header or no pixels"),
    "no header": (SIGNATURE + GOOD[33:], "it has no header or no pixels"),
    "checksum": (GOOD[:50] + bytes([GOOD[50] ^ 1]) + GOOD[51:], r"the checksum of the chunk b'IDAT' is wrong"),
    "bomb": (BOMB, "needed 6 lines of 6 bytes, got more or fewer"),
    "too few lines": (file(bytes(5 * 6)), "needed 6 lines of 6 bytes, got more or fewer"),
    "no zlib": (GOOD[:33] + chunk(b"IDAT", b"hello") + chunk(b"IEND", b""), "broken PNG: Error -3"),
    "filter": (file(lines_of(np.zeros((H, W), np.uint8), filters=(5,))), "needed a filter from 0 to 4, got 5"),
    "too large": (file(b"", size=(2**31 - 1, 2**31 - 1)), "needed 5 x 6 pixels, got 2147483647 x 2147483647"),
    "depth": (file(lines_of(np.zeros((H, W), np.uint8)), depth=3), "no picture has the colour type 0 with 3 bits"),
    "colour": (file(lines_of(np.zeros((H, W), np.uint8)), colour=5), "no picture has the colour type 5 with 8 bits"),
    "method": (file(b"", methods=(1, 0)), "no picture has the colour type 0 with 8 bits"),
    "interlaced": (file(b"", interlaced=1), r"not interlaced, got an interlaced one \(Adam7\)"),
    "unknown chunk": (file(b"", 8, 0, chunk(b"ABCD", b"")), "needed a PNG of the chunks .*, got b'ABCD'"),
    "palette": (file(lines_of(np.full((H, W), 9)), 8, 3, chunk(b"PLTE", bytes(6))), "the colour 9, which the palette"),
    "no palette": (file(lines_of(np.zeros((H, W), np.uint8)), 8, 3), "the colour 0, which the palette lacks"),
    "alpha": (file(lines_of(np.zeros((H, 4 * W), np.uint8)), 8, 6), "without transparent pixels"),
    "alpha of 16 bits": (file(lines_of(np.full((H, 4 * W), 254, np.uint8)), 16, 4), "without transparent pixels"),
    "key": (file(lines_of(np.zeros((H, W))), 8, 0, chunk(b"tRNS", b"\0\0")), "without transparent pixels"),
    "key of 3": (file(lines_of(np.zeros((H, 3 * W))), 8, 2, chunk(b"tRNS", bytes(6))), "without transparent pixels"),
    "hidden colour": (
        file(lines_of(np.zeros((H, W))), 8, 3, PLTE, chunk(b"tRNS", b"\0")),
        "without transparent pixels",
    ),
    "short tRNS": (file(lines_of(np.zeros((H, 3 * W))), 8, 2, chunk(b"tRNS", b"\0")), "its chunk tRNS is cut short"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name(name):
    data, words = BAD[name]
    with pytest.raises(InputError, match=words) as error:
        pixels_of(data, W, H)
    assert "\n" not in str(error.value)


def test_transparency_that_no_pixel_uses_is_read():
    keyed = file(lines_of(np.full((H, W), 7)), 8, 0, chunk(b"tRNS", b"\0\0"))
    assert (pixels_of(keyed, W, H) == 7).all()
    listed = file(lines_of(np.full((H, W), 1)), 8, 3, PLTE, chunk(b"tRNS", b"\0"))
    assert (pixels_of(listed, W, H) == [4, 5, 6]).all()


def test_any_damage_of_a_byte_or_a_cut_is_an_input_error_or_changes_nothing_seen():
    """The checksums leave the bytes behind IEND and none else."""
    rng = np.random.default_rng(0)
    data = png_bytes(rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
    for at in range(8, len(data)):
        damaged = data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        for broken in (damaged, data[:at]):
            with pytest.raises(InputError):
                pixels_of(broken, W, H)
