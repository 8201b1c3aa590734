"""`minirlhf data check` and `minirlhf data show`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from minirlhf.cli.data_flags import ReadFlags, parsed
from minirlhf.data.tools.inspect import contamination, report
from minirlhf.errors import check_range
from minirlhf.jobs.models import resolve_model
from minirlhf.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class CheckFlags(ReadFlags):
    policy: str | None = None  # [folder] lengths in tokens of this model; default: in letters
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
    (file, *_), flags = parsed(CheckFlags, argv, check.__doc__, "a data file")
    tokenizer = Tokenizer.load(resolve_model(flags.policy)) if flags.policy else None
    dataset = flags.reading.rows(file)
    print(report(dataset, tokenizer, flags.context))
    if flags.against:
        other = replace(flags, max_rows=None).reading.rows(flags.against)
        found = contamination(dataset, other, flags.ngram)
        print(f"rows that {flags.against} has too: {len(found):,} of {len(dataset.rows):,}")
        for overlap in found[:10]:
            where = f"{dataset.unit} {overlap.line} as {other.unit} {overlap.other_line} of {flags.against}"
            print(f"  {where}: {overlap.why}")
        if len(found) > 10:
            print(f"  and {len(found) - 10:,} more")
