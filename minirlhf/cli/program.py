"""The program that a command line of `minirlhf train` or `minirlhf check` names."""

from __future__ import annotations

from collections.abc import Iterable

from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest
from minirlhf.training.config_file import PROGRAM, read_document


def program_of(command: str, argv: list[str], known: Iterable[str]) -> tuple[str, list[str]]:
    """-> (the name of a program, its flags). The first word names it, or the key `program` of the file of --config.

    Raises: InputError if neither names a known program.
    """
    known = list(known)
    name, flags, who = argv[0] if argv else "", argv[1:], f"minirlhf {command}"
    if name.startswith("-") or not name:
        name, flags, who = named_in_file(argv), argv, f"minirlhf {command}: program"
    if name is None:
        raise InputError(
            f"minirlhf {command}: needed a program ({', '.join(known)}), got none; give its name first, or write "
            f'program = "ppo" in the file of --config'
        )
    if name not in known:
        close = nearest(name, known) if isinstance(name, str) else ""
        raise InputError(f"{who}: needed a program ({', '.join(known)}), got {shown(name)}{close}")
    return name, flags


def named_in_file(argv: list[str]) -> object:
    """The value of the key `program` in the file of --config; None without such a file or key."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, text = word.partition("=")
        if flag == "--config" and (path := text if equals else following):
            return read_document(path).get(PROGRAM)
    return None
