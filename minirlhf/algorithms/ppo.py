"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020; Ouyang et al. 2022).

B sequences, T tokens; column t of every per-token tensor speaks about choosing token t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.on_policy import OnPolicyConfig, add_means, check_stop_token, over_minibatches
from minirlhf.data.batches import Draw, microbatches
from minirlhf.errors import InputError, check_range
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
from minirlhf.model.policy import Policy, ValueModel, check_reference, disable_dropout
from minirlhf.rewards.scoring import Reward
from minirlhf.rollout.collect import collect
from minirlhf.rollout.rollout import Rollout
from minirlhf.rollout.statistics import describe, explained_variance, moments_of_all
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    gamma: float = 1.0  # [-] discount; 1, because a completion is worth the same however long
    lam: float = 0.95  # [-] GAE: 1 trusts returns, 0 trusts the value function
    clip_eps: float = 0.2  # [ratio] half-width of the trust region; the paper's best value
    clip_eps_high: float | None = None  # [ratio] upper half-width if another (clip-higher)
    dual_clip: float | None = None  # [ratio] bound on the loss where the advantage is negative, above 1
    value_clip: float | None = 0.2  # [score] half-width for the value function; none for none
    value_coef: float = 0.5  # [-] weight of the value loss
    entropy_coef: float = 0.0  # [score per nat] reward for undecided tokens
    whiten_advantages: bool = True  # [-] to mean 0 and variance 1 over the whole batch's tokens
    whiten_rewards: bool = False  # [-] to variance 1, keeping the mean
    separate_value_model: bool = False  # [-] a critic with a trunk of its own, instead of a head on the policy's
    value_warmup: int = 0  # [steps] at first train the value function alone

    kl_coef: float = 0.14  # [score per nat] what a nat of KL to the reference costs (the first value, if adaptive)
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"  # [-] in the reward; k2, k3 are biased, see docs/ppo.md#which-kl
    kl_controller: Literal["fixed", "adaptive"] = "fixed"  # [-] does the coefficient adapt
    kl_target: float = 6.0  # [nats per sequence] where the adaptive coefficient steers
    kl_horizon: int = 10_000  # [sequences] over which it does

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "clip_eps", "clip_eps_high", "value_clip", above=0)
        check_range(self, "kl_target", "kl_horizon", above=0)
        check_range(self, "dual_clip", above=1)
        check_range(self, "gamma", "lam", least=0, most=1)
        check_range(self, "value_coef", "kl_coef", "value_warmup", least=0)


class PPOTrainer:
    """Policy with a value head (or a separate value model), frozen reference, reward function -> better policy.

    Raises: InputError if the reference shares weights with the policy: the KL would be 0 for ever.
    """

    headline = ("score_mean", "kl", "eval/gold_reward")
    best = ("eval/model_reward", "max")

    def __init__(
        self,
        policy: Policy,
        ref_policy: Policy,
        reward: Reward,
        tokenizer: Tokenizer,
        config: PPOConfig,
        *,
        value_model: ValueModel | None = None,
        seed: int = 0,
    ) -> None:
        check_reference("PPOTrainer", policy, ref_policy)
        if value_model is None and policy.value_head is None:
            raise InputError("PPOTrainer: needed a policy with value_head=True or a value_model, got neither")
        if value_model is not None and policy.value_head is not None:
            raise InputError("PPOTrainer: needed one value function, got a value_head and a value_model; leave one out")
        check_stop_token("PPOTrainer", config, policy.transformer.config.vocab_size)
        self.config, self.tokenizer, self.reward, self.seed = config, tokenizer, reward, seed
        self.ref_policy = ref_policy.requires_grad_(False).eval()
        disable_dropout(policy)
        self.models = {"policy": policy} if value_model is None else {"policy": policy, "value": value_model}
        self.value_model = value_model
        if value_model:
            disable_dropout(value_model)
        self.policy, self.critic = wrap(policy), value_model and wrap(value_model)
        self.optimizer = Optimizer(self.models, config, config.updates)
        self.clip = {name: getattr(config, name) for name in ("clip_eps", "clip_eps_high", "dual_clip")}
        self.kl = (
            AdaptiveKLController(config.kl_coef, config.kl_target, config.kl_horizon)
            if config.kl_controller == "adaptive"
            else FixedKLController(config.kl_coef)
        )
        self.steps_done = 0
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """Sample, score, estimate advantages, then go over the batch a few times in minibatches."""
        config = self.config
        rollout = self.collect(batch)
        mask = rollout.completion_mask
        scores = rollout.scores - config.missing_eos_penalty * ~rollout.ended
        rewards = kl_shaped_rewards(
            scores,
            logps=rollout.logps,
            ref_logps=rollout.ref_logps,
            mask=mask,
            kl_coef=self.kl.coef,
            estimator=config.kl_estimator,
        )
        if config.whiten_rewards:
            rewards = masked_whiten(rewards, mask, moments_of_all(rewards, mask), shift_mean=False)
        advantages, returns = gae(rewards, values=rollout.values, mask=mask, gamma=config.gamma, lam=config.lam)
        metrics = {**describe(rollout), "explained_variance": explained_variance(rollout, returns)}
        metrics["kl_coef"] = self.kl.coef
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask, moments_of_all(advantages, mask))
        metrics |= over_minibatches(
            "PPOTrainer", config, len(rollout.lengths), lambda rows: self.update(rollout, rows, advantages, returns)
        )
        self.kl.update(metrics["kl"], config.batch_size)
        self.steps_done += 1
        return metrics

    def collect(self, batch: list[Draw]) -> Rollout:
        rollout = collect(
            self.models["policy"],
            self.ref_policy,
            self.value_model,
            self.reward,
            self.tokenizer,
            batch,
            self.config.sampling(self.tokenizer.eos_ids),
            seed=self.seed,
        )
        shown = zip(batch[:4], rollout.completions, rollout.scores.tolist(), strict=False)
        self.samples = [{"prompt": d.row.source["prompt"], "completion": c, "score": s} for d, c, s in shown]
        return rollout

    def update(self, rollout: Rollout, rows: range, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """One optimizer step on a minibatch, taken in micro-batches of similar length."""
        config = self.config
        count = all_sum(rollout.completion_mask[rows.start : rows.stop].sum())
        groups = microbatches([rollout.lengths[i] for i in rows], config.microbatch_tokens)
        sums: dict[str, Tensor] = {}
        for group in groups:
            group_rows = [rows[i] for i in group]
            old = rollout.select(group_rows)
            mask, width = old.completion_mask, old.input_ids.shape[1]
            A, R = advantages[group_rows, :width], returns[group_rows, :width]
            last = group is groups[-1]
            with gradient_sync(self.policy, last), gradient_sync(self.critic, last):
                now = self.policy(old.input_ids, old.attention_mask, temperature=config.temperature)
                values = self.critic(old.input_ids, old.attention_mask) if self.critic else now.values
                logps = torch.where(mask, now.logps, 0)  # a prompt's log-probs say nothing about choices
                policy_losses = ppo_policy_loss(logps, old_logps=old.logps, advantages=A, **self.clip)
                value_losses = ppo_value_loss(values, old_values=old.values, returns=R, clip_eps=config.value_clip)
                losses = policy_losses + config.value_coef * value_losses
                if config.entropy_coef:  # without it the entropy's backward pass is not paid for
                    losses = losses - config.entropy_coef * now.entropy
                loss = masked_mean(losses, mask, count)
                backward(loss)
            terms = {"policy_loss": policy_losses, "value_loss": value_losses, "entropy": now.entropy}
            terms |= ratio_diagnostics(logps, old_logps=old.logps, advantages=A, **self.clip)
            add_means(sums, {"loss": losses, **terms}, mask, count)
        if self.steps_done < config.value_warmup:
            self.optimizer.drop_gradients_except(self.value_parameters())
        return self.optimizer.step(sums)

    def value_parameters(self) -> list[torch.nn.Parameter]:
        return list((self.value_model or self.models["policy"].value_head).parameters())

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "kl": self.kl.state_dict(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.kl.load_state_dict(state["kl"])
        self.steps_done = state["steps_done"]
