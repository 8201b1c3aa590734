"""One file from several. The plan is that of mixtures in training; see data/mixing.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minirlhf.data.formats import Dataset
from minirlhf.data.mixing import counts, lines, row_numbers
from minirlhf.data.tools.convert import convert_rows, layout_of
from minirlhf.data.tools.manifest import Made
from minirlhf.data.tools.sources import Reading
from minirlhf.errors import InputError


@dataclass(frozen=True)
class Plan:
    datasets: list[Dataset]
    names: list[str]
    wanted: list[int]  # rows of each source
    converts: bool  # the sources have several layouts, so each row is written in the layout of its kind

    def __str__(self) -> str:
        kind = self.datasets[0].kind
        how = f"written as {kind} rows, because the files have several layouts" if self.converts else "rows unchanged"
        sizes = [len(dataset.rows) for dataset in self.datasets]
        return "\n".join([*lines(self.names, sizes, self.wanted), f"together: {sum(self.wanted):,} {kind} rows, {how}"])


def plan(datasets: Sequence[Dataset], names: Sequence[str], strategy: str, weights: Sequence[float]) -> Plan:
    """How many rows each file gives.   Raises: InputError if the files have different kinds of rows."""
    datasets, names = list(datasets), list(names) or [dataset.path for dataset in datasets]
    if len(names) != len(datasets) or len(set(names)) != len(names):
        raise InputError(f"--names: needed {len(datasets)} different names, got {','.join(names)}")
    kinds = {dataset.kind: dataset.path for dataset in datasets}
    if len(kinds) > 1:
        found = ", ".join(f"{path} has {kind} rows" for kind, path in kinds.items())
        raise InputError(f"merge: needed rows of one kind, but {found}; convert a file first: minirlhf data convert")
    wanted = counts([len(dataset.rows) for dataset in datasets], strategy, weights)
    layouts = {dataset.layout.partition(" with ")[0] for dataset in datasets}  # "with" optional columns
    return Plan(datasets, names, wanted, len(layouts) > 1)


def rows_of(plan: Plan, reading: Reading, seed: int) -> list[Made]:
    """The rows that the plan asks for, source after source. A row that stands several times in the result is repeated.

    Rows are converted only if the layouts differ; else each row is its source's value, unchanged.
    """
    made = []
    for i, (dataset, count) in enumerate(zip(plan.datasets, plan.wanted, strict=True)):
        if plan.converts:
            values, refused = convert_rows(dataset, dataset.rows, layout_of(dataset.kind))
            if refused:
                raise InputError(f"{dataset.path}: needed rows that can be converted, got {refused[0]}")
        else:
            values = [Made(*kept[:3]) for kept in reading.values(dataset)]
        if len(values) != len(dataset.rows):
            raise InputError(f"{dataset.path}: one line gives several rows; convert the file first")
        made += [values[number] for number in row_numbers(len(values), count, seed, i)]
    return made
