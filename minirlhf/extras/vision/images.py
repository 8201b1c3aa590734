"""The image of a row: a path, a data URL or base64 -> pixels. PNG is read here; other formats need the extra Pillow."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minirlhf.errors import InputError, shown
from minirlhf.extras.png import SIGNATURE, pixels_of

MOST_BYTES = 1 << 26  # of a file
PNG_BASE64 = "iVBORw0KGgo"  # the signature of PNG in base64
FORMATS = ("JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's name for each; it would run programs for some others
MODES = ("RGB", "L", "1", "P")  # Pillow's names of colours and grey in 8 bits or 1


def read_image(value: object, size: int, folder: str | Path = ".") -> Tensor:
    """-> pixels [3, size, size], bytes.

    value:  a path, a data URL (data:image/png;base64,...), or a PNG in base64.   folder: of a relative path.
    Raises: InputError for a file that is missing, broken, of another size or mode, or has transparent pixels.
    """
    try:
        if not isinstance(value, str):
            raise InputError("needed a path, a data URL or a PNG in base64")
        data = _bytes_of(value, Path(folder))
        pixels = pixels_of(data, size, size) if data.startswith(SIGNATURE) else _by_pillow(data, size)
    except InputError as error:
        raise InputError(f"image {shown(value, 60)}: {error}") from None
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _bytes_of(value: str, folder: Path) -> bytes:
    if value.startswith(("http:", "https:")):
        raise InputError("needed a file, got an address; images are not downloaded")
    head, comma, body = value.partition(",") if value.startswith("data:") else ("", "", value)
    if head and not (comma and head.endswith(";base64")):
        raise InputError("needed a data URL in base64: data:image/png;base64,...")
    if head or value.startswith(PNG_BASE64):
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"broken base64: {error}") from None
    path = folder / value
    try:
        if not path.is_file():  # raises for a name that is too long, such as a JPEG in base64
            raise InputError("needed a file, got none under this path")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"needed a readable file, got: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"needed at most {MOST_BYTES:,} bytes, got more; resize the picture")
    return data


def _by_pillow(data: bytes, size: int) -> np.ndarray:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise InputError(
            "needed a PNG; other formats need the package Pillow: pip install 'minirlhf[vision]'"
        ) from None
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header
            if image.size != (size, size):
                raise InputError(f"needed {size} x {size} pixels, got {image.width} x {image.height}; resize it")
            if image.mode not in MODES or "transparency" in image.info:
                raise InputError(f"needed colours or grey in 8 bits, opaque, got the mode {image.mode}; convert it")
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"needed one picture, got {image.n_frames}; save one of them")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # the readers of Pillow raise many kinds of errors for broken files
        raise InputError(f"broken, or of an unknown format: {error}") from None
