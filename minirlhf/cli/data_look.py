"""`minirlhf data check` and `minirlhf data show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from minirlhf.cli.data_flags import ReadFlags, parsed
from minirlhf.columns import in_colour
from minirlhf.data.colours import pieces, rendered
from minirlhf.data.columns import check_asked
from minirlhf.data.encoding import TrainOn, encode_rows
from minirlhf.data.formats import Dataset
from minirlhf.data.rows import first_three
from minirlhf.data.tools.inspect import LONGEST, contamination, place, report
from minirlhf.data.tools.texts import ANSWERS, answers
from minirlhf.errors import InputError, check_range
from minirlhf.evaluation.columns import in_columns
from minirlhf.jobs.models import resolve_model
from minirlhf.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CheckFlags(ReadFlags):
    table: ClassVar[str] = "check"

    policy: str | None = None  # [folder] lengths in tokens of this model; default: in letters
    template: str | None = None  # [-] a built-in chat template, such as chatml, instead of the template of `policy`
    context: int | None = None  # [tokens] count the rows that are longer
    against: str | None = None  # [file] name the rows that this file has too, such as test questions
    ngram: int = 13  # [words] in a row that two rows must share; a Chinese letter is a word
    max_refused: float = 1.0  # [share] of the rows that may be unusable

    def __post_init__(self) -> None:
        check_range(self, "context", "ngram", "max_rows", least=1)


def check(argv: list[str]) -> None:
    """Facts about the rows of a file.

    minirlhf data check rows.jsonl
    minirlhf data check rows.jsonl --policy DIR --context 1024     # lengths in tokens
    minirlhf data check rows.jsonl --against test.jsonl            # rows that stand in both files
    """
    words, flags = parsed(CheckFlags, argv, check, "a data file")
    file = ",".join(words)
    tokenizer = tokenizer_of(flags) if flags.policy else None
    dataset = flags.reading.rows(file, one_of_several=bool(flags.against))
    print(report(dataset, tokenizer, flags.context))
    if flags.against:
        other = replace(flags, max_rows=None).reading.rows(flags.against, one_of_several=True)
        check_asked({each.path: each.asked for each in (dataset, other)})
        found = contamination(dataset, other, flags.ngram)
        print(f"rows that {flags.against} has too: {len(found):,} of {len(dataset.rows):,}")
        for overlap in found[:10]:
            where = f"{dataset.unit} {overlap.place} as {other.unit} {overlap.other} of {flags.against}"
            print(f"  {where}: {overlap.why}")
        if len(found) > 10:
            print(f"  and {len(found) - 10:,} more")


@dataclass(frozen=True)
class ShowFlags(ReadFlags):
    table: ClassVar[str] = "show"

    n: int = 5  # [rows] to show
    start: int = 1  # [row] the first row to show, counted from 1
    tokens: bool = False  # [-] show tokens in colour: prompt, learned, masked; needs --policy
    policy: str | None = None  # [folder] the tokenizer and chat template of this model
    template: str | None = None  # [-] a built-in chat template, such as chatml, instead of the template of `policy`
    train_on: TrainOn = "all_turns"  # [-] tokens that SFT learns: of the last answer, of every answer, or all

    def __post_init__(self) -> None:
        check_range(self, "n", "start", "max_rows", least=1)
        if self.tokens and not self.policy:
            raise InputError("show: --tokens needs the tokenizer of a model: --policy DIR")


def show(argv: list[str]) -> None:
    """Rows side by side, or the tokens that training sees.

    minirlhf data show rows.jsonl
    minirlhf data show rows.jsonl --tokens --policy DIR             # prompt, learned and masked tokens in colour
    """
    words, flags = parsed(ShowFlags, argv, show, "a data file")
    file = ",".join(words)
    dataset = flags.reading.rows(file)
    print(dataset.summary())
    rows = [dataset.rows[i] for i in range(len(dataset.rows))[flags.start - 1 : flags.start - 1 + flags.n]]
    if not rows:
        raise InputError(f"show: --start {flags.start}: the file has {len(dataset.rows):,} rows")
    if flags.tokens:
        return print(in_colours(dataset, rows, tokenizer_of(flags), flags.train_on))
    keys = ANSWERS[dataset.kind]
    texts = [[f"{place(row)}: {row['prompt']}", *answers(row, dataset.kind)] for row in rows]
    print(in_columns([f"{dataset.unit}: prompt", *keys], texts))


def tokenizer_of(flags: CheckFlags | ShowFlags) -> Tokenizer:
    return Tokenizer.load(resolve_model(flags.policy)).with_template(flags.template, None)


def in_colours(dataset: Dataset, rows: Sequence[dict], tokenizer: Tokenizer, train_on: TrainOn) -> str:
    """The tokens of rows as training reads them."""
    keys = ANSWERS[dataset.kind]
    texts = [{**row, **dict(zip(keys, answers(row, dataset.kind), strict=True))} for row in rows]
    encoded = encode_rows(
        tokenizer,
        texts,
        keys,
        context=LONGEST,
        max_refused=1.0,
        source=dataset.path,
        unit=dataset.unit,
        train_on=train_on,
    )
    lines = [f"{dataset.path}: {note}" for note in encoded.notes] + first_three(encoded.refused)
    colour = in_colour()
    for row in encoded.rows:
        for side, key in enumerate(keys or ["prompt"]):
            parts = pieces(tokenizer, row, side)
            tokens = len(row.prompt) + (len(row.responses[side]) if row.responses else 0)
            lines.append(f"--- {dataset.unit} {place(row.source)}, {key}: {tokens:,} tokens")
            lines.append(rendered(parts, colour))
    legend = [("prompt, ", "prompt"), ("learned", "learned"), (", ", "prompt"), ("masked", "masked")]
    return "\n".join([*lines, rendered(legend, colour)])
