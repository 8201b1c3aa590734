"""The task of a program whose user gives files: `--data`, the files of single stages, validation files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from minirlhf.data.columns import Asked, check_asked
from minirlhf.data.formats import Dataset, read_rows
from minirlhf.data.mixing import counts, lines
from minirlhf.errors import InputError, shown
from minirlhf.jobs.data_flags import DataFlags, flags_of, read_options
from minirlhf.jobs.settings import JobConfig, changed
from minirlhf.runtime.distributed import say
from minirlhf.tasks.labelled import check_both_labels, labelled_task
from minirlhf.tasks.task import STAGES, Task
from minirlhf.tasks.user_rows import HELD, mixed, task_from_rows

# Section of a stage -> the parts of the task that it reads; it trains on the first. Other stages sample from prompts.
READS = {
    "sft": ("sft",),
    "reward_model": ("pairs",),
    "process_reward": ("steps",),
    "dpo": ("pairs", "prompts"),
    "unpaired": ("unpaired", "prompts"),
    "distillation": ("sft", "prompts"),
}
OF_FILES = (  # flags that need files
    *("encoding", "map", "as_", "documents", "pairs", "max_rows", "mix", "data_weights", "held_out", "validation"),
    "train_on",
)
NO_FILES = "no files"  # name of a task without rows
NAME = re.compile(r"[A-Za-z0-9_-]+")


def given_task(settings: dict[str, Any], section: str) -> Task | None:
    """The task of the user's files; None without files. The counts of each file are printed.

    A file of a stage takes the place of `--data` for this stage.
    section: name of the program's own settings.
    """
    job = settings["job"]
    flags, reader = flags_of(job), Reader(job)
    given = {name: getattr(config, "data", None) for name, config in settings.items() if name != "job"}
    files = {name: file for name, file in given.items() if file is not None}
    if not job.data and not files:
        refuse_without_files(job, flags)
        return None
    if "task" in changed(job):
        raise InputError(f"--task {job.task}: --data replaces the embedded task; drop one of the two")
    if flags.data_weights and not job.data:
        raise InputError("--data_weights: needs the files to weigh; give --data FILE,FILE")
    task = task_of(job.data, reader, flags.data_weights) if job.data else Task(NO_FILES, [], [], [], [], [], [])
    # the program's own stage reads most; a stage before it takes its rows back
    for name in sorted(files, key=lambda name: name != section):
        task = with_stage_file(task, job, name, task_of(files[name], reader))
    if hasattr(job, "prompt_words") and not job.reward:  # a classifier will be trained
        check_both_labels(task.name, task.unpaired)
    task = replace(task, validation=validation_sets(reader, flags.validation))
    check_asked(reader.asked)
    part, word = ("prompts", "prompts") if len(task.prompts) else ("sft", "texts")
    say(f"{task.name}: {len(getattr(task, part)):,} {word} to train on, {len(getattr(task, HELD[part])):,} held out")
    return task


class Reader:
    """Reads the sources of a job. A column of `--map` or `--ignore_columns` may stand in one source alone."""

    def __init__(self, job: JobConfig, tell: Callable[[str], None] = say) -> None:
        self.job, self.flags, self.tell = job, flags_of(job), tell
        self.asked: dict[str, Asked] = {}  # source -> its columns

    def read(self, source: str) -> Dataset:
        """The rows of one source, as the flags say. The counts, and the columns that nothing reads, are printed."""
        same = {"max_refused": self.job.max_refused, "ignore_columns": self.job.ignore_columns}
        options = read_options(self.flags) | same
        dataset = read_rows(source, pairs=self.flags.pairs, one_of_several=True, **options)
        self.asked[source] = dataset.asked
        self.tell(dataset.summary())
        return dataset

    def task(self, source: str, held_out: float) -> Task:
        """The rows of one source as a task. held_out: share or number of the rows to hold out."""
        if words := getattr(self.job, "prompt_words", None):  # of programs that read labelled texts
            return labelled_task(self.read(source), held_out, words)
        return task_from_rows(self.read(source), held_out)


def refuse_without_files(job: JobConfig, flags: DataFlags) -> None:
    """Refuse flags about files if no file is given."""
    if job.ignore_columns:
        raise InputError("--ignore_columns: the embedded task has no columns to ignore; give --data FILE")
    for field in fields(DataFlags):
        if field.name in OF_FILES and getattr(flags, field.name) != field.default:
            raise InputError(f"--{field.name.rstrip('_')}: the embedded task reads no files; give --data FILE")


def task_of(files: str, reader: Reader, weights: Sequence[float] = ()) -> Task:
    """The task of one or several files, with commas between them."""
    flags, names = reader.flags, [name.strip() for name in files.split(",")]
    if not all(names):
        raise InputError(f"--data: needed a file before and after each comma, got {shown(files)}; drop a comma")
    if len(names) != len(set(names)):
        raise InputError(f"--data: needed each file once, got {shown(files)}; a weight of 2 counts twice")
    strategy = flags.mix or ("weighted" if weights else "concat")
    if weights and len(weights) != len(names):
        raise InputError(
            f"--data_weights: needed a weight for each of the {len(names)} files, got {len(weights)}; see --help"
        )
    from_file = isinstance(flags.held_out, str)
    tasks = [source_task(name, reader, 0 if from_file else flags.held_out) for name in names]
    if strategy != "concat":
        say("\n".join(plan(tasks, strategy, weights)))
    task = mixed(tasks, strategy, weights, reader.job.seed)
    return with_held_out(task, reader) if from_file else task


def source_task(name: str, reader: Reader, held_out: float) -> Task:
    """The task of one name: a file, a folder, a pattern, or hub:OWNER/NAME, whose files are joined."""
    if not name.startswith("hub:"):
        return reader.task(name, held_out)
    from minirlhf.pretrained.hub import data_files

    return replace(mixed([reader.task(str(file), held_out) for file in data_files(name)]), name=name)


def with_held_out(task: Task, reader: Reader) -> Task:
    """The task with all rows of the file `--held_out` as its held-out rows."""
    held = all_held_out(reader.task(reader.flags.held_out, 0))
    return replace(task, **{name: getattr(held, name) for name in HELD.values()})


def all_held_out(task: Task) -> Task:
    """The task of a file whose rows are all training rows -> a task whose rows are all held out."""
    parts = {HELD[part]: getattr(task, part) for part in STAGES}
    return replace(task, **parts, **{part: [] for part in STAGES})


def reads_of(job: JobConfig, section: str) -> tuple[str, ...]:
    """The parts of the task that a stage reads. It trains on the first."""
    return getattr(job, "parts", {}).get(section) or READS.get(section, ("prompts",))


def with_stage_file(task: Task, job: JobConfig, section: str, own: Task) -> Task:
    """The task with the rows of a stage's own file.   Raises: InputError if the stage cannot train on them."""
    reads = reads_of(job, section)
    own.need(reads[0])
    parts = [name for part in reads if len(getattr(own, part)) for name in (part, HELD[part])]
    gold = own.gold if "prompts" in reads else task.gold
    names = [] if task.name == NO_FILES else task.name.split(", ")
    name = ", ".join(dict.fromkeys([*names, *own.name.split(", ")]))
    refused = tuple(dict.fromkeys([*task.refused, *own.refused]))
    rows = {part: getattr(own, part) for part in parts}
    return replace(
        task, name=name, refused=refused, gold=gold, sources=task.sources | dict.fromkeys(rows, own.name), **rows
    )


def validation_sets(reader: Reader, named: Sequence[str]) -> dict[str, Task]:
    """Name -> the rows of a validation file."""
    sets: dict[str, Task] = {}
    for entry in named:
        name, equals, file = entry.strip().partition("=")
        if not equals or not NAME.fullmatch(name) or not file:
            raise InputError(
                f"--validation: needed NAME=FILE, with a name of letters, digits, - and _, got {shown(entry)}; "
                "write --validation chat=a.jsonl,math=b.jsonl"
            )
        if name in sets:
            raise InputError(f"--validation: needed each name once, got {name} twice; choose another name")
        sets[name] = replace(all_held_out(reader.task(file, 0)), name=f"{name}={file}")
    return sets


def plan(tasks: Sequence[Task], strategy: str, weights: Sequence[float]) -> list[str]:
    """A mixture in words: a line for each source of each part of the task."""
    found = []
    for part in STAGES:
        have = [i for i, task in enumerate(tasks) if len(getattr(task, part))]
        sizes = [len(getattr(tasks[i], part)) for i in have]
        given = counts(sizes, strategy, [weights[i] for i in have] if weights else ())
        found += [f"{part}: {line}" for line in lines([tasks[i].name for i in have], sizes, given)]
    return found
