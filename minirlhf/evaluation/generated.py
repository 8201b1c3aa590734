"""All measures of sampled texts, and of their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minirlhf.evaluation.answers import answer_measures
from minirlhf.evaluation.bleu import Words, bleu, chrf, self_bleu
from minirlhf.evaluation.diversity import distinct, repetition
from minirlhf.evaluation.intervals import bootstrap
from minirlhf.evaluation.rouge import rouge
from minirlhf.rewards.answers import is_right

KS = (1, 2, 4, 8, 16)  # of pass@k


def text_measures(
    samples: Sequence[Sequence[str]], references: Sequence[Sequence[str]], words: Words
) -> dict[str, float | None]:
    """Measures of the samples of each prompt; None where nothing can be measured.

    Args:
        references: the known answers of each prompt, perhaps none.   words: a text -> words, for BLEU and self-BLEU.
    self_bleu compares the samples of a prompt, or, with one sample each, the answers to different prompts.
    """
    texts = [text for group in samples for text in group]
    if not texts:
        return {}
    pairs = [(text, refs) for group, refs in zip(samples, references, strict=True) if refs for text in group]
    against = {}
    if pairs:
        known, refs = zip(*pairs, strict=True)
        against = {"bleu": bleu(known, refs, words), "chrf": chrf(known, refs), **rouge(known, refs)}
    several = any(len(group) > 1 for group in samples)
    return {
        "characters": sum(map(len, texts)) / len(texts),
        "repetition": repetition(texts),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "self_bleu": self_bleu(samples if several else [texts], words),
        **against,
    }


def reward_measures(scores: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Mean with its interval over prompts, and quantiles over samples. A score of nan is unknown and not counted."""
    known = [[score for score in group if score == score] for group in scores]
    means = [sum(group) / len(group) for group in known if group]
    if not means:
        return {}
    every = torch.tensor([score for group in known for score in group], dtype=torch.float64)
    low, middle, high = every.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    mean, interval = sum(means) / len(means), bootstrap(means, seed=seed)
    return {
        "reward": mean,
        "reward_interval": interval,
        "reward_10": low,
        "reward_50": middle,
        "reward_90": high,
        "scored": len(every),
    }


def answers_right(prompts: Sequence[dict], samples: Sequence[Sequence[str]]) -> dict[str, Any]:
    """exact_match and pass@k over the prompts whose row has an "answer", with their number; empty if none has one."""
    pairs = [(row["answer"], group) for row, group in zip(prompts, samples, strict=True) if has_answer(row)]
    right = [[is_right(text, answer) for text in group] for answer, group in pairs]
    return {"answers": len(right), **answer_measures(right, KS)} if right else {}


def has_answer(row: dict) -> bool:
    return type(row.get("answer")) in (str, int, float)
