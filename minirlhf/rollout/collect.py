"""Prompts -> rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minirlhf.data.batches import Draw, microbatches, pad_sequences
from minirlhf.generation.engine import SamplingConfig, generate
from minirlhf.losses import weighted_scores
from minirlhf.model.policy import Policy, ValueModel
from minirlhf.rewards.scoring import Reward, score_completions
from minirlhf.rollout.rollout import Rollout
from minirlhf.text.tokenizer import Tokenizer


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
