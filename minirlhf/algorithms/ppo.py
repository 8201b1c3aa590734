"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022).

B sequences, T tokens; column t of every per-token tensor speaks about choosing token t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.on_policy import OnPolicyConfig, clip_of, over_minibatches
from minirlhf.data.batches import Draw, microbatches
from minirlhf.errors import InputError, check_range, shown
from minirlhf.losses import (
    AdaptiveKLController,
    FixedKLController,
    gae,
    kl_shaped_rewards,
    masked_mean,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    ratio_diagnostics,
)
from minirlhf.model.policy import Policy, ValueModel, disable_dropout
from minirlhf.rewards.scoring import Reward
from minirlhf.rollout.collect import collect
from minirlhf.rollout.rollout import Rollout
from minirlhf.rollout.statistics import describe, explained_variance, moments_of_all
from minirlhf.runtime.distributed import all_sum, backward, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    steps: int = 50  # [steps] one batch of prompts each
    batch_size: int = 256  # [prompts] sampled per step, over all processes
    epochs: int = 1  # [epochs] of each step over its batch
    lr: float = 1.5e-3  # [per update] peak learning rate of a small model; `--policy DIR` has a default by size
    gamma: float = 1.0  # [-] discount; at 1, a score counts the same after a long completion
    lam: float = 0.95  # [-] GAE: 1 trusts returns, 0 trusts the value function
    surrogate: str = "clip"  # [-] the loss of the policy: a row of SURROGATES in algorithms/ppo.py
    clip_eps: float = 0.2  # [ratio] half-width of the trust region; the paper's best value
    clip_eps_high: float | None = None  # [ratio] upper half-width (clip-higher); none: clip_eps
    dual_clip: float | None = None  # [ratio] above 1: bound on the loss of tokens with a negative advantage
    value_clip: float | None = 0.2  # [score] how far a value may move from the old value; none: no limit
    value_coef: float = 0.5  # [-] weight of the value loss
    entropy_coef: float = 0.0  # [score per nat] bonus for entropy
    whiten_advantages: bool = True  # [-] scale advantages to mean 0 and variance 1 over the tokens of the batch
    whiten_rewards: bool = False  # [-] scale rewards to variance 1, with the mean kept
    separate_value_model: bool = False  # [-] train a value model with its own trunk instead of a head on the policy
    value_warmup: int = 0  # [steps] train the value function alone in the first steps
    value_lr: float | None = None  # [per update] peak learning rate of the value function; none: lr

    kl_coef: float = 0.05  # [score per nat] cost of KL to the reference; the first value, if adaptive
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"  # [-] KL in the reward; k2, k3 are biased, see docs/ppo.md#which-kl
    kl_controller: Literal["fixed", "adaptive"] = "fixed"  # [-] adaptive: change kl_coef to reach kl_target
    kl_target: float = 6.0  # [nats per sequence] KL that the adaptive coefficient aims at
    kl_horizon: int = 10_000  # [sequences] how slowly the adaptive coefficient changes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surrogate not in SURROGATES:
            known = ", ".join(SURROGATES)
            raise InputError(f"PPOConfig: surrogate must be one of {known}, got {shown(self.surrogate)}")
        check_range(self, "clip_eps", "clip_eps_high", "value_clip", above=0)
        check_range(self, "kl_target", "kl_horizon", "value_lr", above=0)
        check_range(self, "dual_clip", above=1)
        check_range(self, "gamma", "lam", least=0, most=1)
        check_range(self, "value_coef", "kl_coef", "entropy_coef", "value_warmup", least=0)


def clip_surrogate(logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, config: PPOConfig) -> Tensor:
    """-min(r A, clip(r, 1 - eps, 1 + eps) A) with r = exp(logps - old_logps): Schulman et al. 2017, Eq. 7."""
    return ppo_policy_loss(logps, old_logps=old_logps, advantages=advantages, **clip_of(config))


# Name -> a function like `clip_surrogate`. It returns the loss of each token [B, T]; `update` masks and averages.
SURROGATES: dict[str, Callable[..., Tensor]] = {"clip": clip_surrogate}


class PPOTrainer:
    """Policy with a value head (or a separate value model), frozen reference, reward function -> better policy.

    environment: `Episodes` to play; then the reward may be None.
    Raises: InputError if the reference shares weights with the policy: the KL would always be 0.
    """

    headline = ("score_mean", "kl", "eval/gold_reward")
    best = ("eval/model_reward", "max")
    saved = ("optimizer", "kl", "steps_done")

    def __init__(
        self,
        policy: Policy,
        ref_policy: Policy,
        reward: Reward | None,
        tokenizer: Tokenizer,
        config: PPOConfig,
        *,
        value_model: ValueModel | None = None,
        seed: int = 0,
        environment: Any = None,
    ) -> None:
        from minirlhf.algorithms.ppo_parts import check_parts  # here, so that the core loads no leaf

        check_parts(policy, ref_policy, reward or environment, value_model, config)
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.reward, self.environment = environment.with_reward(reward) if environment else reward, environment
        self.ref_policy = ref_policy.requires_grad_(False).eval()
        self.policy, self.value_model = policy, value_model
        self.models = {"policy": policy} if value_model is None else {"policy": policy, "value": value_model}
        for model in self.models.values():
            disable_dropout(model)
        self.wrapped_policy, self.wrapped_value_model = wrap(policy), value_model and wrap(value_model)
        self.optimizer = Optimizer(self.models, config, config.updates)
        if config.value_lr is not None:
            from minirlhf.training.own_rate import give_rate  # here, so that the core loads no leaf

            give_rate(self.optimizer, self.value_parameters(), config.value_lr)
        self.surrogate = SURROGATES[config.surrogate]
        self.kl = FixedKLController(config.kl_coef)
        if config.kl_controller == "adaptive":
            self.kl = AdaptiveKLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self.sampler, self.steps_done = collect, 0  # the sampler is called as `collect`; see training/recorded.py
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """Sample, score, estimate advantages, then go over the batch a few times in minibatches."""
        from minirlhf.rollout.exchange import balanced  # here, so that the core loads no leaf
        from minirlhf.rollout.samples import add_tokens
        from minirlhf.rollout.turns import at_their_turns

        config = self.config
        rollout = self.collect(batch)
        mask = rollout.completion_mask
        scores = rollout.scores - config.missing_eos_penalty * ~rollout.ended
        kl_cost = {"kl_coef": self.kl.coef, "estimator": config.kl_estimator}
        rewards = kl_shaped_rewards(scores, logps=rollout.logps, ref_logps=rollout.ref_logps, mask=mask, **kl_cost)
        if rollout.turn_rewards is not None:
            rewards = at_their_turns(rewards, rollout)
        if config.whiten_rewards:
            rewards = masked_whiten(rewards, mask, moments_of_all(rewards, mask), shift_mean=False)
        advantages, returns = gae(rewards, values=rollout.values, mask=mask, gamma=config.gamma, lam=config.lam)
        metrics = {**describe(rollout), "explained_variance": explained_variance(rollout, returns)}
        metrics["kl_coef"] = self.kl.coef
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask, moments_of_all(advantages, mask))
        add_tokens(self, rollout, values=rollout.values, token_rewards=rewards, advantages=advantages)
        rollout, (advantages, returns) = balanced(rollout, (advantages, returns), config.minibatches)
        metrics |= over_minibatches(
            "PPOTrainer", config, len(rollout.lengths), lambda rows: self.update(rollout, rows, advantages, returns)
        )
        self.kl.update(metrics["kl"], config.batch_size)
        self.steps_done += 1
        return metrics

    def collect(self, batch: list[Draw]) -> Rollout:
        rollout = self.sampler(
            self.policy,
            self.ref_policy,
            self.value_model,
            self.reward,
            self.tokenizer,
            batch,
            self.config.sampling(self.tokenizer.eos_ids),
            seed=self.seed,
            environment=self.environment,
        )
        from minirlhf.rollout.samples import samples_of  # here, so that the core loads no leaf

        self.samples = samples_of(batch, rollout)
        return rollout

    def update(self, rollout: Rollout, rows: range, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """One optimizer step on a minibatch, taken in micro-batches of similar length."""
        config = self.config
        count = all_sum(rollout.completion_mask[rows.start : rows.stop].sum())
        groups = microbatches([rollout.lengths[i] for i in rows], config.microbatch_tokens)
        sums = Sums()
        for group in micro_batches(groups, self.wrapped_policy, self.wrapped_value_model):
            group_rows = [rows[i] for i in group]
            old = rollout.select(group_rows)
            mask, width = old.completion_mask, old.input_ids.shape[1]
            A, R = advantages[group_rows, :width], returns[group_rows, :width]
            inputs = old.input_ids, old.attention_mask
            aim = {"old_values": old.values, "returns": R, "clip_eps": config.value_clip}
            if self.value_model:  # backward at once, so that the activations of one model alone are in memory
                value_losses = ppo_value_loss(self.wrapped_value_model(*inputs, mask), **aim)
                backward(masked_mean(config.value_coef * value_losses, mask, count))
                value_losses = value_losses.detach()
            now = self.wrapped_policy(*inputs, config.temperature, wanted=mask)
            policy_losses = self.surrogate(now.logps, old.logps, A, mask, config)
            if not self.value_model:
                value_losses = ppo_value_loss(now.values, **aim)
            losses = policy_losses + config.value_coef * value_losses
            if config.entropy_coef:  # at 0, save the time for the gradient of the entropy
                losses = losses - config.entropy_coef * now.entropy
            loss = masked_mean(losses, mask, count)
            backward(loss)
            terms = ratio_diagnostics(now.logps, old_logps=old.logps, advantages=A, **clip_of(config))
            if config.surrogate != "clip":  # the fraction describes the surrogate clip alone
                del terms["clip_fraction"]
            terms = {"policy_loss": policy_losses, "value_loss": value_losses, "entropy": now.entropy, **terms}
            sums.add(count, mask, loss=losses, **terms)
        if self.steps_done < config.value_warmup:
            from minirlhf.training.own_rate import drop_gradients_except  # here, so that the core loads no leaf

            drop_gradients_except(self.optimizer, self.value_parameters())
        return self.optimizer.step(sums)

    def value_parameters(self) -> list[torch.nn.Parameter]:
        return list((self.value_model or self.policy.value_head).parameters())

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)
