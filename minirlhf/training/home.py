"""~ in a path. A shell replaces it only at the beginning of a word, and in no file."""

from __future__ import annotations

import os
import re
from typing import Any

TILDE = re.compile(r"(^|,\s*|=)~(?=/|$)")  # in ~/a, in a,~/b and in chat=~/c


def at_home(value: Any) -> Any:
    """A setting with the user's folder in the place of each ~ that begins a path."""
    if isinstance(value, tuple | list):
        return type(value)(map(at_home, value))
    home = os.path.expanduser("~")
    return TILDE.sub(lambda found: found[1] + home, value) if isinstance(value, str) and "~" in value else value
