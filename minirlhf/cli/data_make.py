"""`minirlhf data sample`, `pairs`, `augment` and `download`: new rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from minirlhf.cli.data_flags import ReadFlags, parsed
from minirlhf.data.formats import Dataset
from minirlhf.data.rows import first_three
from minirlhf.data.tools.augment import CHANGES, augmented
from minirlhf.data.tools.convert import convert_rows, layout_of
from minirlhf.data.tools.fetch import fetch
from minirlhf.data.tools.manifest import Made, check_new, write_rows
from minirlhf.data.tools.pairs import DAMAGES, pairs_of
from minirlhf.errors import InputError, check_range, shown
from minirlhf.nearest import nearest
from minirlhf.pretrained.hub import DATA_NAME
from minirlhf.tasks import arithmetic, questions_zh, reviews
from minirlhf.tasks.steps import step_rows

SAMPLES: dict[str, dict[str, Callable[[int, int], list[dict]]]] = {  # task -> end of a file's name -> (n, seed) -> rows
    "reviews": {
        "sft": reviews.sft_rows,
        "pairs": reviews.preference_rows,
        "prompts": lambda n, seed: reviews.training_prompts()[:n],
        "steps": step_rows,
    },
    "arithmetic": {
        "sft": arithmetic.sft_rows,
        "pairs": arithmetic.preference_rows,
        "prompts": lambda n, seed: arithmetic.training_prompts()[:n],
    },
    "questions_zh": {
        "sft": questions_zh.sft_rows,
        "pairs": questions_zh.preference_rows,
        "prompts": lambda n, seed: [{"prompt": row["prompt"]} for row in questions_zh.questions()[:n]],
        "test": lambda n, seed: questions_zh.preference_rows(n, seed, held_out=True),
    },
}


@dataclass(frozen=True)
class SampleFlags:
    table: ClassVar[str] = "sample"

    rows: int = 1000  # [rows] of each file
    seed: int = 0  # [-] another seed gives other rows
    output: str = "sample"  # [folder] of the new files

    def __post_init__(self) -> None:
        check_range(self, "rows", least=1)


def sample(argv: list[str]) -> None:
    """The embedded tasks as files: reviews, arithmetic, and questions_zh (technical questions in Chinese).

    minirlhf data sample --rows 1000 --output sample                # all tasks
    minirlhf data sample questions_zh --rows 1000 --output sample
    """
    names, flags = parsed(SampleFlags, argv, sample, "", least=0)
    if unknown := [name for name in names if name not in SAMPLES]:
        raise InputError(f"sample: needed names of {', '.join(SAMPLES)}, got {shown(unknown[0])}")
    jobs = [(name, part, write) for name in names or SAMPLES for part, write in SAMPLES[name].items()]
    paths = [check_new(Path(flags.output) / f"{name}-{part}.jsonl") for name, part, _ in jobs]
    for (name, part, write), path in zip(jobs, paths, strict=True):
        made = [Made(row, name, i) for i, row in enumerate(write(flags.rows, flags.seed), start=1)]
        source = {"file": name, "task": name, "part": part}
        write_rows(path, made, "minirlhf data sample", asdict(flags), [source])
        print(f"{path}: {len(made):,} rows")


@dataclass(frozen=True)
class AugmentFlags(ReadFlags):
    table: ClassVar[str] = "augment"

    changes: tuple[str, ...] = tuple(CHANGES)  # [-] typo: two letters of a word change places; case: a small first
    #                           letter; ending: no mark at the end; width: ASCII marks in Chinese
    seed: int = 0  # [-] another seed changes other letters
    keep: bool = True  # [-] write the old rows too
    output: str | None = None  # [file] the new file


def augment(argv: list[str]) -> None:
    """More prompts for the same answers. The last user turn is changed a little; answers stay as they are.

    minirlhf data augment rows.jsonl --output more.jsonl
    minirlhf data augment rows.jsonl --changes typo,ending --output more.jsonl
    """
    words, flags = parsed(AugmentFlags, argv, augment, "a data file")
    file = ",".join(words)
    output = new_output("augment", flags.output)
    dataset = flags.reading.rows(file)
    print(dataset.summary())
    new = augmented(dataset.rows, flags.changes, flags.seed)
    rows = [*(dataset.rows if flags.keep else ()), *new]
    print(f"{len(new):,} new rows")
    save(output, dataset, rows, dataset.kind, "augment", flags)


@dataclass(frozen=True)
class PairsFlags(ReadFlags):
    table: ClassVar[str] = "pairs"

    damages: tuple[str, ...] = tuple(DAMAGES)  # [-] of the rejected answer; each row gives a pair for each
    policy: str | None = None  # [folder] sample two answers of this model for each prompt instead of damaging answers
    reward: str | None = None  # [folder or FILE.py:FUNCTION] judges the two answers; the better is chosen
    max_tokens: int = 256  # [tokens] longest sampled answer
    temperature: float = 1.0  # [-] of sampling
    device: str = "auto"  # [-] of sampling: cuda, mps, cpu or auto
    seed: int = 0  # [-] another seed damages and samples otherwise
    output: str | None = None  # [file] the new file

    def __post_init__(self) -> None:
        if bool(self.policy) != bool(self.reward):
            raise InputError("pairs: needed --policy and --reward together: a model to sample and a reward to judge")
        if self.policy and self.damages != tuple(DAMAGES):
            raise InputError("pairs: --policy samples the answers, so --damages would do nothing; drop one of the two")


def pairs(argv: list[str]) -> None:
    """Preference rows from SFT rows: the row's answer is chosen, a damaged or foreign answer is rejected.

    minirlhf data pairs rows.jsonl --output pairs.jsonl
    minirlhf data pairs rows.jsonl --damages corrupted,other --output pairs.jsonl
    minirlhf data pairs rows.jsonl --policy DIR --reward FILE.py:FUNCTION --output pairs.jsonl    # two samples, judged
    """
    words, flags = parsed(PairsFlags, argv, pairs, "a data file")
    file = ",".join(words)
    output = new_output("pairs", flags.output)
    dataset = flags.reading.rows(file)
    print(dataset.summary())
    if flags.policy:
        from minirlhf.cli.data_sampled import sampled_pairs

        sampling = flags.max_tokens, flags.temperature, flags.seed, flags.device
        rows, equal, refused = sampled_pairs(dataset, flags.policy, flags.reward, *sampling)
        print("\n".join([*first_three(refused), f"{equal:,} prompts left out: their two answers are equally good"]))
    elif dataset.kind == "sft":
        rows, left_out = pairs_of(dataset.rows, flags.damages, flags.seed)
        print(f"{left_out:,} pairs could not be made (a single sentence cannot be shuffled)")
    else:
        raise InputError(f"{file}: needed rows with one answer (sft), got {dataset.kind} rows; see data convert")
    save(output, dataset, rows, "preference", "pairs", flags)


def save(output: Path, dataset: Dataset, rows: list[dict], kind: str, command: str, flags: ReadFlags) -> None:
    """Write rows that were made from a file's rows, in the layout of their kind."""
    made, refused = convert_rows(dataset, rows, layout_of(kind), kind, flags.ignore_columns)
    for line in first_three(refused):
        print(f"{dataset.path}: left out: {line}")
    if not made:
        raise InputError(f"{dataset.path}: needed at least one row to write, got none")
    write_rows(output, made, f"minirlhf data {command}", asdict(flags))
    print(f"{output}: {len(made):,} rows")


def new_output(command: str, output: str | None) -> Path:
    if not output:
        raise InputError(f"{command}: needed --output FILE for the new file; see --help")
    return check_new(output)


# Name -> a data set of the hub, and its files. Chosen files only: other files of these sets have other kinds of rows.
DATA_SETS = {
    "hh-rlhf": "hub:Anthropic/hh-rlhf:h*-base/*.jsonl.gz",
    "belle": "hub:BelleGroup/train_0.5M_CN:*.json",
    "alpaca-zh": "hub:shibing624/alpaca-zh:*.json",
    "moss": "hub:OpenMOSS-Team/moss-003-sft-data:moss-003-sft-no-tools.jsonl.zip",
    "gsm8k": "hub:openai/gsm8k:main/*.parquet",
}


@dataclass(frozen=True)
class DownloadFlags:
    table: ClassVar[str] = "download"

    output: str = "data"  # [folder] a new folder for each data set is made in it


def download(argv: list[str]) -> None:
    """Fetch data sets of the hub into folders, with a manifest of commit and checksums. HF_ENDPOINT names a mirror.

    minirlhf data download gsm8k alpaca-zh --output data
    minirlhf data download all                                      # hh-rlhf, belle, alpaca-zh, moss, gsm8k
    minirlhf data download hub:OWNER/NAME@REVISION:FILES            # any data set
    """
    names, flags = parsed(DownloadFlags, argv, download, f"names ({', '.join(DATA_SETS)}) or all")
    sources = DATA_SETS if names == ["all"] else {folder_of(name): DATA_SETS.get(name, name) for name in names}
    if names != ["all"] and len(sources) < len(names):
        raise InputError(f"download: needed names of different folders, got {', '.join(names)}; give --output too")
    for folder in sources:
        check_new(Path(flags.output) / folder)
    for folder, source in sources.items():
        for line in fetch(source, Path(flags.output) / folder):
            print(line)


def folder_of(name: str) -> str:
    """The name of a data set's folder."""
    found = DATA_NAME.fullmatch(name)
    if not found and name not in DATA_SETS:
        known = ", ".join(DATA_SETS)
        near = nearest(name, DATA_SETS)
        raise InputError(f"download: needed all, {known} or hub:OWNER/NAME, got {shown(name)}{near}")
    return found[1].partition("/")[2] if found else name
