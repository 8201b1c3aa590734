"""Measures as tables for the terminal, and samples as text to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    "perplexity": "perplexity (per token)",
    "bits_per_byte": "bits per byte",
    "kl": "KL to the reference (nats)",
    "reward": "reward",
    "reward_10": "reward, quantile 10%",
    "reward_50": "reward, median",
    "reward_90": "reward, quantile 90%",
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


def bias_table(biases: dict[str, dict[str, float]]) -> str:
    """The position bias of a judge, from `position_bias`; the first number is 0.5 without bias, the second 0."""
    rows = [[name, bias["first"], bias["changed"]] for name, bias in biases.items()]
    return table(["position bias of the judge", "P(first answer)", "verdicts changed by the order"], rows)


def sample_lines(
    prompts: list[dict], samples: dict[str, list[list[str]]], scores: dict[str, list[list[float]]]
) -> list[dict[str, Any]]:
    """The lines of samples.jsonl: for each prompt the completions of all models."""
    lines = []
    for i, row in enumerate(prompts if samples else []):
        common = {name: row[name] for name in ("file", "line", "category") if name in row}
        for name, own in samples.items():
            for k, text in enumerate(own[i]):
                score = scores[name][i][k] if scores else math.nan
                known = {} if math.isnan(score) else {"reward": score}
                lines.append({"prompt": row["prompt"], "completion": text, "model": name, **common, **known})
    return lines
