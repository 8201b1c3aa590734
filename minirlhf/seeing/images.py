"""The PNG files of a job about images: pictures.png and pictures/step-N.png in its folder."""

from __future__ import annotations

import base64
import re
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_FILES, MOST_BYTES = 12, 100_000  # on a page: files, and bytes of a file
STEP = re.compile(r"step-(\d{1,18})\.png")


def images_of(folder: Path, notes: list[str]) -> list[list[str]]:
    """[name, base64] of each image: pictures.png, then the pictures of steps in their order.

    notes: gets a line for files that are left out. Of many steps the first, the last and those evenly between stay.
    """
    steps = sorted((int(match[1]), path) for path in folder.glob("pictures/*") if (match := STEP.fullmatch(path.name)))
    paths = [path for _, path in steps]
    if (many := len(paths)) > MOST_FILES:
        paths = [paths[round(k * (many - 1) / (MOST_FILES - 1))] for k in range(MOST_FILES)]
        notes.append(f"pictures/ has {many:,} files: {MOST_FILES} of them are on the page")
    found = []
    for path in [folder / "pictures.png"] * (folder / "pictures.png").exists() + paths:
        name = path.relative_to(folder).as_posix()
        try:
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            notes.append(f"{name} cannot be read ({error.strerror})")
            continue
        if content.startswith(SIGNATURE) and len(content) <= MOST_BYTES:
            found.append([name, base64.b64encode(content).decode()])
        else:
            notes.append(f"{name} is no PNG of at most {MOST_BYTES:,} bytes")
    return found
