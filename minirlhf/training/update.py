"""One update of a trainer: its micro-batches, the sums over them, and the state that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from minirlhf.losses.masking import masked_mean
from minirlhf.runtime.distributed import world_size

Group = TypeVar("Group")


def micro_batches(groups: Sequence[Group], *models: nn.Module | None) -> Iterator[Group]:
    """Yield the groups of one update. Between processes, `models` exchange gradients; see `in_step`.

    The body of the loop must run forward and backward of its group.
    """
    if world_size() == 1:
        return iter(groups)
    from minirlhf.runtime.parallel.wrapping import in_step  # here, so that the core loads no leaf

    return in_step(groups, [model for model in models if model is not None])


class Sums(dict[str, Tensor]):
    """Name -> the sum of a term over the micro-batches of one update, without gradient."""

    def add(self, count: Tensor | float = 1.0, mask: Tensor | None = None, **terms: Tensor) -> None:
        """Add sum(term) / count of each term. With a mask [B, T] the sum is over True columns only.

        count: the size of the mean: the number of rows or tokens in the whole update, over all micro-batches and
            processes. Leave it out for a term that is divided already.
        """
        for name, term in terms.items():
            term = term.detach()
            self[name] = self.get(name, 0) + (term.sum() / count if mask is None else masked_mean(term, mask, count))


def state_of(trainer: Any, names: Sequence[str]) -> dict[str, Any]:
    """{name: state} of these attributes of a trainer, for its checkpoint. An attribute that is None is left out.

    The state of a number is the number. The state of any other attribute is its `state_dict()`.
    """
    parts = {name: getattr(trainer, name) for name in names}
    return {
        name: part if isinstance(part, int | float) else part.state_dict()
        for name, part in parts.items()
        if part is not None
    }


def load_state(trainer: Any, names: Sequence[str], state: dict[str, Any]) -> None:
    """Put the result of `state_of` back into a trainer with the same settings.

    Raises: KeyError if the state lacks a part that this trainer has.
    """
    for name in names:
        part = getattr(trainer, name)
        if isinstance(part, int | float):
            setattr(trainer, name, state[name])
        elif part is not None:
            part.load_state_dict(state[name])
