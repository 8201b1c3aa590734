"""The mathematics: pure functions of tensors and floats. Imports torch and nothing else."""

from minirlhf.losses.advantages import gae, kl_shaped_rewards
from minirlhf.losses.kl import AdaptiveKLController, FixedKLController, kl_k1, kl_k2, kl_k3
from minirlhf.losses.logprobs import linear_logps_and_entropy, linear_token_logps, token_entropy, token_logps
from minirlhf.losses.masking import (
    masked_mean,
    masked_moments,
    masked_sum,
    masked_var,
    masked_whiten,
    mean_and_var,
    sequence_mean,
    shift_right,
)
from minirlhf.losses.policy import ppo_policy_loss, ppo_value_loss, ratio_diagnostics
from minirlhf.losses.reward import bradley_terry_loss, reward_centering_loss
from minirlhf.losses.supervised import cross_entropy

__all__ = [
    "AdaptiveKLController",
    "FixedKLController",
    "bradley_terry_loss",
    "cross_entropy",
    "gae",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_shaped_rewards",
    "linear_logps_and_entropy",
    "linear_token_logps",
    "masked_mean",
    "masked_moments",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "mean_and_var",
    "ppo_policy_loss",
    "ppo_value_loss",
    "ratio_diagnostics",
    "reward_centering_loss",
    "sequence_mean",
    "shift_right",
    "token_entropy",
    "token_logps",
]
