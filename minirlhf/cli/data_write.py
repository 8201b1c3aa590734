"""`minirlhf data split`, `merge` and `convert`: rows of files become rows of other files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from minirlhf.cli.data_flags import ReadFlags, parsed
from minirlhf.data.tools.manifest import Made, check_new, write_rows
from minirlhf.data.tools.split import PARTS, fractions
from minirlhf.data.tools.split import split as split_texts
from minirlhf.data.tools.texts import normalised
from minirlhf.errors import InputError


@dataclass(frozen=True)
class SplitFlags(ReadFlags):
    ratio: tuple[float, ...] = (0.8,)  # [share] of the first file, or of two or three files: 0.8,0.1,0.1
    seed: int = 42  # [-] another seed splits otherwise
    by: Literal["row", "prompt"] = "row"  # [-] prompt: all rows of a prompt go to one file
    output: str | None = None  # [path] beginning of the new files' names; default: the file's name without its end


def split(argv: list[str]) -> None:
    """Split a file into two or three files. The rows stay as they are; equal rows go to one file.

    minirlhf data split rows.jsonl                                  # rows-train.jsonl, rows-test.jsonl
    minirlhf data split rows.jsonl --ratio 0.8 --seed 42 --by prompt
    minirlhf data split rows.jsonl --ratio 0.8,0.1,0.1              # rows-validation.jsonl too
    """
    (file, *_), flags = parsed(SplitFlags, argv, split.__doc__, "a data file")
    parts = fractions(flags.ratio)
    stem = flags.output or file.removesuffix(".gz").rpartition(".")[0] or file
    paths = [check_new(f"{stem}-{name}.jsonl") for name in PARTS[len(parts)]]
    dataset = flags.reading.rows(file)
    print(dataset.summary())
    kept = list(flags.reading.values(dataset))
    by_prompt = flags.by == "prompt"
    texts = [normalised(k.rows[0]["prompt"]) if by_prompt else json.dumps(k.value, sort_keys=True) for k in kept]
    found = split_texts(texts, parts, flags.seed)
    if not all(found):
        raise InputError(f"{file}: needed rows for {len(parts)} files, got {len(kept)} rows, {len(set(texts))} distinct")
    for path, part in zip(paths, found, strict=True):
        made = [Made(kept[i].value, kept[i].file, kept[i].line) for i in part]
        write_rows(path, made, "minirlhf data split", asdict(flags))
        print(f"{path}: {len(made):,} of {len(kept):,} rows")
