"""Samples of a step, for samples.jsonl: texts and scores, and for the first rows the numbers of each token.

B sequences, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minirlhf.data.batches import Draw
from minirlhf.rollout.rollout import Rollout
from minirlhf.text.token_texts import token_texts
from minirlhf.text.tokenizer import Tokenizer

ROWS, TOKENS = 2, 512  # with the numbers of each token: rows of a step, and tokens of a row
# Lists of a sample. None has the name of a column of data, such as `rewards`, so samples can be trained on.
LISTS = ("tokens", "ids", "logps", "ref_logps", "values", "token_rewards", "advantages")


def samples_of(batch: Sequence[Draw], rollout: Rollout, group_size: int = 1, most: int = 4) -> list[dict[str, Any]]:
    """The first completion of the first prompts; with its turns, if it is an episode."""
    samples = []
    for draw, row in zip(batch[:most], range(0, len(rollout.lengths), group_size), strict=False):
        score = float(rollout.scores[row])
        prompt = rollout.first_prompts[row] if rollout.first_prompts else draw.row.source["prompt"]
        sample = {"prompt": prompt, "completion": rollout.completions[row]}
        sample["score"] = score if score == score else None  # NaN is no JSON
        if rollout.turns is not None:
            sample["turns"] = rollout.turns[row]
        samples.append(sample)
    return samples


def add_tokens(trainer: Any, rollout: Rollout, group_size: int = 1, **numbers: Tensor | None) -> None:
    """Add the lists of `token_lists` to the first samples of a trainer. `samples_of` has made these samples.

    numbers: name -> [B, T], None if the algorithm has no such numbers. The log-probs are those of the rollout.
    """
    numbers = {"logps": rollout.logps, "ref_logps": rollout.ref_logps if trainer.ref_policy else None, **numbers}
    numbers = {name: x for name, x in numbers.items() if x is not None}
    for sample, row in zip(trainer.samples[:ROWS], range(0, len(rollout.lengths), group_size), strict=False):
        mask = rollout.completion_mask[row]
        answer = slice(int(mask.int().argmax()), rollout.lengths[row])  # from the first token that the policy chose
        table = torch.stack([x[row, answer].float() for x in numbers.values()]).tolist()
        ids, chosen = rollout.input_ids[row, answer].tolist(), mask[answer].tolist()
        sample |= token_lists(trainer.tokenizer, ids, chosen, dict(zip(numbers, table, strict=True)))


def token_lists(
    tokenizer: Tokenizer, ids: Sequence[int], chosen: Sequence[bool] | None, numbers: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The tokens of a completion: their texts and ids, and lists of their numbers in four digits.

    chosen: for each token, whether the policy chose it; None: all. The environment's tokens have None for a number.
    A long completion has the lists of its first tokens, and the count of all others as tokens_left_out.
    """
    first = list(ids[:TOKENS])
    chosen = chosen or [True] * len(first)
    lists = {
        name: [short(x) if own else None for x, own, _ in zip(column, chosen, first, strict=False)]
        for name, column in numbers.items()
    }
    left_out = {"tokens_left_out": len(ids) - TOKENS} if len(ids) > TOKENS else {}
    return {"tokens": token_texts(tokenizer, first), "ids": first, **lists, **left_out}


def short(x: float) -> float | None:
    """Four digits: the lists are looked at, and would otherwise be most of the bytes of a run."""
    return float(f"{x:.4g}") if math.isfinite(x) else None
