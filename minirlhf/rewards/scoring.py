"""A reward is a function: (prompts, completions, rows) -> one number per completion, or None if it does not apply."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from minirlhf.data.batches import microbatches, pad_sequences
from minirlhf.data.encoding import encode_texts
from minirlhf.errors import InputError, shown
from minirlhf.model.policy import RewardModel
from minirlhf.runtime.distributed import own_pace
from minirlhf.text.tokenizer import Tokenizer

Reward = Callable[[list[str], list[str], list[dict]], Sequence[float | None]]
# exact measures of each completion, by name
Gold = Callable[[list[str], list[str], list[dict]], dict[str, list[float]]]
LARGEST = 1e15  # Training adds squares of scores in fp32. Its largest number is 3.4e38: the sum of 1e8 squares fits.


def score_completions(
    reward: Reward, prompts: list[str], completions: list[str], rows: list[dict], optional: bool = False
) -> list[float]:
    """Call a reward function and check its answer.

    Args:
        optional: the function may return None for a completion that it does not apply to; None becomes nan.
    Returns: one float per completion, at most LARGEST in size (or nan for None).
    Raises: InputError if the count is wrong, or a score is missing, not a number, not finite or too large. The error
        names the function and the first bad completion. Training on such a score would ruin the policy silently.
    """
    from minirlhf.rewards.calling import call_reward, refused

    if not completions and not getattr(reward, "collective", False):
        return []  # a process without rows
    name = getattr(reward, "__name__", type(reward).__name__)
    answer = call_reward(reward, prompts, completions, rows)
    one = isinstance(answer, str | bytes | dict | set) or getattr(answer, "ndim", 1) == 0
    scores = list(answer) if isinstance(answer, Iterable) and not one else [answer]
    if len(scores) != len(completions):
        needed = f"needed {len(completions)} scores, one per completion, got {len(scores)}; return a list of scores"
        raise refused(f"reward {name}", needed)
    numbers = [as_number(score) for score in scores]
    for i, (score, number) in enumerate(zip(scores, numbers, strict=True)):
        if not (abs(number) <= LARGEST or (score is None and optional)):
            needed = f"a number of at most {LARGEST:g} in size" if math.isfinite(number) else "a finite number"
            raise refused(
                f"reward {name}",
                f"needed {needed} for every completion, got {shown(score)} for completion {i} "
                f"({shown(completions[i], 40)}); give every completion a number, even if it cannot be judged",
            )
    return numbers


def as_number(score: Any) -> float:
    """float(score) of an int, float, numpy scalar or tensor with one element; nan for anything else."""
    try:
        return math.nan if isinstance(score, str) else float(score)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


class RewardModelScorer:
    """A reward model with the signature of a reward function.

    It encodes a text as `encode_rows` does: prompt + response + EOS, or the turns by the model's chat template.
    """

    label = "reward model's score"  # in the table of a report
    collective = True  # all processes call it, also for no completion: the model may be in slices

    def __init__(
        self, model: RewardModel, tokenizer: Tokenizer, microbatch_tokens: int = 16_384, wrap: str = "turns"
    ) -> None:
        self.model, self.tokenizer, self.microbatch_tokens, self.wrap = model, tokenizer, microbatch_tokens, wrap

    @torch.no_grad()
    def __call__(self, prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        """The score of every completion. A text longer than the context loses its first tokens, with a warning."""
        from minirlhf.data.wrapping import Wrapped  # here, so that the core loads no leaf

        limit, device = self.model.config.max_position_embeddings, next(self.model.parameters()).device
        texts = [{**row, "prompt": p, "completion": c} for row, p, c in zip(rows, prompts, completions, strict=True)]
        texts = Wrapped.of(texts, self.tokenizer, self.wrap)
        encoded = encode_texts(self.tokenizer, texts, ("completion",), self.model.config.vocab_size, sampled=True)
        if refusal := next((row for row in encoded if isinstance(row, InputError)), None):
            raise refusal
        ids = [[*row.prompt, *row.responses[0]] for (row,) in encoded]
        if (longest := max(map(len, ids), default=0)) > limit:
            warnings.warn(f"reward model: a text of {longest} tokens was cut to its last {limit}", stacklevel=2)
            ids = [row[-limit:] for row in ids]
        scores = torch.empty(len(ids))
        with own_pace(self.model):
            for group in microbatches([len(row) for row in ids], self.microbatch_tokens):
                batch = pad_sequences([ids[i] for i in group], [[] for _ in group], self.tokenizer.pad_id, device)
                scores[group] = self.model(batch.input_ids, batch.attention_mask).float().cpu()
        return scores.tolist()
