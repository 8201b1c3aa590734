"""Measures of sampled texts against the answers of the data, and the lines and tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minirlhf.evaluation.bleu import Words, bleu, chrf, self_bleu
from minirlhf.evaluation.diversity import distinct, repetition
from minirlhf.evaluation.intervals import bootstrap
from minirlhf.evaluation.rouge import rouge
from minirlhf.training.table import table

LABELS = {  # measure -> its label in the table; a measure that no model has is left out
    "prompts": "prompts",
    "length": "length (tokens)",
    "characters": "length (characters)",
    "ended": "share ended",
    "repetition": "repetition (4 words)",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match",
    "pass@1": "pass@1",
    "pass@2": "pass@2",
    "pass@4": "pass@4",
    "pass@8": "pass@8",
    "pass@16": "pass@16",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "kl": "KL to the reference (nats)",
    "reward": "reward",
    "reward_10": "reward, quantile 10%",
    "reward_50": "reward, median",
    "reward_90": "reward, quantile 90%",
}
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


def measures_table(measures: dict[str, dict[str, Any]]) -> str:
    """A column for each model, a row for each measure that any model has."""
    rows = [[label, *(own.get(name) for own in measures.values())] for name, label in LABELS.items()]
    return table(["", *measures], [row for row in rows if row[1:] != [None] * len(measures)])


def wins_table(title: str, baseline: str, wins: dict[str, dict[str, Any]]) -> str:
    """Win rates against the baseline with their intervals, in all and by the difference of length."""
    rows = []
    for name, found in wins.items():
        parts = {"all prompts": found, **{f"answer {group}": part for group, part in found["by_length"].items()}}
        for part, own in parts.items():
            low, high = own["interval"]
            rows.append([f"{name}: {part}", own["prompts"], own["rate"], f"{low:.3f} to {high:.3f}"])
    return table([f"{title} against {baseline}", "prompts", "win rate", "95% interval"], rows)


def pairs_table(name: str, found: dict[str, Any]) -> str:
    """The measures of a reward model on pairs."""
    low, high = found["accuracy_interval"]
    rows = [
        ["pairs", found["pairs"]],
        ["accuracy", found["accuracy"]],
        ["accuracy, 95% interval", f"{low:.3f} to {high:.3f}"],
        ["margin", found["margin"]],
        ["calibration error", found["calibration_error"]],
        *(
            [f"accuracy, chosen {group} ({part['pairs']})", part["accuracy"]]
            for group, part in found["by_length"].items()
        ),
    ]
    return table(["reward on pairs", name], rows)


def side_by_side_text(samples: Sequence[dict[str, Any]], unit: str) -> str:
    """The samples as text to read: each prompt once, below it the completions of all models."""
    lines: list[str] = []
    prompt = None
    for sample in samples:
        if sample["prompt"] != prompt:
            prompt = sample["prompt"]
            lines += [f"{'=' * 20} {unit} {sample['line']} {'=' * 20}", prompt, ""]
        reward = f", reward {sample['reward']:.4g}" if sample.get("reward") is not None else ""
        lines += [f"--- {sample['model']}{reward}", sample["completion"], ""]
    return "\n".join(lines)
