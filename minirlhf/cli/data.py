"""minirlhf data: look at rows, and make files of rows. COMMAND --help shows more.

check     counts, lengths, duplicates, languages, rows that another file has
          minirlhf data check rows.jsonl --policy DIR --against test.jsonl
show      rows side by side; with --tokens the learned tokens in colour
          minirlhf data show rows.jsonl --tokens --policy DIR
split     two or three files of rows
          minirlhf data split rows.jsonl --ratio 0.8 --seed 42 --by prompt
merge     one file from several
          minirlhf data merge a.jsonl b.jsonl --output both.jsonl
convert   the rows in a layout that other tools read
          minirlhf data convert rows.csv --layout messages --output x.jsonl
sample    the embedded tasks as files
          minirlhf data sample questions_zh --rows 1000 --output sample
pairs     preferences from answers: damaged, or sampled and judged
          minirlhf data pairs rows.jsonl --output pairs.jsonl
augment   more prompts for the same answers
          minirlhf data augment rows.jsonl --changes typo --output more.jsonl
download  a data set of the hub; all: five well-known data sets
          minirlhf data download gsm8k --output data
"""

from __future__ import annotations

import importlib

from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest

COMMANDS = {  # command -> its file
    "check": "minirlhf.cli.data_look",
    "show": "minirlhf.cli.data_look",
    "split": "minirlhf.cli.data_write",
    "merge": "minirlhf.cli.data_write",
    "convert": "minirlhf.cli.data_write",
    "sample": "minirlhf.cli.data_make",
    "pairs": "minirlhf.cli.data_make",
    "augment": "minirlhf.cli.data_make",
    "download": "minirlhf.cli.data_make",
}


def main(arguments: list[str]) -> None:
    word, *rest = arguments or ["--help"]
    if word in ("-h", "--help"):
        return print(__doc__.strip())
    if word not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise InputError(f"minirlhf data: needed a command ({known}), got {shown(word)}{nearest(word, COMMANDS)}")
    getattr(importlib.import_module(COMMANDS[word]), word)(rest)
