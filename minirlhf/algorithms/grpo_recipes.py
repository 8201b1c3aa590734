"""The papers of GRPO's family: tables of advantages and surrogates. grpo_settings.py has the settings.

A paper makes three choices: the advantage of a completion, the surrogate that carries the gradient, and the average
over tokens. B sequences, T tokens, F reward functions, G completions of one prompt, side by side.

config: a `GRPOConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, inf, nan

from minirlhf.algorithms.on_policy import clip_of
from minirlhf.errors import InputError
from minirlhf.losses import (
    bnpo_advantages,
    cispo_policy_loss,
    discounted_returns,
    gdpo_advantages,
    gmpo_policy_loss,
    group_advantages,
    gspo_policy_loss,
    gspo_token_policy_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_shaped_rewards,
    masked_whiten,
    ppo_policy_loss,
    reinforce_policy_loss,
    rloo_advantages,
    sapo_policy_loss,
    turn_returns,
    vespo_policy_loss,
    whiten_judged,
)
from minirlhf.rollout.rollout import Rollout
from minirlhf.rollout.statistics import moments_of_all
from minirlhf.rollout.turns import at_their_turns
from minirlhf.runtime.distributed import gather

# A paper makes these choices, unless its row in ALGORITHMS says otherwise.
DEFAULTS: dict[str, Any] = dict(
    advantage="group",
    surrogate="clip",
    reduction="token",
    scale_rewards="group",
    clip_eps=0.2,
    kl_in="loss",
    overlong_share=0.0,
    resample=0,
)

# Name -> settings of GRPOConfig. A setting that the user gives replaces the paper's choice. PPO is not in the table:
# its advantage comes from a value function, see ppo.py.
ALGORITHMS: dict[str, dict[str, Any]] = {
    # Williams 1992: the advantage of a token is the sum of the rewards that follow
    "reinforce": dict(advantage="returns", surrogate="reinforce", reduction="sum", kl_in="reward"),
    # Ahmadian et al. 2024, arXiv:2402.14740
    "rloo": dict(advantage="leave_one_out", surrogate="reinforce", reduction="sum", kl_in="reward"),
    # Li et al. 2023, arXiv:2310.10505
    "remax": dict(advantage="greedy", surrogate="reinforce", reduction="sum", kl_in="reward"),
    # Hu 2025, arXiv:2501.03262, without and with the mean of a group as baseline
    "reinforce++": dict(advantage="whitened_returns", kl_in="reward"),
    "reinforce++_baseline": dict(advantage="whitened_group", kl_estimator="k2"),
    # Shao et al. 2024, arXiv:2402.03300
    "grpo": dict(reduction="sequence"),
    # Liu et al. 2025, arXiv:2503.20783: no division by the std or by the length
    "dr_grpo": dict(scale_rewards="none", reduction="constant"),
    # Yu et al. 2025, arXiv:2503.14476: clip-higher, token mean, overlong shaping, no groups of equal reward
    "dapo": dict(clip_eps_high=0.28, overlong_share=0.2, resample=2),
    # Xiao et al. 2025, arXiv:2506.02864, for rewards in [0, 1]
    "bnpo": dict(advantage="beta"),
    # Zheng et al. 2025, arXiv:2507.18071
    "gspo": dict(surrogate="gspo", reduction="sequence", clip_eps=0.02),
    "gspo_token": dict(surrogate="gspo_token", reduction="sequence", clip_eps=0.02),
    # Zhao et al. 2025, arXiv:2507.20673
    "gmpo": dict(surrogate="gmpo", reduction="sequence", clip_eps=0.4),
    # MiniMax 2025, arXiv:2506.13585
    "cispo": dict(surrogate="cispo", clip_eps_high=4.0),
    # Gao et al. 2025, arXiv:2511.20347
    "sapo": dict(surrogate="sapo", reduction="sequence"),
    # Shen et al. 2026, arXiv:2602.10693: tolerates old samples
    "vespo": dict(surrogate="vespo"),
    # INTELLECT-2 2025, arXiv:2505.07291: a bound for negative advantages too
    "two_sided": dict(dual_clip=4.0),
    # Liu et al. 2026, arXiv:2601.05242, for several reward functions
    "gdpo": dict(advantage="each_function"),
    # Dong et al. 2023, arXiv:2304.06767: SFT on the best completion of each group
    "raft": dict(advantage="best", surrogate="reinforce"),
}

# Name -> (logps, old_logps, advantages, mask, config) -> losses [B, T]
SURROGATES: dict[str, Callable[..., Tensor]] = {
    "reinforce": lambda now, old, A, mask, c: reinforce_policy_loss(now, advantages=A),
    "clip": lambda now, old, A, mask, c: ppo_policy_loss(now, old_logps=old, advantages=A, **clip_of(c)),
    "cispo": lambda now, old, A, mask, c: cispo_policy_loss(
        now, old_logps=old, advantages=A, clip_eps_high=c.clip_eps_high or c.clip_eps
    ),
    "sapo": lambda now, old, A, mask, c: sapo_policy_loss(now, old_logps=old, advantages=A),
    "gspo": lambda now, old, A, mask, c: gspo_policy_loss(
        now, old_logps=old, advantages=A, mask=mask, clip_eps=c.clip_eps, clip_eps_high=c.clip_eps_high
    ),
    "gspo_token": lambda now, old, A, mask, c: gspo_token_policy_loss(
        now, old_logps=old, advantages=A, mask=mask, clip_eps=c.clip_eps, clip_eps_high=c.clip_eps_high
    ),
    "gmpo": lambda now, old, A, mask, c: gmpo_policy_loss(
        now, old_logps=old, advantages=A, mask=mask, clip_eps=c.clip_eps
    ),
    "vespo": lambda now, old, A, mask, c: vespo_policy_loss(now, old_logps=old, advantages=A, mask=mask),
}
# The loss of a token depends on no other token, so `fused_linear_loss` takes it.
PER_TOKEN_SURROGATES = ("reinforce", "clip", "cispo", "sapo")
# The gradient is right for the policy that sampled alone, so a batch serves a single update.
WITHOUT_RATIO = ("reinforce",)
CLIP_SETTINGS = {  # surrogate -> the settings that it reads
    "clip": ("clip_eps", "clip_eps_high", "dual_clip"),
    "cispo": ("clip_eps_high",),
    "gspo": ("clip_eps", "clip_eps_high"),
    "gspo_token": ("clip_eps", "clip_eps_high"),
    "gmpo": ("clip_eps",),
    **dict.fromkeys(("reinforce", "sapo", "vespo"), ()),
}

# Name -> (number of tokens and of rows in the update, lengths of the rows [B, 1], max_tokens) -> weight of each token
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "token": lambda tokens, rows, lengths, max_tokens: 1 / tokens,
    "sequence": lambda tokens, rows, lengths, max_tokens: 1 / (rows * lengths),
    "constant": lambda tokens, rows, lengths, max_tokens: 1 / (rows * max_tokens),
    "sum": lambda tokens, rows, lengths, max_tokens: 1 / rows,
}
ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def _whitened_group(scores: Tensor, by_function: Tensor, config: Any) -> Tensor:
    centred = group_advantages(scores, config.group_size, "none").masked_fill(scores.isnan(), nan)
    return whiten_judged(centred, _moments(centred))


def _each_function(scores: Tensor, by_function: Tensor, config: Any) -> Tensor:
    functions = by_function.shape[1] - 1
    weights = [*config.reward_weights, 1.0][:functions]  # an environment has weight 1, and so have the penalties
    weights = by_function.new_tensor([*weights, 1.0])
    summed = gdpo_advantages(by_function, weights, config.group_size).masked_fill(scores.isnan(), nan)
    return whiten_judged(summed, _moments(summed))


def _beta(scores: Tensor, by_function: Tensor, config: Any) -> Tensor:
    if bool(((scores < 0) | (scores > 1)).any()):
        raise InputError(
            f"GRPOTrainer: {config.algorithm} needs rewards in [0, 1], got {scores.min():.3g}..{scores.max():.3g}; "
            "scale them, or choose another algorithm"
        )
    means = scores.view(-1, config.group_size).nanmean(-1)
    return bnpo_advantages(scores, config.group_size, _moments(means))


def _best(scores: Tensor, by_function: Tensor, config: Any) -> Tensor:
    """1 for the best completion of each group, 0 for the others. Of equal scores the first is the best."""
    groups = scores.view(-1, config.group_size)
    best = groups.nan_to_num(nan=-inf).argmax(-1, keepdim=True)
    return torch.zeros_like(groups).scatter(-1, best, 1.0).masked_fill(groups.isnan(), 0.0).flatten()


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return moments_of_all(x, ~x.isnan())


# Name -> (scores [B] with penalties, scores by function [B, F + 1] with the penalties last, config) -> advantages [B].
# A score is nan if no reward function applies.
ADVANTAGES: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "group": lambda scores, _, c: group_advantages(scores, c.group_size, c.scale_rewards, _moments(scores)),
    "whitened_group": _whitened_group,
    "leave_one_out": lambda scores, _, c: rloo_advantages(scores, c.group_size),
    "beta": _beta,
    "each_function": _each_function,
    "best": _best,
}


def _returns(rollout: Rollout, scores: Tensor, config: Any) -> Tensor:
    mask = _judged_tokens(rollout, scores)
    kl_coef = config.kl_coef if config.kl_in == "reward" else 0.0
    rewards = kl_shaped_rewards(
        scores.nan_to_num(0.0),
        logps=rollout.logps,
        ref_logps=rollout.ref_logps if kl_coef else rollout.logps,
        mask=mask,
        kl_coef=kl_coef,
        estimator=config.kl_estimator,
    )
    if config.turn_advantages:
        rewards = at_their_turns(rewards, rollout)
    return discounted_returns(rewards, mask=mask, gamma=config.gamma)


def _whitened_returns(rollout: Rollout, scores: Tensor, config: Any) -> Tensor:
    returns, mask = _returns(rollout, scores, config), _judged_tokens(rollout, scores)
    return masked_whiten(returns, mask, moments_of_all(returns, mask))


def _judged_tokens(rollout: Rollout, scores: Tensor) -> Tensor:
    """[B, T] bool: a completion without a score has no advantage."""
    return rollout.completion_mask & ~scores.isnan()[:, None]


def advantages_by_turn(rollout: Rollout, scores: Tensor, config: Any) -> Tensor:
    """[B, T]: each turn's tokens get the advantage of the return from this turn on, within the turn of this number."""
    turns = max(gather(int(rollout.turn_numbers.max()) if len(scores) else 0))
    options = {"turn_rewards": rollout.turn_rewards, "turn_numbers": rollout.turn_numbers, "turns": turns}
    advantages = torch.zeros_like(rollout.logps)
    for turn, returns in enumerate(turn_returns(scores, **options), start=1):
        of_turn = ADVANTAGES[config.advantage](returns, returns[:, None], config)
        advantages = torch.where(rollout.turn_numbers == turn, of_turn[:, None].to(advantages.dtype), advantages)
    return advantages


# Name -> (rollout, scores [B] with penalties, config) -> advantages [B, T], different for each token of a completion
TOKEN_ADVANTAGES: dict[str, Callable[[Rollout, Tensor, Any], Tensor]] = {
    "returns": _returns,
    "whitened_returns": _whitened_returns,
}
# With `turn_advantages`: each of these compares completions by their scores alone, so it compares their returns too.
BY_TURN = ("group", "whitened_group", "leave_one_out")
# These advantages need no second completion of a prompt. `GRPOTrainer` computes "greedy", because it samples.
WITHOUT_GROUP = (*TOKEN_ADVANTAGES, "greedy")
