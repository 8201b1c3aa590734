"""Prompts -> rollout: what the policy wrote, what it got for it, and what it and the others thought of each token.

B sequences, T tokens; column t speaks about choosing token t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.data.batches import Draw, microbatches, pad_sequences
from minirlhf.generation.engine import SamplingConfig, generate
from minirlhf.losses import masked_moments, masked_sum, mean_and_var, weighted_scores
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
    scores: Tensor  # [B] weighted sum of the reward functions; nan where none applies
    parts: Tensor  # [B, F] what each of them said; nan where it does not apply
    ended: Tensor  # [B] bool, a stop token or string came
    kept: Tensor  # [B] probability mass that top-k / top-p left
    completions: list[str]  # B texts
    lengths: list[int]  # B real tokens, prompt included, known to the host

    def select(self, rows: Sequence[int]) -> Rollout:
        """These rows, cut to the longest of them."""
        width = max(self.lengths[i] for i in rows)
        index = torch.as_tensor(rows, device=self.input_ids.device)
        tensors = {
            name: value[index][:, :width] if value.shape == self.input_ids.shape else value[index]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Rollout(
            **tensors, completions=[self.completions[i] for i in rows], lengths=[self.lengths[i] for i in rows]
        )

    def replaced(self, places: Sequence[int], other: Rollout, group_size: int) -> Rollout:
        """The same with the groups at `places` taken from `other`, in order."""
        rows = [g * group_size + i for g in places for i in range(group_size)]
        order = list(range(len(self.lengths)))
        for new, row in enumerate(rows):
            order[row] = len(self.lengths) + new
        both = {}
        for name, mine in vars(self).items():
            theirs = getattr(other, name)
            if not isinstance(mine, Tensor):
                joined = [*mine, *theirs]
                both[name] = [joined[i] for i in order]
                continue
            if mine.shape == self.input_ids.shape:
                width = max(mine.shape[1], theirs.shape[1])
                mine, theirs = (F.pad(x, (0, width - x.shape[1])) for x in (mine, theirs))
            both[name] = torch.cat((mine, theirs))[order]
        return Rollout(**both)


@torch.no_grad()
def collect(
    policy: Policy,
    ref_policy: Policy | None,
    value_model: ValueModel | None,
    rewards: Reward | Sequence[Reward],
    tokenizer: Tokenizer,
    batch: Sequence[Draw],
    sampling: SamplingConfig,
    *,
    seed: int,
    stream: str = "rollout",
    group_size: int = 1,
    weights: Sequence[float] | None = None,
) -> Rollout:
    """Sample completions for each prompt, score them, read them with the reference and the value function. No gradient.

    The log-probs kept are those of sampling itself; the policy reads its completions again only for their values.

    Args:
        ref_policy:  None leaves ref_logps 0.   value_model: None takes the policy's head, or 0 if it has none.
        rewards:     one function or several.   weights: one each; with them a function may answer None.
        group_size:  completions per prompt; a prompt's stand side by side.
    """
    draws = [draw for draw in batch for _ in range(group_size)]
    prompts, rows = [draw.row.prompt for draw in draws], [draw.row.source for draw in draws]
    keys = [(draw.epoch, draw.index, sample) for draw in batch for sample in range(group_size)]
    completions = generate(
        policy.transformer, prompts, sampling, seed=seed, stream=stream, keys=keys, tokenizer=tokenizer
    )
    texts = tokenizer.decode_completions([completion.ids for completion in completions])
    functions = [rewards] if callable(rewards) else list(rewards)
    asked = [row["prompt"] for row in rows], texts, rows
    scores = torch.tensor([score_completions(f, *asked, optional=weights is not None) for f in functions]).T

    device = policy.transformer.device
    ids, attention_mask, completion_mask = pad_sequences(
        prompts, [c.ids for c in completions], tokenizer.pad_id, device
    )
    logps = place_completions([c.logps for c in completions], prompts, ids)
    parts = scores.to(device, logps.dtype)
    ref_logps, values = torch.zeros_like(logps), torch.zeros_like(logps)
    values_wanted = value_model is not None or policy.value_head is not None
    lengths = [len(p) + len(c.ids) for p, c in zip(prompts, completions, strict=True)]
    for group in microbatches(lengths, sampling.microbatch_tokens) if ref_policy or values_wanted else []:
        index, width = torch.tensor(group, device=device), lengths[group[0]]  # the first of a group is its longest
        inputs = ids[index, :width], attention_mask[index, :width]
        if ref_policy:
            ref_logps[index, :width] = ref_policy(*inputs, temperature=sampling.temperature).logps.to(logps.dtype)
        if values_wanted:
            read = value_model or policy.read_values
            values[index, :width] = read(*inputs).to(logps.dtype)
    return Rollout(
        input_ids=ids,
        attention_mask=attention_mask,
        completion_mask=completion_mask,
        logps=logps,
        ref_logps=torch.where(completion_mask, ref_logps, 0),
        values=torch.where(completion_mask, values, 0),
        scores=weighted_scores(parts, parts.new_tensor(weights or [1.0] * len(functions))),
        parts=parts,
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


def describe(rollout: Rollout) -> dict[str, float]:
    """What a rollout was like, over all processes: the metrics of the samples, before any update."""
    mask = rollout.completion_mask
    wide = wide_dtype(mask)
    scores = rollout.scores.to(wide)
    sums = {
        "n": mask.any(-1).sum(),
        "judged": (~scores.isnan()).sum(),
        "score_mean": scores.nansum(),
        "score_sq": scores.square().nansum(),
        "kl": masked_sum((rollout.logps - rollout.ref_logps).to(wide), mask),
        "response_length": mask.sum(),
        "ended": rollout.ended.sum(),
        "mass_kept": rollout.kept.sum(),
    }
    totals = all_sum(torch.stack([value.to(wide) for value in sums.values()])).tolist()
    n, judged, total, total_sq, *others = totals
    means = {name: value / n for name, value in zip(list(sums)[4:], others, strict=True)}
    mean = total / max(judged, 1)
    variance = max(total_sq / max(judged, 1) - mean**2, 0.0) * judged / max(judged - 1, 1)
    return {"score_mean": mean, "score_std": variance**0.5, **means}


def explained_variance(rollout: Rollout, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over all tokens of all processes."""
    mask = rollout.completion_mask
    residual, spread = moments_of_all(returns - rollout.values, mask), moments_of_all(returns, mask)
    return float(1 - mean_and_var(residual)[1] / mean_and_var(spread)[1].clamp(min=1e-8))


def moments_of_all(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`masked_moments` over all processes."""
    return all_sum(torch.stack(masked_moments(x, mask))).unbind()
