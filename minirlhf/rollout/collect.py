"""Prompts -> rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minirlhf.data.batches import Draw, EncodedRow, drawn, pad_sequences
from minirlhf.generation.engine import Completion, SamplingConfig, generate
from minirlhf.losses import weighted_scores
from minirlhf.model.policy import Policy, ValueModel
from minirlhf.model.transformer import Transformer
from minirlhf.rewards.scoring import Reward, score_completions
from minirlhf.rollout.read import read
from minirlhf.rollout.rollout import Rollout
from minirlhf.runtime.distributed import own_pace
from minirlhf.text.tokenizer import Tokenizer


def sample_rows(
    transformer: Transformer,
    tokenizer: Tokenizer,
    environment: Any,
    rows: Sequence[EncodedRow],
    sampling: SamplingConfig,
    **options: Any,
) -> tuple[list[list[int]], list[Completion], tuple[list[str], list[str], list[dict]], Sequence[Any]]:
    """-> for each row its prompt, its completion, the arguments of a reward, and with an environment its episode.

    options: seed, stream and keys of `generate`.
    """
    prompts, sources, episodes = [row.prompt for row in rows], [row.source for row in rows], ()
    if environment is None:
        completions = generate(transformer, prompts, sampling, tokenizer=tokenizer, **options)
    else:
        episodes = environment.play(transformer, rows, sampling, **options)
        prompts, completions = [e.prompt for e in episodes], [e.completion for e in episodes]
        sources = [e.row for e in episodes]
    texts = tokenizer.decode_completions([completion.ids for completion in completions])
    return prompts, completions, ([source["prompt"] for source in sources], texts, sources), episodes


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
    environment: Any = None,
) -> Rollout:
    """Sample completions, score them, and read them with the reference and the value function. No gradient.

    `logps` come from sampling itself: the policy reads its completions again for their values only. In bf16 they are
    read again too, because the sampler rounds in another order than the forward that is trained.

    Args:
        ref_policy:  without a reference, ref_logps are 0.
        value_model: None takes the policy's value head; without a value head, values are 0.
        rewards:     one function or several.
        group_size:  completions per prompt; the completions of a prompt stand side by side.
        weights:     one per reward function. If given, a function may return None.
        environment: `Episodes` that the policy plays; one of the functions then is its `reward`.
    """
    encoded = [row for row in drawn(batch, 0) for _ in range(group_size)]
    keys = [(draw.epoch, draw.index, sample) for draw in batch for sample in range(group_size)]
    options, models = {"seed": seed, "stream": stream, "keys": keys}, (policy.transformer, tokenizer, environment)
    prompts, completions, inputs, episodes = sample_rows(*models, encoded, sampling, **options)
    functions = [rewards] if callable(rewards) else list(rewards)
    scores = torch.tensor([score_completions(f, *inputs, optional=weights is not None) for f in functions]).T

    device = policy.transformer.device
    ids, attention_mask, completion_mask = pad_sequences(
        prompts, [c.ids for c in completions], tokenizer.pad_id, device, [c.chosen for c in completions if c.chosen]
    )
    logps = torch.zeros(ids.shape)
    for row, prompt, completion in zip(logps, prompts, completions, strict=True):
        row[len(prompt) : len(prompt) + len(completion.ids)] = torch.tensor(completion.logps)
    logps = logps.to(device)
    scores_by_function = scores.to(device, logps.dtype)
    lengths = [len(p) + len(c.ids) for p, c in zip(prompts, completions, strict=True)]
    units = [i // group_size for i in range(len(lengths))]
    tokens, to_read = (ids, attention_mask, completion_mask), (lengths, sampling.microbatch_tokens, units)
    ref_logps, values = torch.zeros_like(logps), torch.zeros_like(logps)

    def read_logps(model: Policy) -> Tensor:
        with own_pace(model):
            options = {"temperature": sampling.temperature, "entropy": False}
            return read(lambda x, mask, w: model(x, mask, wanted=w, **options).logps, tokens, *to_read).to(logps.dtype)

    sampler_logps = None
    if torch.is_autocast_enabled(device.type):
        sampler_logps, logps = logps, read_logps(policy)
    if ref_policy:
        ref_logps = read_logps(ref_policy)
    if value_model or policy.value_head:
        with own_pace(value_model or policy):
            values = read(value_model or policy.read_values, tokens, *to_read)
    return Rollout(
        input_ids=ids,
        attention_mask=attention_mask,
        completion_mask=completion_mask,
        logps=logps,
        ref_logps=ref_logps,
        values=values.to(logps.dtype),
        scores=weighted_scores(scores_by_function, scores_by_function.new_tensor(weights or [1.0] * len(functions))),
        scores_by_function=scores_by_function,
        ended=torch.tensor([c.finish == "stop" for c in completions], dtype=torch.bool, device=device),
        mass_kept=torch.tensor([c.mass_kept for c in completions], device=device),
        completions=inputs[1],
        lengths=lengths,
        sampler_logps=sampler_logps,
        **(environment.fields(episodes, logps) if environment else {}),
    )
