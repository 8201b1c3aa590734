"""`minirlhf data split`, `merge` and `convert`: rows of files become rows of other files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from minirlhf.cli.data_flags import ReadFlags, parsed
from minirlhf.data.rows import first_three
from minirlhf.data.tools.convert import LAYOUTS, convert_rows, csv_text, left_out
from minirlhf.data.tools.manifest import Made, check_new, fingerprint, write_rows
from minirlhf.data.tools.merge import plan as merge_plan
from minirlhf.data.tools.merge import rows_of
from minirlhf.data.tools.split import PARTS, fractions, joined
from minirlhf.data.tools.split import split as split_texts
from minirlhf.data.tools.texts import normalised
from minirlhf.errors import InputError


@dataclass(frozen=True)
class SplitFlags(ReadFlags):
    table: ClassVar[str] = "split"

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
    words, flags = parsed(SplitFlags, argv, split, "a data file")
    file = ",".join(words)
    parts = fractions(flags.ratio)
    stem = flags.output or beginning(words)
    paths = [check_new(f"{stem}-{name}.jsonl") for name in PARTS[len(parts)]]
    dataset = flags.reading.rows(file)
    print(dataset.summary())
    kept = list(flags.reading.values(dataset))
    texts = [json.dumps(each.value, sort_keys=True) for each in kept]
    if flags.by == "prompt":
        texts = joined([[normalised(row["prompt"]) for row in each.rows] for each in kept])
    found = split_texts(texts, parts, flags.seed)
    if not all(found):
        raise InputError(f"{file}: needed {flags.by}s for {len(parts)} files, got {len(set(texts))} different")
    for path, part in zip(paths, found, strict=True):
        made = [Made(kept[i].value, kept[i].file, kept[i].line) for i in part]
        write_rows(path, made, "minirlhf data split", asdict(flags))
        print(f"{path}: {len(made):,} of {len(kept):,} rows")
    tell_flags(flags)


def beginning(files: list[str]) -> str:
    """The beginning of the new files' names: the file's name without its end."""
    if len(files) > 1 or files[0] == "-" or re.search(r"^hub:|[*?\[,]", files[0]):
        raise InputError("split: needed --output NAME for the new files, because the rows come from several files")
    name = files[0].rstrip("/").removesuffix(".gz")
    return os.path.splitext(name)[0]


@dataclass(frozen=True)
class MergeFlags(ReadFlags):
    table: ClassVar[str] = "merge"

    strategy: Literal["concat", "weighted", "balanced"] = "concat"  # [-] all rows; by --weights; equally many of each
    weights: tuple[float, ...] = ()  # [-] of the files, for --strategy weighted
    names: tuple[str, ...] = ()  # [-] of the files, in the plan and the manifest
    seed: int = 0  # [-] of the choice of rows, if not all are taken
    dry_run: bool = False  # [-] print the plan and write nothing
    output: str | None = None  # [file] the new file


def merge(argv: list[str]) -> None:
    """One file from several with rows of one kind.

    minirlhf data merge a.jsonl b.jsonl --output both.jsonl
    minirlhf data merge a.jsonl b.jsonl --strategy weighted --weights 3,1 --dry_run
    """
    files, flags = parsed(MergeFlags, argv, merge, "two data files or more", least=2)
    if not flags.output and not flags.dry_run:
        raise InputError("merge: needed --output FILE for the new file, or --dry_run to see the plan alone")
    output = check_new(flags.output) if flags.output else None
    datasets = flags.reading.sources(files)
    for dataset in datasets:
        print(dataset.summary())
    plan = merge_plan(datasets, flags.names, flags.strategy, flags.weights)
    print(plan)
    if flags.dry_run:
        return print("dry run: nothing is written")
    rows = rows_of(plan, flags.reading, flags.seed)
    names = {dataset.path: name for dataset, name in zip(datasets, plan.names, strict=True)}
    sources = [{**fingerprint(path), "name": name} for path, name in names.items()]
    write_rows(output, rows, "minirlhf data merge", asdict(flags), sources)
    print(f"{output}: {len(rows):,} rows")
    if not plan.converts:
        tell_flags(flags)


def tell_flags(flags: ReadFlags) -> None:
    """Rows that stay as they are must be read with the same flags again."""
    used = {"--map": ",".join(flags.map), "--as": flags.as_, "--ignore_columns": ",".join(flags.ignore_columns)}
    if words := [f"{name} {value}" for name, value in used.items() if value]:
        print(f"the rows are unchanged, so read the new file with {' '.join(words)} too")


@dataclass(frozen=True)
class ConvertFlags(ReadFlags):
    table: ClassVar[str] = "convert"

    layout: Literal[LAYOUTS] | None = None  # [-] of the new file
    output: str | None = None  # [file] the new file


def convert(argv: list[str]) -> None:
    """Write the rows of any readable file in a named layout, as JSONL or CSV.

    minirlhf data convert rows.csv --layout messages --output rows.jsonl
    minirlhf data convert pairs.jsonl --layout sft --output chosen.jsonl     # the chosen answers
    """
    words, flags = parsed(ConvertFlags, argv, convert, "a data file")
    file = ",".join(words)
    if not flags.layout or not flags.output:
        raise InputError(f"convert: needed --layout ({', '.join(LAYOUTS)}) and --output FILE; see --help")
    output = check_new(flags.output)
    dataset = flags.reading.rows(file)
    print(dataset.summary())
    if lost := left_out(dataset.rows, dataset.kind, flags.layout):
        print(f"left out, because {flags.layout} has no place for it: {', '.join(lost)}")
    made, refused = convert_rows(dataset, dataset.rows, flags.layout, ignored=flags.ignore_columns)
    for line in first_three(refused):
        print(f"{file}: not converted: {line}")
    if not made or len(refused) > flags.max_refused * len(dataset.rows):
        raise InputError(
            f"{file}: {len(refused):,} of {len(dataset.rows):,} rows have no place in the layout {flags.layout} "
            f"({refused[0]}); choose another --layout, or go on without them: --max_refused 1"
        )
    text = csv_text([row.value for row in made]) if flags.layout == "csv" else None
    write_rows(output, made, "minirlhf data convert", asdict(flags), text=text)
    print(f"{output}: {len(made):,} rows in the layout {flags.layout}")
