"""Groups of completions that take the place of other groups, after a second sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.rollout.rollout import PER_TOKEN, Rollout


def with_groups(rollout: Rollout, groups: Sequence[int], other: Rollout, group_size: int) -> Rollout:
    """The rollout with group k of `other` in place of group `groups[k]`, for every k."""
    order = list(range(len(rollout.lengths)))
    for new, row in enumerate(group * group_size + i for group in groups for i in range(group_size)):
        order[row] = len(rollout.lengths) + new
    fields = {}
    for name, old in vars(rollout).items():
        new = getattr(other, name)
        if old is None:
            continue
        if not isinstance(old, Tensor):
            joined = [*old, *new]
            fields[name] = [joined[i] for i in order]
            continue
        if name in PER_TOKEN:
            width = max(old.shape[1], new.shape[1])
            old, new = (F.pad(x, (0, width - x.shape[1])) for x in (old, new))
        fields[name] = torch.cat((old, new))[order]
    return Rollout(**fields)
