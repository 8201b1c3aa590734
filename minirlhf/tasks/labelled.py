"""A task of texts with a label: a policy goes on from their beginnings, and a classifier of the labels rewards it.

The label of a text is True if it is wanted: a positive review, a polite text. It stands in the row, or it is the name
of the text's file or folder: reviews/pos/1.txt, reviews.neg.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from minirlhf.data.chosen import choose
from minirlhf.data.formats import Dataset
from minirlhf.data.splitting import HELD_OUT
from minirlhf.errors import InputError
from minirlhf.tasks.task import Task
from minirlhf.tasks.user_rows import task_from_rows

GOOD = ("pos", "positive", "good", "clean", "polite", "nontoxic")
BAD = ("neg", "negative", "bad", "toxic", "rude")
NAMES = dict.fromkeys(GOOD, True) | dict.fromkeys(BAD, False)  # name of a file or folder -> the label of its texts
LEAST = 2  # words of a beginning


def labelled_task(dataset: Dataset, held_out: float = HELD_OUT, words: int = 8) -> Task:
    """The task of labelled rows {prompt, response, label}, or of texts in files that are named after their label.

    A text without a prompt gets one: its beginning. SFT learns all texts, whatever their label.

    Args:
        held_out: share or number of the rows to hold out; see `split_rows`.
        words:    most words of a beginning.
    Rows of another kind make the task of `task_from_rows`.
    Raises: InputError for text in a file whose path names no label.
    """
    if dataset.kind not in ("unpaired", "text"):
        return task_from_rows(dataset, held_out)

    def read(row: dict) -> dict:
        row = row if "label" in row else {**row, "label": label_of_file(row.get("file", dataset.path))}
        return row if row["prompt"] else with_beginning(row, words)

    if dataset.kind == "text":
        for name in {row.get("file", dataset.path) for row in dataset.rows}:
            label_of_file(name)  # refuse a name without a label now, not when its row is read
    rows = choose(dataset.rows, range(len(dataset.rows)), read)
    task = task_from_rows(replace(dataset, kind="unpaired", rows=rows), held_out)
    return replace(task, sft=task.unpaired, held_out_sft=task.held_out_unpaired)


def label_of_file(name: str) -> bool:
    """The label that a path names: by its ending, by the name before it, or by the folder.

    Raises: InputError if no part is a known name, or if two parts name different labels.
    """
    path = PurePath(name.lower())
    labels = {NAMES[part] for part in (path.suffix[1:], path.stem, path.parent.name) if part in NAMES}
    if len(labels) != 1:
        raise InputError(
            f"{name}: needed one label for these texts, as the name or ending of the file or as its folder, got "
            f"{len(labels)}; the names are {', '.join(NAMES)}; or write rows {{text, label}}"
        )
    return labels.pop()


def with_beginning(row: dict, words: int) -> dict:
    """The row with the first words of its text as its prompt, and the rest as its response.

    The text decides the number of words, from LEAST to `words`, but at most half of the words of the text.
    """
    text = row["response"]
    number = LEAST + zlib.crc32(text.encode()) % (words - LEAST + 1)
    number = min(number, len(text.split()) // 2)
    end = re.match(rf"(?:\s*\S+){{{number}}}", text).end()
    return {**row, "prompt": text[:end], "response": text[end:]}


def check_both_labels(name: str, rows: Sequence[dict]) -> None:
    """Raise InputError if all rows have the same label: a classifier of them learns nothing."""
    labels = {row["label"] for row in rows}
    if len(labels) == 1:
        label = "good" if labels.pop() else "bad"
        raise InputError(f"{name}: needed texts of both labels, all {len(rows):,} have the label {label}; add others")
