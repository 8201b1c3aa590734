"""Work that processes share: each process takes a part of the rows, and all processes have the results of all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from minirlhf.losses.masking import wide_dtype
from minirlhf.runtime.distributed import all_sum, gather, local_rows, world_size

Row = TypeVar("Row")
Value = TypeVar("Value")
Group = TypeVar("Group", bound=Sequence)


def in_order(values: Sequence[Value]) -> list[Value]:
    """The values of this process's rows, one for each of `local_rows` -> the values of all rows, in their order.

    Values travel as JSON. All processes must call it.
    """
    parts = gather(list(values))
    found: list = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        found[number :: len(parts)] = part
    return found


@torch.no_grad()
def shared_sums(
    rows: Sequence[Row],
    groups_of: Callable[[Sequence[Row]], Sequence[Group]],
    measure: Callable[[Group], dict[str, Tensor]],
    *models: nn.Module,
) -> dict[str, float]:
    """Name -> the sum of a measure over all rows. Each process measures a part of the rows; all get the same sums.

    The sums are float64, and they go to the host once, at the end.

    Args:
        rows:      the same on all processes.
        groups_of: splits the rows of a process into micro-batches.
        measure:   name -> one number per row or token; 0 where nothing counts. It may get a micro-batch without rows.
        models:    the models that `measure` calls.
    """
    found: dict[str, Tensor] = {}
    for group in shared_groups(groups_of(local_rows(rows)), *models):
        for name, x in measure(group).items():
            found[name] = found.get(name, 0) + x.sum(dtype=wide_dtype(x))
    return dict(zip(found, all_sum(torch.stack([*found.values()])).tolist(), strict=True)) if found else {}


def shared_groups(groups: Sequence[Group], *models: nn.Module) -> Iterator[Group]:
    """Yield this process's micro-batches for forwards without gradient.

    With several processes there is at least one micro-batch, so that all processes measure the same names. If a model
    is in slices, all processes get the same number of micro-batches. A micro-batch may then have no rows.
    """
    if world_size() == 1:
        yield from groups
        return
    from minirlhf.runtime.parallel.sharding import whole_of
    from minirlhf.runtime.parallel.wrapping import filled

    sharded = any(whole_of(model) is not None for model in models)
    yield from filled(groups, next(models[0].parameters()).device) if sharded else groups or [[]]
