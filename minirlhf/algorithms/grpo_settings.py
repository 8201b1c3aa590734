"""The settings of GRPO's family, and what cannot work together."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

from minirlhf.algorithms.grpo_recipes import (
    ADVANTAGES,
    ALGORITHMS,
    BY_TURN,
    CLIP_SETTINGS,
    DEFAULTS,
    SURROGATES,
    TOKEN_ADVANTAGES,
    WITHOUT_GROUP,
    WITHOUT_RATIO,
)
from minirlhf.algorithms.on_policy import OnPolicyConfig, check_stop_token
from minirlhf.data.batches import Batches
from minirlhf.errors import InputError, check_range, shown
from minirlhf.model.policy import Policy, check_policy
from minirlhf.rewards.scoring import Reward


@dataclass(frozen=True)
class GRPOConfig(OnPolicyConfig):
    algorithm: str = "grpo"  # [-] a row of ALGORITHMS in algorithms/grpo_recipes.py: a paper, with its value for each
    #                               setting below that is none
    steps: int = 300  # [steps] one batch of prompts each
    batch_size: int = 64  # [prompts] sampled per step, over all processes
    minibatch_size: int | None = 64  # [prompts] per update, with all of their completions; none: half of the batch,
    #                               or the whole batch if the surrogate has no ratio
    group_size: int = 16  # [completions] per prompt
    epochs: int = 1  # [epochs] of each step over its batch
    lr_final: float = 0.05  # [share of lr] where the cosine ends
    max_tokens: int = 24  # [tokens] longest completion, its EOS included
    missing_eos_penalty: float = 0.0  # [score] subtracted if a completion reached max_tokens without an end

    advantage: str | None = None  # [-] returns, whitened_returns, group, whitened_group, leave_one_out, greedy, beta
    #                               each_function or best
    scale_rewards: Literal["group", "batch", "none"] | None = None  # [-] divide group advantages by the std of the
    #                               group, by the std of the batch, or by nothing
    surrogate: str | None = None  # [-] reinforce, clip, cispo, sapo, gspo, gspo_token, gmpo or vespo
    reduction: Literal["token", "sequence", "constant", "sum"] | None = None  # [-] token: mean over all tokens. The
    #                               choices below are means over sequences. sequence: mean over tokens; constant:
    #                               sum over tokens / max_tokens; sum: sum over tokens
    clip_eps: float | None = None  # [ratio] half-width of the trust region
    clip_eps_high: float | None = None  # [ratio] upper half-width (clip-higher)
    dual_clip: float | None = None  # [ratio] above 1: bound on the loss of tokens with a negative advantage

    kl_coef: float = 0.0  # [score per nat] cost of KL to the reference; 0 needs no reference
    kl_in: Literal["reward", "loss"] | None = None  # [-] subtract the KL from the reward or add it to the loss
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # [-] k1 is exact in the reward and does nothing in the loss

    reward_weights: tuple[float, ...] = (1.0,)  # [-] one weight for each reward function
    gamma: float = 1.0  # [-] discount of returns
    overlong_share: float | None = None  # [share of max_tokens] a completion that reaches into this last part
    #                               loses score (DAPO)
    turn_advantages: bool = False  # [-] with an environment: a turn is judged by the rewards from this turn on
    overlong_filter: bool = False  # [-] a completion that was cut off adds no loss
    resample: int | None = None  # [times] to replace a prompt, at most, while its completions have equal scores
    #                               (dynamic sampling)
    entropy_coef: float = 0.0  # [score per nat] bonus for entropy; the first value, if adaptive
    entropy_target: float | None = None  # [nats per token] adapt the bonus to keep this entropy
    entropy_delta: float = 0.001  # [score per nat] step of the adaptive bonus
    high_entropy_share: float = 1.0  # [share] train on this share of the tokens: the tokens of highest entropy
    sampler_cap: float | None = None  # [ratio] cap on a token's weight, trainer / sampler probability; none: off

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    @property
    def recipe(self) -> GRPOConfig:
        """A copy of the settings. The paper's choice replaces each None."""
        row = {**DEFAULTS, **ALGORITHMS[self.algorithm]}
        filled = copy.copy(self)  # dataclasses.replace would call `check`, made for the user's settings alone
        vars(filled).update({name: value for name, value in row.items() if getattr(self, name) is None})
        if filled.kl_estimator is None:
            vars(filled)["kl_estimator"] = "k1" if filled.kl_in == "reward" else "k3"  # k1 is exact in the reward
        if filled.minibatch_size is None:
            whole = filled.surrogate in WITHOUT_RATIO or filled.batch_size % 2
            vars(filled)["minibatch_size"] = filled.batch_size if whole else filled.batch_size // 2
        return filled


def check(config: GRPOConfig) -> None:
    """Raise InputError for settings that cannot work together or would have no effect."""
    for name, names in (
        ("algorithm", ALGORITHMS),
        ("advantage", (*TOKEN_ADVANTAGES, *ADVANTAGES, "greedy")),
        ("surrogate", SURROGATES),
    ):
        if getattr(config, name) not in (*names, None):
            raise InputError(
                f"GRPOConfig: {name} must be one of {', '.join(names)}, got {shown(getattr(config, name))}"
            )
    check_range(config, "group_size", least=1)
    check_range(config, "clip_eps", "clip_eps_high", "entropy_delta", above=0)
    check_range(config, "dual_clip", above=1)
    check_range(config, "sampler_cap", least=1)
    check_range(config, "gamma", "overlong_share", least=0, most=1)
    check_range(config, "high_entropy_share", above=0, most=1)
    check_range(config, "entropy_target")
    check_range(config, "kl_coef", "resample", "entropy_coef", least=0)
    recipe = config.recipe
    if config.group_size == 1 and recipe.advantage not in WITHOUT_GROUP:
        raise InputError(
            f"GRPOConfig: group_size must be at least 2 for {config.algorithm}, got 1: one completion has nothing to "
            "be compared with; choose reinforce, reinforce++ or remax"
        )
    if config.group_size == 1 and recipe.resample:
        raise InputError(
            "GRPOConfig: resample needs groups of at least 2 completions, got group_size 1; set resample to 0"
        )
    updates = recipe.epochs * recipe.minibatches
    if recipe.surrogate in WITHOUT_RATIO and updates > 1:
        raise InputError(
            f"GRPOConfig: the surrogate {recipe.surrogate} has no ratio to correct for old samples, so it needs one "
            f"update of each batch, got {updates}; set epochs 1 and minibatch_size to {config.batch_size} or none"
        )
    _refuse_settings_without_effect(config, recipe, updates)
    if recipe.kl_in == "loss" and recipe.kl_estimator == "k1" and config.kl_coef:
        raise InputError(
            "GRPOConfig: kl_estimator must be k2 or k3 in the loss, got k1: in the loss its expected gradient is 0; or "
            "set kl_in to reward"
        )
    if recipe.kl_in == "reward" and config.kl_coef and recipe.advantage in ("each_function", "beta"):
        raise InputError(
            f"GRPOConfig: kl_in must be loss for {config.algorithm}, because its advantage takes rewards without "
            "KL, got reward"
        )
    if config.turn_advantages and recipe.advantage not in (*BY_TURN, *TOKEN_ADVANTAGES):
        known = ", ".join((*BY_TURN, *TOKEN_ADVANTAGES))
        raise InputError(f"GRPOConfig: turn_advantages needs one of the advantages {known}, got {recipe.advantage}")
    if recipe.advantage == "beta" and (config.missing_eos_penalty or recipe.overlong_share):
        raise InputError(
            f"GRPOConfig: {config.algorithm} needs rewards in [0, 1], so missing_eos_penalty and overlong_share must "
            "be 0"
        )


def _refuse_settings_without_effect(config: GRPOConfig, recipe: GRPOConfig, updates: int) -> None:
    for name in ("clip_eps", "clip_eps_high", "dual_clip"):
        # a surrogate that the user has added may read every clip setting
        if getattr(config, name) is not None and name not in CLIP_SETTINGS.get(recipe.surrogate, (name,)):
            raise InputError(f"GRPOConfig: {name} has no part in the surrogate {recipe.surrogate}; leave it out")
    without_kl, truncated = "without a KL, kl_coef is 0", config.top_k or config.top_p < 1
    filtered = config.overlong_filter and recipe.advantage in ("returns", "greedy")  # no row is compared with others
    for name, given, without in (  # (setting, True if it is set and has no effect, the reason)
        ("scale_rewards", config.scale_rewards and recipe.advantage != "group", f"in {recipe.advantage} advantages"),
        ("gamma", config.gamma != 1 and recipe.advantage not in TOKEN_ADVANTAGES, f"in {recipe.advantage} advantages"),
        ("kl_in", config.kl_in and not config.kl_coef, without_kl),
        ("kl_estimator", config.kl_estimator and not config.kl_coef, without_kl),
        ("entropy_delta", config.entropy_delta != 0.001 and config.entropy_target is None, "without an entropy_target"),
        (
            "missing_eos_penalty",
            config.missing_eos_penalty and filtered,
            f"in {recipe.advantage} advantages beside overlong_filter",
        ),
        ("target_kl", config.target_kl and updates == 1, "in a step of a single update"),
        ("allow_truncation", config.allow_truncation and not truncated, "without top_k or top_p"),
    ):
        if given:
            raise InputError(f"GRPOConfig: {name} has no part {without}; leave it out")


def check_parts(
    policy: Policy,
    ref_policy: Policy | None,
    rewards: list[Reward],
    config: GRPOConfig,
    spare: Batches | None,
    environment: Any = None,
) -> None:
    """Raise InputError if a part of the trainer is missing or contradicts its settings (a `recipe`)."""
    if len(rewards) != len(config.reward_weights) and (rewards or not environment or config.reward_weights != (1.0,)):
        raise InputError(
            f"GRPOTrainer: needed a reward function for each of the reward_weights {config.reward_weights}, got "
            f"{len(rewards)} functions"
        )
    if config.turn_advantages and not environment:
        raise InputError("GRPOTrainer: turn_advantages needs an environment, got none; leave it out")
    check_policy("GRPOTrainer", policy, ref_policy)
    if config.kl_coef and ref_policy is None:
        raise InputError("GRPOTrainer: kl_coef > 0 needs a reference, got none; pass copy_of(policy)")
    if config.resample and spare is None:
        raise InputError("GRPOTrainer: resample needs spare prompts, got none; pass spare=Batches(...)")
    check_stop_token("GRPOTrainer", config, policy.transformer.config.vocab_size)
