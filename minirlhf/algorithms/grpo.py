"""Policy gradients without a value function: GRPO and its family (Shao et al. 2024, arXiv:2402.03300, and others).

grpo_recipes.py holds the papers, their advantages and surrogates; grpo_settings.py the settings. B sequences, T tokens,
F reward functions, G completions of one prompt, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minirlhf.algorithms.grpo_recipes import (  # noqa: F401 (ALGORITHMS: for programs that list the papers)
    ADVANTAGES,
    ALGORITHMS,
    ESTIMATORS,
    PER_TOKEN_SURROGATES,
    REDUCTIONS,
    SURROGATES,
    TOKEN_ADVANTAGES,
    advantages_by_turn,
)
from minirlhf.algorithms.grpo_settings import GRPOConfig, check_parts
from minirlhf.algorithms.on_policy import clip_of, over_minibatches
from minirlhf.data.batches import Batches, Draw, microbatches
from minirlhf.losses import (
    AdaptiveEntropyController,
    entropy_threshold,
    equal_groups,
    fused_linear_loss,
    high_entropy_mask,
    masked_sum,
    overlong_penalty,
    ratio_diagnostics,
    remax_advantages,
    truncated_importance_weights,
)
from minirlhf.model.policy import Policy, disable_dropout
from minirlhf.rewards.scoring import Reward
from minirlhf.rollout.collect import collect
from minirlhf.rollout.exchange import balanced
from minirlhf.rollout.groups import with_groups
from minirlhf.rollout.read import read
from minirlhf.rollout.rollout import Rollout
from minirlhf.rollout.samples import add_tokens, samples_of
from minirlhf.rollout.statistics import describe
from minirlhf.rollout.turns import longest_turns
from minirlhf.runtime.compile import maybe_compile
from minirlhf.runtime.distributed import all_sum, any_rank, backward, own_pace, wrap
from minirlhf.runtime.vectors import gather_vectors
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


class GRPOTrainer:
    """Policy, reward functions and, if kl_coef > 0, a frozen reference -> better policy.

    Args:
        rewards: one function or several, with as many `reward_weights`; a function returns None for a completion that
                 it does not apply to.
        spare:   batches of other prompts for dynamic sampling; attempt a of step k takes `spare[k * resample + a]`.
        environment: `Episodes` to play; then the rewards may be None.
    Raises: InputError if a reference is missing, or shares weights with the policy.
    """

    headline = ("score_mean", "equal_groups", "eval/gold_reward")
    best = ("eval/gold_reward", "max")
    saved = ("optimizer", "steps_done", "entropy")

    def __init__(
        self,
        policy: Policy,
        ref_policy: Policy | None,
        rewards: Reward | Sequence[Reward] | None,
        tokenizer: Tokenizer,
        config: GRPOConfig,
        *,
        spare: Batches | None = None,
        seed: int = 0,
        compiled: bool = False,
        environment: Any = None,
    ) -> None:
        config = config.recipe  # from here on every choice of the paper has a value
        self.rewards = [rewards] if callable(rewards) else list(rewards or ())
        check_parts(policy, ref_policy, self.rewards, config, spare, environment)
        self.environment, self.reward_weights = environment, config.reward_weights
        if environment:
            self.reward_weights = (*config.reward_weights[: len(self.rewards)], 1.0)
            self.rewards.append(environment.reward)
        self.config, self.tokenizer, self.seed, self.spare = config, tokenizer, seed, spare
        self.ref_policy = ref_policy and ref_policy.requires_grad_(False).eval()
        disable_dropout(policy)
        self.policy, self.wrapped_policy = policy, wrap(policy)
        self.models = {"policy": policy}
        self.optimizer = Optimizer(self.models, config, config.updates)
        self.surrogate = maybe_compile(SURROGATES[config.surrogate], compiled)
        adaptive = config.entropy_coef, config.entropy_target, config.entropy_delta
        self.entropy = AdaptiveEntropyController(*adaptive) if config.entropy_target is not None else None
        self.sampler, self.steps_done = collect, 0  # the sampler is called as `collect`; see training/recorded.py
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """Sample groups, compare the completions of each group, then go over the batch in minibatches."""
        config, G = self.config, self.config.group_size
        rollout = self.collect(batch)
        advantages = self.advantages(rollout)
        add_tokens(self, rollout, G, token_rewards=rollout.turn_rewards, advantages=advantages)
        metrics = {**describe(rollout), "kl_coef": config.kl_coef}
        if G > 1:
            metrics["equal_groups"] = fraction_of_all(equal_groups(rollout.scores, G))
        if not self.ref_policy:
            del metrics["kl"]  # the policy has no reference
        mask = rollout.completion_mask
        if config.overlong_filter:
            mask = mask & rollout.ended[:, None]
        if config.advantage == "best":  # RAFT: the mean loss over the tokens of the best completions is that of SFT
            mask = mask & (advantages > 0)
        old_logps, weights = rollout.logps, torch.ones_like(rollout.logps)
        if config.sampler_cap:
            sampler_logps = rollout.sampler_logps
            if sampler_logps is None:
                sampler_logps, old_logps = rollout.logps, self.read(rollout, "logps")
            weights = truncated_importance_weights(old_logps, sampler_logps=sampler_logps, cap=config.sampler_cap)
        if config.high_entropy_share < 1:
            entropy = self.read(rollout, "entropy")
            threshold = entropy_threshold(torch.cat(gather_vectors(entropy[mask])), config.high_entropy_share)
            weights = weights * high_entropy_mask(entropy, mask, config.high_entropy_share, threshold)
        old = replace(rollout, logps=old_logps, completion_mask=mask)
        old, (advantages, weights) = balanced(old, (advantages, weights), config.minibatches, G)
        has_advantage = advantages.any(-1).tolist()
        update = partial(self.update, old, advantages, weights, has_advantage)
        metrics |= over_minibatches("GRPOTrainer", config, len(batch), update)
        self.steps_done += 1
        return metrics

    def collect(self, batch: list[Draw]) -> Rollout:
        """A group of completions for each prompt; dynamic sampling replaces groups of equal scores.

        A group of equal scores teaches nothing, so the group of a spare prompt replaces it, up to `resample` times.
        Each group has its own spare prompts, so the number of processes cannot change the result.
        """
        rollout, G = self.sample(batch, "rollout"), self.config.group_size
        for attempt in range(self.config.resample):
            groups = equal_groups(rollout.scores, G).nonzero().squeeze(-1).tolist()
            if any_rank(bool(groups)):  # then all processes sample, because the policy may be in slices
                spare = self.spare[self.steps_done * self.config.resample + attempt]
                spare = [spare[i if draw.place is None else draw.place] for i, draw in enumerate(batch)]
                batch = [spare[i] if i in groups else draw for i, draw in enumerate(batch)]
                again = self.sample([spare[i] for i in groups], f"spare {attempt}")
                rollout = with_groups(rollout, groups, again, G)
        self.samples, self.drawn = samples_of(batch, rollout, G), batch
        return rollout

    def sample(self, batch: list[Draw], stream: str, greedy: bool = False) -> Rollout:
        """A group of completions for each prompt, or the prompt's greedy completion alone."""
        sampling = self.config.sampling(self.tokenizer.eos_ids)
        return self.sampler(
            self.policy,
            None if greedy else self.ref_policy,
            None,
            self.rewards,
            self.tokenizer,
            batch,
            replace(sampling, temperature=0.0) if greedy else sampling,
            seed=self.seed,
            stream=stream,
            group_size=1 if greedy else self.config.group_size,
            weights=self.reward_weights,
            environment=self.environment,
        )

    def advantages(self, rollout: Rollout) -> Tensor:
        """[B, T]: the advantage that the paper computes from scores, penalties and KL."""
        config, mask = self.config, rollout.completion_mask
        penalty = -config.missing_eos_penalty * (~rollout.ended).to(rollout.scores.dtype)
        if config.overlong_share:
            buffer = max(1, round(config.overlong_share * config.max_tokens))
            penalty = penalty + overlong_penalty(longest_turns(rollout), max_tokens=config.max_tokens, buffer=buffer)
        scores = rollout.scores + penalty
        if config.advantage in TOKEN_ADVANTAGES:
            return TOKEN_ADVANTAGES[config.advantage](rollout, scores, config)
        if config.kl_coef and config.kl_in == "reward":
            kl = ESTIMATORS[config.kl_estimator](rollout.logps, ref_logps=rollout.ref_logps)
            scores = scores - config.kl_coef * torch.where(mask, kl, 0).sum(-1)
        if config.turn_advantages:
            return advantages_by_turn(rollout, scores, config)
        if config.advantage == "greedy":
            greedy = self.sample(self.drawn, "greedy", greedy=True).scores.repeat_interleave(config.group_size)
            advantages = remax_advantages(scores, greedy_scores=greedy.to(scores))
        else:
            by_function = torch.cat((rollout.scores_by_function, penalty[:, None]), -1)
            advantages = ADVANTAGES[config.advantage](scores, by_function, config)
        return torch.where(mask, advantages[:, None], 0)

    def update(
        self, rollout: Rollout, advantages: Tensor, weights: Tensor, has_advantage: list[bool], prompts: range
    ) -> dict[str, float]:
        """One optimizer step on the completions of some prompts, taken in micro-batches of similar length.

        has_advantage: for each row of the rollout, True if any advantage is not 0. One list per step saves a GPU sync
            per update.
        """
        config, G = self.config, self.config.group_size
        rows = range(prompts.start * G, prompts.stop * G)
        mask = rollout.completion_mask[rows.start : rows.stop]
        counts = all_sum(torch.stack([mask.sum(), mask.any(-1).sum()]))
        entropy_coef = self.entropy.coef if self.entropy else config.entropy_coef
        rollout, rows = self.without_idle_rows(rollout, rows, has_advantage, entropy_coef)
        own_tokens = rollout.completion_mask[rows].sum()
        trained_tokens = all_sum(own_tokens)
        lengths, units = [rollout.lengths[i] for i in rows], [i // G for i in rows]
        groups = microbatches(lengths, config.microbatch_tokens, units)
        sums = Sums()
        for group in micro_batches(groups, self.wrapped_policy):
            group_rows = [rows[i] for i in group]
            old = rollout.select(group_rows)
            width = old.input_ids.shape[1]
            A, W = advantages[group_rows, :width], weights[group_rows, :width]
            loss, policy_losses, terms = self.losses(old, A, W, counts, entropy_coef)
            backward(loss)
            sums.add(loss=loss)
            sums.add(1, old.completion_mask, policy_loss=policy_losses)
            sums.add(trained_tokens, old.completion_mask, **terms)
        metrics = self.optimizer.step({**sums, "trained_tokens": own_tokens})
        if not metrics.pop("trained_tokens"):  # no row was trained on: nothing to report
            metrics = {name: metrics[name] for name in ("loss", "policy_loss", "grad_norm", "lr")}
        if self.entropy:
            if "entropy" in metrics:
                self.entropy.update(metrics["entropy"])
            metrics["entropy_coef"] = self.entropy.coef
        return metrics

    def without_idle_rows(
        self, rollout: Rollout, rows: range, has_advantage: list[bool], entropy_coef: float
    ) -> tuple[Rollout, list[int]]:
        """Leave out the rows whose loss and gradient are exactly 0: no advantage, and no KL or entropy in the loss.

        Late in training half of the rows are idle. The loss is still divided by the counts of all rows. If all rows of
        a process are idle, the process keeps a row without tokens, because every process must exchange gradients.
        """
        if entropy_coef or self.entropy or (self.config.kl_coef and self.config.kl_in == "loss"):
            return rollout, list(rows)
        trained = [i for i in rows if has_advantage[i]]
        if trained:
            return rollout, trained
        return replace(rollout, completion_mask=torch.zeros_like(rollout.completion_mask)), list(rows[:1])

    def losses(
        self, old: Rollout, A: Tensor, W: Tensor, counts: Tensor, entropy_coef: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """-> (loss, policy loss of each token [B, T], terms to report [B, T])."""
        config, mask = self.config, old.completion_mask
        token_weights = self.token_weights(mask, counts)
        inputs = {"old_logps": torch.where(mask, old.logps, 0), "ref_logps": old.ref_logps, "A": A, "W": W}
        if config.surrogate in PER_TOKEN_SURROGATES and not entropy_coef:
            head = partial(
                fused_linear_loss,
                input_ids=old.input_ids,
                token_loss=lambda logps, **columns: self.token_losses(logps, **columns)[1],
                mask=mask,
                count=1.0,
                inputs=inputs,
                weights=token_weights,
                temperature=config.temperature,
            )
            loss, logps, entropy = self.wrapped_policy(old.input_ids, old.attention_mask, head=head, wanted=mask)
            policy_losses, _ = self.token_losses(logps, **inputs, mask=mask)
        else:
            now = self.wrapped_policy(old.input_ids, old.attention_mask, config.temperature, wanted=mask)
            logps, entropy = now.logps, now.entropy
            policy_losses, losses = self.token_losses(logps, **inputs, mask=mask)
            if entropy_coef:
                losses = losses - entropy_coef * entropy
            loss = masked_sum(losses * token_weights, mask)
        terms = ratio_diagnostics(logps, old_logps=inputs["old_logps"], advantages=A, **clip_of(config))
        if config.surrogate != "clip":  # the fraction describes the surrogate clip alone
            del terms["clip_fraction"]
        return loss, policy_losses * token_weights, {"entropy": entropy, **terms}

    def token_losses(
        self, logps: Tensor, old_logps: Tensor, ref_logps: Tensor, A: Tensor, W: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """-> (policy loss, policy loss plus the KL if `kl_in` is "loss"), each with one number per token."""
        config = self.config
        policy_losses = losses = W * self.surrogate(logps, old_logps, A, mask, config)
        if config.kl_coef and config.kl_in == "loss":
            losses = policy_losses + config.kl_coef * ESTIMATORS[config.kl_estimator](logps, ref_logps=ref_logps)
        return policy_losses, losses

    def token_weights(self, mask: Tensor, counts: Tensor) -> Tensor:
        """[B, T]: the weight of each token's loss in the update. The weighted losses sum to the paper's average."""
        lengths, (tokens, rows) = mask.sum(-1, keepdim=True).clamp(min=1), counts.clamp(min=1)
        return REDUCTIONS[self.config.reduction](tokens, rows, lengths, self.config.max_tokens).expand(mask.shape)

    def read(self, rollout: Rollout, name: str) -> Tensor:
        """Read "logps" or "entropy" from the policy's forward -> [B, T], 0 outside completions. No gradient."""
        options = {"temperature": self.config.temperature, "entropy": name == "entropy"}
        with own_pace(self.policy):
            numbers = read(
                lambda ids, mask, wanted: getattr(self.policy(ids, mask, wanted=wanted, **options), name),
                (rollout.input_ids, rollout.attention_mask, rollout.completion_mask),
                rollout.lengths,
                self.config.microbatch_tokens,
                [i // self.config.group_size for i in range(len(rollout.lengths))],
            )
        return numbers.to(rollout.logps.dtype)

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)


def fraction_of_all(flags: Tensor) -> float:
    """The fraction of True over all processes."""
    total, n = all_sum(torch.tensor([float(flags.sum()), float(flags.numel())], device=flags.device)).tolist()
    return total / max(n, 1.0)
