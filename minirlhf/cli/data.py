"""`minirlhf data`: look at rows, and make files of rows. Each command has its own --help.

check FILE       counts, lengths, duplicates, languages, rows that another file has
                 minirlhf data check rows.jsonl --policy DIR --against test.jsonl
split FILE       two or three files of rows
                 minirlhf data split rows.jsonl --ratio 0.8 --seed 42 --by prompt
"""

from __future__ import annotations

import importlib

from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest

COMMANDS = {  # command -> (file, function)
    "check": ("minirlhf.cli.data_look", "check"),
    "split": ("minirlhf.cli.data_write", "split"),
}


def main(arguments: list[str]) -> None:
    word, *rest = arguments or ["--help"]
    if word in ("-h", "--help"):
        return print(__doc__.strip())
    if word not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"minirlhf data: needed a command ({known}), got {shown(word)}{nearest(word, COMMANDS)}")
    file, function = COMMANDS[word]
    getattr(importlib.import_module(file), function)(rest)
