"""What a policy writes on held-out prompts, in numbers and in samples."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minirlhf.data.batches import microbatches, pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.evaluation.texts import distinct_n
from minirlhf.generation.engine import Completion, SamplingConfig, generate
from minirlhf.model.policy import Policy
from minirlhf.rewards.scoring import Gold, Reward, score_completions
from minirlhf.runtime.distributed import gather, share
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.table import table


@dataclass(frozen=True)
class Report:
    measures: dict[str, float | None]  # gold_reward, model_reward, grammatical, length, distinct_2, kl, ended
    prompts: list[str]
    completions: list[str]
    gold: list[float] | None = None  # gold reward of each completion

    def known(self) -> dict[str, float]:
        """The measures that the task has."""
        return {name: value for name, value in self.measures.items() if value is not None}


def evaluate_policy(
    policy: Policy,
    tokenizer: Tokenizer,
    rows: Sequence[EncodedRow],
    sampling: SamplingConfig,
    *,
    reward: Reward | None = None,
    ref_policy: Policy | None = None,
    gold: Gold | None = None,
    seed: int = 0,
) -> Report:
    """Sample one completion per row, keyed by its place, and measure them. Processes share the work.

    Measures: gold_reward and grammatical (None where the task knows none), model_reward (mean score of `reward`),
    length (tokens, EOS included), distinct_2, kl (nats per sequence to `ref_policy`), ended (share that stopped by
    itself).
    """
    if not rows:
        raise InputError("evaluate_policy: needed at least one prompt, got none")
    mine = share(range(len(rows)), even=False)
    prompts = [rows[i].source["prompt"] for i in mine]
    completions = generate(
        policy.transformer,
        [rows[i].prompt for i in mine],
        sampling,
        seed=seed,
        stream="evaluation",
        keys=[(0, i, 0) for i in mine],
        tokenizer=tokenizer,
    )
    texts = tokenizer.decode_completions([completion.ids for completion in completions])
    sources = [rows[i].source for i in mine]
    measured: dict[str, list] = {
        "row": list(mine),
        "text": texts,
        "length": [len(completion.ids) for completion in completions],
        "ended": [float(completion.finish == "stop") for completion in completions],
    }
    if reward:
        measured["model_reward"] = score_completions(reward, prompts, texts, sources)
    if gold:
        measured |= gold(prompts, texts, sources)
    if ref_policy and sampling.temperature > 0:  # greedy samples say nothing about a distribution
        measured["kl"] = sequence_kl(ref_policy, tokenizer, [rows[i].prompt for i in mine], completions, sampling)
    joined: dict[str, list] = {}
    for part in gather(measured):
        for name, values in part.items():
            joined.setdefault(name, []).extend(values)
    order = sorted(range(len(rows)), key=joined["row"].__getitem__)
    texts = [joined["text"][i] for i in order]
    names = ("gold_reward", "model_reward", "grammatical", "length", "kl", "ended")
    means = {name: sum(joined[name]) / len(rows) if name in joined else None for name in names}
    gold_rewards = [joined["gold_reward"][i] for i in order] if gold else None
    prompts = [row.source["prompt"] for row in rows]
    return Report({**means, "distinct_2": distinct_n(texts)}, prompts, texts, gold_rewards)


def win_rate(before: Report, after: Report) -> float | None:
    """The share of prompts on which the second has the higher gold reward, ties by half; None if nobody knows gold."""
    if before.gold is None or after.gold is None:
        return None
    wins = sum((b > a) + 0.5 * (b == a) for a, b in zip(before.gold, after.gold, strict=True))
    return wins / len(before.gold)


LABELS = {
    "gold_reward": "gold reward",
    "model_reward": "reward model's score",
    "grammatical": "share grammatical",
    "length": "length (tokens)",
    "distinct_2": "distinct-2",
    "kl": "KL to the reference (nats)",
}


def comparison(before: Report, after: Report, stage: str) -> str:
    """What a stage changed: a table of the measures that the task has, and samples side by side."""
    rows = [[label, before.measures[name], after.measures[name]] for name, label in LABELS.items()]
    shown = [row for row in rows if row[1:] != [None, None]]
    header = ["on held-out prompts", f"before {stage}", f"after {stage}"]
    return f"{table(header, shown)}\n\n{side_by_side(before, after)}"


@torch.no_grad()
def sequence_kl(
    ref_policy: Policy,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    sampling: SamplingConfig,
) -> list[float]:
    """k1 estimate of KL(sampler || reference) of each completion, nats: log-prob as sampled minus the reference's."""
    lengths = [len(p) + len(c.ids) for p, c in zip(prompts, completions, strict=True)]
    device = ref_policy.transformer.device
    estimates = [0.0] * len(lengths)
    for group in microbatches(lengths, sampling.microbatch_tokens):
        ids = [prompts[i] for i in group], [completions[i].ids for i in group]
        batch = pad_sequences(*ids, tokenizer.pad_id, device)
        logps = ref_policy(batch.input_ids, batch.attention_mask, temperature=sampling.temperature).logps
        totals = torch.where(batch.completion_mask, logps, 0).sum(-1).tolist()
        for i, total in zip(group, totals, strict=True):
            estimates[i] = sum(completions[i].logps) - total
    return estimates


def side_by_side(before: Report, after: Report, n: int = 5, width: int = 40) -> str:
    """n prompts, spread over all, with what was written before and after, in three columns."""
    lines = [f"{'prompt':<{width}}  {'before':<{width}}  after"]
    lines.append("  ".join(["-" * width] * 3))
    shown = min(n, len(before.prompts))
    for i in (k * (len(before.prompts) - 1) // max(1, shown - 1) for k in range(shown)):
        cells = [before.prompts[i], before.completions[i], after.completions[i]]
        columns = [textwrap.wrap(" ".join(text.split())[-4 * width :] or "(empty)", width) for text in cells]
        for j in range(max(map(len, columns))):
            lines.append("  ".join((column[j] if j < len(column) else "").ljust(width) for column in columns).rstrip())
        lines.append("")
    return "\n".join(lines).rstrip()
