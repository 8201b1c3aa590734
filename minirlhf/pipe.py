"""The end of a program whose output loses its reader, as in `program | head`."""

from __future__ import annotations

import os
import select
import sys


def end_without_reader() -> None:
    """Call this where a BrokenPipeError is caught. Ends the program in silence if the reader of its output has ended.

    Raises: the BrokenPipeError itself if the output has a reader. Then another pipe broke, such as the pipe of a reward
    function, and such an error must not end in silence.
    """
    output = select.poll()
    output.register(sys.stdout, 0)  # without a reader the system reports an error for the pipe
    if not output.poll(0):
        raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(141) from None
