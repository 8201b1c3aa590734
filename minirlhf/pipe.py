"""The end of a program that cannot write: its output has lost its reader (`program | head`), or the disk is full."""

from __future__ import annotations

import errno
import os
import select
import sys

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # no code is at fault


def end_without_output(error: OSError) -> None:
    """Call this where an OSError is caught. It ends the program: with one line if there is no room to write, and in
    silence if the reader of its output has ended.

    Raises: the error itself if it is another one. A pipe can break although the output has a reader: then it is another
        pipe, such as that of a reward function, and such an error must not end in silence.
    """
    if error.errno in NO_ROOM:
        from minirlhf.torchrun import end

        end(f"error: {error.filename or 'output'}: needed to write it, got: {error.strerror}; make room, then go on")
        raise SystemExit(2) from None
    output = select.poll()
    output.register(sys.stdout, 0)  # without a reader the system reports an error for the pipe
    if not isinstance(error, BrokenPipeError) or not output.poll(0):
        raise
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(141) from None
