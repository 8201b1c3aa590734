"""Prompts -> rollout: what the policy wrote, what it got for it, and what it and the others thought of each token.

B sequences, T tokens; column t speaks about choosing token t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minirlhf.data.batches import Draw, microbatches, pad_sequences
from minirlhf.generation.engine import SamplingConfig, generate
from minirlhf.losses import masked_moments, masked_sum, mean_and_var
from minirlhf.losses.masking import wide_dtype
from minirlhf.model.policy import Policy, ValueModel
from minirlhf.rewards.scoring import Reward, score_completions
from minirlhf.runtime.distributed import all_sum
from minirlhf.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rollout:
    input_ids: Tensor  # [B, T] prompt, completion, padding
    attention_mask: Tensor  # [B, T] bool, real tokens
    completion_mask: Tensor  # [B, T] bool, tokens the policy chose
    logps: Tensor  # [B, T] nats, as sampled
    ref_logps: Tensor  # [B, T] nats, frozen reference
    values: Tensor  # [B, T] score units
    scores: Tensor  # [B] from the reward function
    ended: Tensor  # [B] bool, a stop token or string came
    kept: Tensor  # [B] probability mass that top-k / top-p left
    completions: list[str]  # B texts
    lengths: list[int]  # B real tokens, prompt included, known to the host

    def select(self, rows: Sequence[int]) -> Rollout:
        """These rows, cut to the longest of them."""
        width = max(self.lengths[i] for i in rows)
        index = torch.as_tensor(rows, device=self.input_ids.device)
        tensors = {
            name: value[index][:, :width] if value.dim() > 1 else value[index]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Rollout(
            **tensors, completions=[self.completions[i] for i in rows], lengths=[self.lengths[i] for i in rows]
        )


@torch.no_grad()
def collect(
    policy: Policy,
    ref_policy: Policy,
    value_model: ValueModel | None,
    reward: Reward,
    tokenizer: Tokenizer,
    batch: Sequence[Draw],
    sampling: SamplingConfig,
    *,
    seed: int,
) -> Rollout:
    """Sample a completion for each prompt, score it, read it with the reference and the value function. No gradient.

    The log-probs kept are those of sampling itself; the policy reads its completions again only for their values.
    """
    prompts = [draw.row.prompt for draw in batch]
    keys = [(draw.epoch, draw.index, 0) for draw in batch]
    completions = generate(
        policy.transformer, prompts, sampling, seed=seed, stream="rollout", keys=keys, tokenizer=tokenizer
    )
    texts = tokenizer.decode_completions([completion.ids for completion in completions])
    rows = [draw.row.source for draw in batch]
    scores = score_completions(reward, [row["prompt"] for row in rows], texts, rows)

    device = policy.transformer.head_weight.device
    ids, attention_mask, completion_mask = pad_sequences(
        prompts, [c.ids for c in completions], tokenizer.pad_id, device
    )
    logps = place_completions([c.logps for c in completions], prompts, ids)
    ref_logps, values = torch.zeros_like(logps), torch.zeros_like(logps)
    lengths = [len(p) + len(c.ids) for p, c in zip(prompts, completions, strict=True)]
    for group in microbatches(lengths, sampling.microbatch_tokens):
        index, width = torch.tensor(group, device=device), lengths[group[0]]  # the first of a group is its longest
        inputs = ids[index, :width], attention_mask[index, :width]
        ref_logps[index, :width] = ref_policy(*inputs, temperature=sampling.temperature).logps.to(logps.dtype)
        values[index, :width] = (value_model(*inputs) if value_model else policy.read_values(*inputs)).to(logps.dtype)
    return Rollout(
        input_ids=ids,
        attention_mask=attention_mask,
        completion_mask=completion_mask,
        logps=logps,
        ref_logps=torch.where(completion_mask, ref_logps, 0),
        values=torch.where(completion_mask, values, 0),
        scores=torch.tensor(scores, dtype=logps.dtype, device=device),
        ended=torch.tensor([c.finish == "stop" for c in completions], device=device),
        kept=torch.tensor([c.kept for c in completions], device=device),
        completions=texts,
        lengths=lengths,
    )


def place_completions(numbers: Sequence[Sequence[float]], prompts: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """One number per completion token -> [B, T] in that token's column, 0 elsewhere."""
    placed = torch.zeros(like.shape)
    for row, prompt, values in zip(placed, prompts, numbers, strict=True):
        row[len(prompt) : len(prompt) + len(values)] = torch.tensor(values)
    return placed.to(like.device)


def describe(rollout: Rollout, returns: Tensor) -> dict[str, float]:
    """What a rollout was like, over all processes: the metrics of the samples, before any update."""
    mask = rollout.completion_mask
    wide = wide_dtype(mask)
    scores = rollout.scores.to(wide)
    sums = {
        "n": mask.any(-1).sum(),
        "kl": masked_sum((rollout.logps - rollout.ref_logps).to(wide), mask),
        "score_mean": scores.sum(),
        "score_sq": scores.square().sum(),
        "response_length": mask.sum(),
        "ended": rollout.ended.sum(),
        "mass_kept": rollout.kept.sum(),
    }
    residual, spread = moments_of_all(returns - rollout.values, mask), moments_of_all(returns, mask)
    totals = all_sum(torch.stack([value.to(wide) for value in sums.values()]))
    explained = 1 - mean_and_var(residual)[1] / mean_and_var(spread)[1].clamp(min=1e-8)
    *values, explained_variance = torch.cat([totals, explained[None]]).tolist()
    n, *means = values
    metrics = {name: value / n for name, value in zip(list(sums)[1:], means, strict=True)}
    variance = (metrics.pop("score_sq") - metrics["score_mean"] ** 2) * n / max(n - 1, 1)
    return {**metrics, "score_std": max(variance, 0.0) ** 0.5, "explained_variance": explained_variance}


def moments_of_all(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`masked_moments` over all processes."""
    return all_sum(torch.stack(masked_moments(x, mask))).unbind()
