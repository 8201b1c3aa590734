"""The folder of a model is checked against its manifest before it is read."""

from __future__ import annotations

import functools
from pathlib import Path

from minirlhf.manifest import check_model_files
from minirlhf.runtime.distributed import say


def check_model_folder(folder: str | Path) -> None:
    """Tell of texts that were changed by hand, and of a folder without checksums.

    Raises: InputError if the folder is damaged; see `check_model_files`.
    """
    for line in check_model_files(Path(folder)):
        _tell(line)


@functools.cache  # a program may read a folder several times
def _tell(line: str) -> None:
    say(line)
