"""The flags about rows of your own files, for every program that takes `--data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minirlhf.data.cache import cache_folder
from minirlhf.data.encoding import TrainOn
from minirlhf.data.lengths import Lengths, Overlong
from minirlhf.data.splitting import HELD_OUT
from minirlhf.errors import InputError, shown
from minirlhf.jobs.reward_flags import with_reward_flags

Kind = Literal["sft", "preference", "unpaired", "prompts", "steps", "text"]
Documents = Literal["line", "blank_line", "file"]


@dataclass(frozen=True)
class DataFlags:
    """Plain flags. `sections` adds them to the flags of a program."""

    encoding: str | None = None  # [-] of your files, such as gb18030; none: UTF-8 or UTF-16, recognised
    map: tuple[str, ...] = ()  # [-] known names for your own columns: prompt=ask,response=answer
    as_: Kind | None = None  # [-] read the rows as this kind, if they fit several
    documents: Documents = "line"  # [-] of plain text: each line is a row, each part up to a blank line, or each file
    pairs: Literal["best_worst", "all"] = "best_worst"  # [-] of several scored answers: one pair, or every pair
    max_rows: int | None = None  # [rows] of each file, from its beginning
    mix: Literal["concat", "weighted", "balanced"] | None = None  # [-] how several files become one set of rows;
    #                             none: weighted with data_weights, else concat
    data_weights: tuple[float, ...] = ()  # [-] a weight for each file of `data`
    held_out: int | float | str = HELD_OUT  # [share, rows or file] rows for evaluation, of `data` or of a file
    validation: tuple[str, ...] = ()  # [files] more rows for evaluation, by name: chat=a.jsonl,math=b.jsonl
    train_on: TrainOn = "all_turns"  # [-] of a dialogue SFT learns the last answer, every assistant turn, or all tokens
    wrap: Literal["turns", "plain"] = "turns"  # [-] beside a chat template: a prompt of text is a user turn, or text
    max_length: int | None = None  # [tokens] of prompt and answer; none: the model's context
    max_prompt_length: int | None = None  # [tokens] of the prompt; none: all that leaves room for an answer
    overlong: Overlong = "refuse"  # [-] a prompt that is too long: refuse its row, or cut it; see docs/data.md

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.max_length, self.max_prompt_length, self.overlong)


@dataclass(frozen=True)
class StageData:
    """A flag of every stage."""

    data: str | None = None  # [files] rows of this stage alone; default: `--data`


def with_data_flags(cls: type) -> type:
    """The dataclass of plain flags with the fields of DataFlags, and those of RewardFlags if it has `reward`."""
    return _with(with_reward_flags(cls), DataFlags)


def with_data(cls: type) -> type:
    """The dataclass of a stage's settings with the field of StageData."""
    return _with(cls, StageData)


def read_options(flags: Any) -> dict[str, Any]:
    """The arguments of `read_rows` that the flags about files decide."""
    given = {"columns_map": mapping(flags.map), "as_kind": flags.as_, "encoding": flags.encoding}
    given |= {"max_rows": flags.max_rows, "documents": flags.documents, "ignore_columns": flags.ignore_columns}
    return {name: value for name, value in given.items() if value} | {"max_refused": flags.max_refused}


def mapping(pairs: Sequence[str]) -> dict[str, str]:
    """("prompt=ask", "response=answer") -> {"prompt": "ask", "response": "answer"}"""
    found = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(found) != len(pairs) or not all(found) or not all(found.values()):
        raise InputError(f"--map: needed known=yours with commas, each name once, got {shown(','.join(pairs))}")
    return found


def flags_of(job: object) -> DataFlags:
    """The flags of a program; their defaults for a plain JobConfig that a caller has made."""
    return job if isinstance(job, DataFlags) else DataFlags()


def encoding_options(job: object, part: str, held_out: bool = False) -> dict[str, Any]:
    """The arguments of `encode_rows` that the flags decide. Only SFT learns earlier turns of a dialogue.

    held_out: the policy answers the prompts of these rows, so their prompts do not count as learned.
    """
    flags = flags_of(job)
    train_on = flags.train_on if part == "sft" else "last"
    train_on = "all_turns" if held_out and train_on == "all" else train_on
    return {"train_on": train_on, "wrap": flags.wrap, "lengths": flags.lengths, "cache": cache_folder()}


def _with(cls: type, more: type) -> type:
    if issubclass(cls, more):
        return cls
    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return dataclasses.make_dataclass(cls.__name__, [], bases=(cls, more), namespace=namespace, frozen=True)
