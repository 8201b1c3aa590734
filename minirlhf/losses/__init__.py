"""The mathematics: functions of tensors and floats. The files import torch and one another only."""

from minirlhf.lazy import lazy
from minirlhf.losses.advantages import gae, kl_shaped_rewards, weighted_scores
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
from minirlhf.losses.supervised import cross_entropy, dft_loss

# names of leaves
LEAVES = {
    "minirlhf.losses.correctness": "correctness_loss",
    "minirlhf.losses.distillation": "generalised_js linear_distillation_loss minillm_advantages",
    "minirlhf.losses.dpo": (
        "alpha_link aot_paired_loss aot_unpaired_loss apo_down_loss apo_zero_loss bco_pair_loss "
        "discopop_loss dpo_loss dpo_sigmoid_loss exo_loss forward_kl_link hinge_dpo_loss ipo_loss "
        "js_link nca_loss robust_dpo_loss sppo_hard_loss"
    ),
    "minirlhf.losses.entropy": "AdaptiveEntropyController entropy_threshold high_entropy_mask",
    "minirlhf.losses.fused": "fused_linear_loss",
    "minirlhf.losses.groups": (
        "bnpo_advantages discounted_returns equal_groups gdpo_advantages group_advantages "
        "overlong_penalty remax_advantages rloo_advantages turn_returns whiten_judged"
    ),
    "minirlhf.losses.online": "nash_md_loss xpo_bonus",
    "minirlhf.losses.policy_family": (
        "cispo_policy_loss gmpo_policy_loss gspo_policy_loss gspo_token_policy_loss "
        "reinforce_policy_loss sapo_policy_loss truncated_importance_weights vespo_policy_loss"
    ),
    "minirlhf.losses.reference_free": "alphapo_loss cpo_loss orpo_loss simpo_loss",
    "minirlhf.losses.responses": "desensitised_logps linear_log_collision mean_logps sum_logps wpo_weights",
    "minirlhf.losses.router": "load_balancing_loss",
    "minirlhf.losses.unpaired": "apo_zero_unpaired_loss bco_loss density_ratio kto_kl kto_loss RunningMean",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
