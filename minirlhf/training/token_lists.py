"""The steps of a run whose samples keep the numbers of each token."""

from __future__ import annotations

from typing import Any

from minirlhf.rollout.samples import LISTS

ALL = 128  # steps that keep the numbers; of later steps every second does, from twice as many every fourth, and so on


def take_samples(run: Any) -> list[dict[str, Any]]:
    """The samples of the newest step of a `Run`; its trainer then has none. In a long run most steps lose the `LISTS`.

    The steps that keep their lists are multiples of a power of two, as the steps that the run page shows, and the last
    step. Of 10,000 steps 528 keep them; a resumed run has the lists of the same steps.
    """
    step, samples, run.trainer.samples = run.step - 1, run.trainer.samples, []
    if step % (1 << (step // ALL).bit_length()) == 0 or run.step == len(run.batches) or run._done:
        return samples
    return [{name: value for name, value in sample.items() if name not in LISTS} for sample in samples]
