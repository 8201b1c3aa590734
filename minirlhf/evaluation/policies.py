"""Measures and samples of a policy's completions on held-out prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from minirlhf.data.batches import pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.evaluation.texts import distinct_n
from minirlhf.generation.engine import Completion, SamplingConfig
from minirlhf.model.policy import Policy
from minirlhf.rewards.scoring import Gold, Reward, score_completions
from minirlhf.rollout.collect import sample_rows
from minirlhf.rollout.read import read
from minirlhf.runtime.distributed import local_rows, own_pace
from minirlhf.text.tokenizer import Tokenizer

# measure -> its label in the table of `comparison`. A measure with label None is not in the table.
MEASURES: dict[str, str | None] = {
    "gold_reward": "gold reward",
    "model_reward": "reward",  # or the label of a report
    "grammatical": "share grammatical",
    "length": "length (tokens)",
    "distinct_2": "distinct-2",
    "kl": "KL to the reference (nats)",
    "ended": None,
}


@dataclass(frozen=True)
class Report:
    measures: dict[str, float | None]  # the names of MEASURES; None if not measured
    prompts: list[str]
    completions: list[str]
    gold: list[float] | None = None  # gold reward of each completion
    seconds: float = field(default=0.0, compare=False)  # the time of the evaluation
    reward_label: str = "reward function's score"  # of model_reward in the table of `comparison`

    def known(self) -> dict[str, float]:
        """The measures that are not None."""
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
    environment: Any = None,
) -> Report:
    """Sample one completion per row and measure the completions. Each process samples a part of the rows.

    The noise of a completion is keyed by `seed` and the row's index, so it does not depend on the number of processes.

    Measures: gold_reward and grammatical (from `gold`), model_reward (mean score of `reward`), length (tokens that the
    policy chose, EOS included), distinct_2, kl (nats per sequence to `ref_policy`), ended (share of completions with a
    stop token or stop string). Without `gold`, `reward` or `ref_policy` their measures are None; the kl of greedy
    samples is None too. A prompt that leaves no room in the context is left out. Without prompts, all are None. With an
    `environment`, an `Episodes`, a completion is an episode, and model_reward includes the environment's rewards.
    """
    from minirlhf.generation.room import with_room  # here, so that the core loads no leaf
    from minirlhf.runtime.sharing import in_order

    started = time.perf_counter()
    fitting = environment.with_room if environment else with_room
    if not (rows := fitting(policy.transformer.config.max_position_embeddings, rows)):
        return Report(dict.fromkeys(MEASURES), [], [])
    own = local_rows(rows)
    options = {"seed": seed, "stream": "evaluation", "keys": local_rows([(0, i, 0) for i in range(len(rows))])}
    models = policy.transformer, tokenizer, environment
    prompts, completions, inputs, _ = sample_rows(*models, own, sampling, **options)
    reward = environment.with_reward(reward) if environment else reward
    measured: dict[str, list] = {
        "text": inputs[1],
        "length": [sum(c.chosen) if c.chosen else len(c.ids) for c in completions],
        "ended": [float(completion.finish == "stop") for completion in completions],
    }
    if reward:
        measured["model_reward"] = score_completions(reward, *inputs, optional=True)
    if gold:
        measured |= gold(*inputs)
    if ref_policy and sampling.temperature > 0:  # greedy samples are not drawn from the distribution
        measured["kl"] = sequence_kl(ref_policy, tokenizer, prompts, completions, sampling)
    found = {name: in_order(values) for name, values in measured.items()}
    means = {name: _mean(found[name]) if name in found else None for name in MEASURES if name != "distinct_2"}
    means["distinct_2"] = distinct_n(found["text"])
    prompts, seconds = [row.source["prompt"] for row in rows], time.perf_counter() - started
    label = getattr(reward, "label", Report.reward_label)
    return Report(means, prompts, found["text"], found["gold_reward"] if gold else None, seconds, label)


def _mean(values: list[float]) -> float | None:
    """The mean of the values that are numbers: a reward may have no score for a completion."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def sequence_kl(
    ref_policy: Policy,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    sampling: SamplingConfig,
) -> list[float]:
    """k1 estimate of KL(sampler || reference) of each completion, nats: its log-prob minus the reference's log-prob."""

    def ref_logp(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
        options = {"temperature": sampling.temperature, "wanted": completion_mask, "entropy": False}
        return ref_policy(input_ids, attention_mask, **options).logps.sum(-1)

    ids = [completion.ids for completion in completions]
    chosen = [completion.chosen for completion in completions if completion.chosen]
    batch = pad_sequences(prompts, ids, tokenizer.pad_id, ref_policy.transformer.device, chosen)
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, ids, strict=True)]
    tensors = batch.input_ids, batch.attention_mask, batch.completion_mask
    with own_pace(ref_policy):
        ref_logps = read(ref_logp, tensors, lengths, sampling.microbatch_tokens).tolist()
    return [sum(completion.logps) - ref for completion, ref in zip(completions, ref_logps, strict=True)]
