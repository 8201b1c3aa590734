"""Policy gradients without a value function: GRPO and its family (Shao et al. 2024, arXiv:2402.03300, and many others).

A paper is three choices: what a completion's advantage is, which surrogate carries its gradient, and how tokens are
averaged. B sequences, T tokens, G completions of one prompt, side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.on_policy import OnPolicyConfig, add_means, check_stop_token, over_minibatches
from minirlhf.data.batches import Batches, Draw, microbatches
from minirlhf.errors import InputError, check_range
from minirlhf.generation.engine import generate
from minirlhf.losses import (
    AdaptiveEntropyController,
    bnpo_advantages,
    cispo_policy_loss,
    discounted_returns,
    entropy_threshold,
    equal_groups,
    fused_linear_loss,
    gdpo_advantages,
    gmpo_policy_loss,
    group_advantages,
    gspo_policy_loss,
    gspo_token_policy_loss,
    high_entropy_mask,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_shaped_rewards,
    masked_sum,
    masked_whiten,
    overlong_penalty,
    ppo_policy_loss,
    ratio_diagnostics,
    reinforce_policy_loss,
    remax_advantages,
    rloo_advantages,
    sapo_policy_loss,
    truncated_importance_weights,
    vespo_policy_loss,
    weighted_scores,
    whiten_judged,
)
from minirlhf.model.policy import Policy, check_reference, disable_dropout
from minirlhf.rewards.scoring import Reward, score_completions
from minirlhf.rollout.collect import collect
from minirlhf.rollout.rollout import Rollout
from minirlhf.rollout.statistics import describe, moments_of_all
from minirlhf.runtime.compile import maybe_compile
from minirlhf.runtime.distributed import all_sum, backward, gather, gradient_sync, local_rows, world_size, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class Recipe:
    """What tells one paper from another."""

    advantage: str = "group"  # a row of ADVANTAGES
    surrogate: str = "clip"  # a row of SURROGATES
    # mean over tokens, over each "sequence", over max_tokens ("constant"), or the "sum" over a row
    reduction: str = "token"
    scale_rewards: str = "group"  # whose std divides a group's advantages: group, batch, none
    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    dual_clip: float | None = None
    kl_in: str = "loss"
    kl_estimator: str | None = None  # None: k1 in the reward, where it is exact, k3 in the loss
    overlong_share: float = 0.0
    resample: int = 0

    @property
    def bounds(self) -> dict[str, float | None]:
        return {"clip_eps": self.clip_eps, "clip_eps_high": self.clip_eps_high, "dual_clip": self.dual_clip}

    @property
    def estimator(self) -> str:
        return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k3")


# The papers. Every choice can be changed on its own: a row is where one begins. PPO itself, whose advantage comes from
# a value function, is ppo.py.
ALGORITHMS: dict[str, Recipe] = {
    # Williams 1992: what is still to come, per token
    "reinforce": Recipe(advantage="returns", surrogate="reinforce", reduction="sum", kl_in="reward"),
    # Ahmadian et al. 2024, arXiv:2402.14740
    "rloo": Recipe(advantage="leave_one_out", surrogate="reinforce", reduction="sum", kl_in="reward"),
    # Li et al. 2023, arXiv:2310.10505
    "remax": Recipe(advantage="greedy", surrogate="reinforce", reduction="sum", kl_in="reward"),
    # Hu 2025, arXiv:2501.03262; the second is its form with a group's mean as baseline
    "reinforce++": Recipe(advantage="whitened_returns", kl_in="reward"),
    "reinforce++_baseline": Recipe(advantage="whitened_group", kl_estimator="k2"),
    # Shao et al. 2024, arXiv:2402.03300
    "grpo": Recipe(reduction="sequence"),
    # Liu et al. 2025, arXiv:2503.20783: no std, no length in the divisor
    "dr_grpo": Recipe(scale_rewards="none", reduction="constant"),
    # Yu et al. 2025, arXiv:2503.14476: clip-higher, token mean, overlong shaping, no groups of equal reward
    "dapo": Recipe(clip_eps_high=0.28, overlong_share=0.2, resample=2),
    # Xiao et al. 2025, arXiv:2506.02864, for rewards in [0, 1]
    "bnpo": Recipe(advantage="beta"),
    # Zheng et al. 2025, arXiv:2507.18071
    "gspo": Recipe(surrogate="gspo", reduction="sequence", clip_eps=0.02),
    "gspo_token": Recipe(surrogate="gspo_token", reduction="sequence", clip_eps=0.02),
    # Zhao et al. 2025, arXiv:2507.20673
    "gmpo": Recipe(surrogate="gmpo", reduction="sequence", clip_eps=0.4),
    # MiniMax 2025, arXiv:2506.13585
    "cispo": Recipe(surrogate="cispo", clip_eps_high=4.0),
    # Gao et al. 2025, arXiv:2511.20347
    "sapo": Recipe(surrogate="sapo", reduction="sequence"),
    # Shen et al. 2026, arXiv:2602.10693: tolerates old samples
    "vespo": Recipe(surrogate="vespo"),
    # INTELLECT-2 2025, arXiv:2505.07291: bounded where the advantage is negative too
    "two_sided": Recipe(dual_clip=4.0),
    # Liu et al. 2026, arXiv:2601.05242, for several reward functions
    "gdpo": Recipe(advantage="each_function"),
}

# (logps, old_logps, advantages, mask, recipe) -> losses [B, T]
SURROGATES: dict[str, Callable[..., Tensor]] = {
    "reinforce": lambda now, old, A, mask, r: reinforce_policy_loss(now, advantages=A),
    "clip": lambda now, old, A, mask, r: ppo_policy_loss(now, old_logps=old, advantages=A, **r.bounds),
    "cispo": lambda now, old, A, mask, r: cispo_policy_loss(
        now, old_logps=old, advantages=A, clip_eps_high=r.clip_eps_high or r.clip_eps
    ),
    "sapo": lambda now, old, A, mask, r: sapo_policy_loss(now, old_logps=old, advantages=A),
    "gspo": lambda now, old, A, mask, r: gspo_policy_loss(
        now, old_logps=old, advantages=A, mask=mask, clip_eps=r.clip_eps, clip_eps_high=r.clip_eps_high
    ),
    "gspo_token": lambda now, old, A, mask, r: gspo_token_policy_loss(
        now, old_logps=old, advantages=A, mask=mask, clip_eps=r.clip_eps, clip_eps_high=r.clip_eps_high
    ),
    "gmpo": lambda now, old, A, mask, r: gmpo_policy_loss(
        now, old_logps=old, advantages=A, mask=mask, clip_eps=r.clip_eps
    ),
    "vespo": lambda now, old, A, mask, r: vespo_policy_loss(now, old_logps=old, advantages=A, mask=mask),
}
BOUNDS = {  # which of the settings each of them reads
    "clip": ("clip_eps", "clip_eps_high", "dual_clip"),
    "cispo": ("clip_eps", "clip_eps_high"),
    "gspo": ("clip_eps", "clip_eps_high"),
    "gspo_token": ("clip_eps", "clip_eps_high"),
    "gmpo": ("clip_eps",),
    **dict.fromkeys(("reinforce", "sapo", "vespo"), ()),
}
OF_ONE_TOKEN = ("reinforce", "clip", "cispo", "sapo")  # what `fused_linear_loss` can take
ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


@dataclass(frozen=True)
class GRPOConfig(OnPolicyConfig):
    algorithm: str = "grpo"  # [-] a row of ALGORITHMS in algorithms/grpo.py; the settings that are none below follow it
    steps: int = 300  # [steps] one batch of prompts each
    batch_size: int = 64  # [prompts] sampled per step, over all processes
    minibatch_size: int = 64  # [prompts] per update, with all of their completions
    group_size: int = 16  # [completions] per prompt
    epochs: int = 1  # [epochs] how often a step goes over its batch
    lr_final: float = 0.05  # [share of lr] where the cosine ends
    max_tokens: int = 24  # [tokens] longest completion, its EOS included
    missing_eos_penalty: float = 0.0  # [score] taken from completions that did not end by themselves

    advantage: str | None = None  # [-] returns, whitened_returns, group, whitened_group, leave_one_out, greedy, beta
    #                               or each_function
    scale_rewards: Literal["group", "batch", "none"] | None = None  # [-] whose std divides a group's advantages
    surrogate: str | None = None  # [-] reinforce, clip, cispo, sapo, gspo, gspo_token, gmpo or vespo
    reduction: Literal["token", "sequence", "constant", "sum"] | None = None  # [-] mean over tokens; over a sequence's
    #                               tokens, then sequences; sum over max_tokens; sum over tokens, then mean
    clip_eps: float | None = None  # [ratio] half-width of the trust region
    clip_eps_high: float | None = None  # [ratio] upper half-width if another (clip-higher)
    dual_clip: float | None = None  # [ratio] bound on the loss where the advantage is negative, above 1

    kl_coef: float = 0.0  # [score per nat] what a nat of KL to the reference costs; 0 needs no reference
    kl_in: Literal["reward", "loss"] | None = None  # [-] where it is paid
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # [-] k1 is exact in the reward and does nothing in the loss

    reward_weights: tuple[float, ...] = (1.0,)  # [-] one for each reward function
    gamma: float = 1.0  # [-] discount of returns
    overlong_share: float | None = None  # [share of max_tokens] soft penalty on the last part of the room (DAPO)
    overlong_filter: bool = False  # [-] completions that were cut off have no loss
    resample: int | None = None  # [times] sample other prompts in place of groups of equal reward (dynamic sampling)
    entropy_coef: float = 0.0  # [score per nat] bonus for undecided tokens (the first value, if adaptive)
    entropy_target: float | None = None  # [nats per token] adapt the bonus to keep this entropy
    entropy_delta: float = 0.001  # [score per nat] step of the adaptive bonus
    high_entropy_share: float = 1.0  # [share] train on the tokens of highest entropy alone
    sampler_cap: float | None = None  # [ratio] weigh tokens by trainer / sampler probability, at most this; none: off
    fused: bool = False  # [-] take the gradient of head and loss together, chunk by chunk: faster, less in the open

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, table in (
            ("algorithm", ALGORITHMS),
            ("advantage", (*PER_TOKEN, *ADVANTAGES)),
            ("surrogate", SURROGATES),
        ):
            if getattr(self, name) not in (*table, None):
                raise InputError(f"GRPOConfig: {name} must be one of {', '.join(table)}, got {getattr(self, name)!r}")
        check_range(self, "group_size", least=1)
        check_range(self, "clip_eps", "clip_eps_high", "entropy_delta", above=0)
        check_range(self, "dual_clip", above=1)
        check_range(self, "sampler_cap", least=1)
        check_range(self, "gamma", "overlong_share", least=0, most=1)
        check_range(self, "high_entropy_share", above=0, most=1)
        check_range(self, "kl_coef", "resample", "entropy_coef", least=0)
        recipe = self.recipe
        if self.group_size == 1 and recipe.advantage not in NEED_NO_GROUP:
            raise InputError(
                f"GRPOConfig: group_size must be at least 2 for {self.algorithm}, got 1: one completion has nothing to "
                "be compared with; choose reinforce, reinforce++ or remax"
            )
        if self.group_size == 1 and recipe.resample:
            raise InputError(
                "GRPOConfig: resample needs groups of at least 2 completions, got group_size 1; set resample to 0"
            )
        self._refuse_what_has_no_effect()
        if recipe.kl_in == "loss" and recipe.estimator == "k1" and self.kl_coef:
            raise InputError(
                "GRPOConfig: kl_estimator must be k2 or k3 in the loss, got k1, whose expected gradient is 0 there; or "
                "set kl_in to reward"
            )
        if recipe.kl_in == "reward" and self.kl_coef and recipe.advantage in ("each_function", "beta"):
            raise InputError(
                f"GRPOConfig: kl_in must be loss for {self.algorithm}, whose rewards stay bare, got reward"
            )
        if recipe.advantage == "beta" and (self.missing_eos_penalty or recipe.overlong_share):
            raise InputError(
                f"GRPOConfig: {self.algorithm} needs rewards in [0, 1], so missing_eos_penalty and overlong_share must "
                "be 0"
            )
        entropy_terms = self.entropy_coef or self.entropy_target is not None or self.high_entropy_share < 1
        if self.fused and (recipe.surrogate not in OF_ONE_TOKEN or entropy_terms):
            raise InputError(
                f"GRPOConfig: fused takes the surrogates {', '.join(OF_ONE_TOKEN)} without entropy terms, got "
                f"{recipe.surrogate}; leave it out"
            )

    def _refuse_what_has_no_effect(self) -> None:
        recipe = self.recipe
        for name in ("clip_eps", "clip_eps_high", "dual_clip"):
            if getattr(self, name) is not None and name not in BOUNDS.get(recipe.surrogate, name):  # all of a new one
                raise InputError(f"GRPOConfig: {name} has no part in the surrogate {recipe.surrogate}; leave it out")
        if self.scale_rewards and recipe.advantage != "group":
            raise InputError(f"GRPOConfig: scale_rewards has no part in {recipe.advantage} advantages; leave it out")
        if self.gamma != 1 and recipe.advantage not in PER_TOKEN:
            raise InputError(f"GRPOConfig: gamma has no part in {recipe.advantage} advantages; leave it out")

    @property
    def recipe(self) -> Recipe:
        """The algorithm's row, with what these settings say themselves in its place."""
        own = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return replace(ALGORITHMS[self.algorithm], **{name: value for name, value in own.items() if value is not None})


class GRPOTrainer:
    """Policy, reward functions and, if kl_coef > 0, a frozen reference -> better policy.

    Args:
        rewards: one function or several, with as many `reward_weights`; None is a completion it does not apply to.
        spare:   other prompts for dynamic sampling, by step: `spare[k * resample + attempt]`.
    Raises: InputError if a reference is missing, or shares weights with the policy.
    """

    headline = ("score_mean", "equal_groups", "eval/gold_reward")
    best = ("eval/gold_reward", "max")

    def __init__(
        self,
        policy: Policy,
        ref_policy: Policy | None,
        rewards: Reward | Sequence[Reward],
        tokenizer: Tokenizer,
        config: GRPOConfig,
        *,
        spare: Batches | None = None,
        seed: int = 0,
        compiled: bool = False,
    ) -> None:
        self.rewards = [rewards] if callable(rewards) else list(rewards)
        if len(self.rewards) != len(config.reward_weights):
            raise InputError(
                f"GRPOTrainer: needed one of reward_weights {config.reward_weights} for each reward function, got "
                f"{len(self.rewards)} functions"
            )
        if policy.value_head is not None:
            raise InputError("GRPOTrainer: needed a policy without value head, which no loss here would train")
        if config.kl_coef and ref_policy is None:
            raise InputError("GRPOTrainer: kl_coef > 0 needs a reference, got none; pass copy_of(policy)")
        if ref_policy:
            check_reference("GRPOTrainer", policy, ref_policy)
        if config.recipe.resample and spare is None:
            raise InputError("GRPOTrainer: resample needs spare prompts, got none; pass spare=Batches(...)")
        check_stop_token("GRPOTrainer", config, policy.transformer.config.vocab_size)
        self.config, self.recipe, self.tokenizer, self.seed, self.spare = config, config.recipe, tokenizer, seed, spare
        self.ref_policy = ref_policy and ref_policy.requires_grad_(False).eval()
        disable_dropout(policy)
        self.models = {"policy": policy}
        self.policy = wrap(policy)
        self.optimizer = Optimizer(self.models, config, config.updates)
        self.surrogate = maybe_compile(SURROGATES[self.recipe.surrogate], compiled)
        adaptive = config.entropy_coef, config.entropy_target, config.entropy_delta
        self.entropy = AdaptiveEntropyController(*adaptive) if config.entropy_target is not None else None
        self.steps_done = 0
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """Sample groups, compare within them, then go over the batch in minibatches."""
        config, G = self.config, self.config.group_size
        rollout = self.collect(batch)
        advantages = self.advantages(rollout)
        mask, equal = rollout.completion_mask, equal_groups(rollout.scores, G) if G > 1 else rollout.scores.new_zeros(0)
        metrics = {**describe(rollout), "kl_coef": config.kl_coef, "equal_groups": share_of_all(equal)}
        if not self.ref_policy:
            del metrics["kl"]  # from nothing
        if config.overlong_filter:
            mask = mask & rollout.ended[:, None]
        old_logps, weights = rollout.logps, torch.ones_like(rollout.logps)
        if config.sampler_cap:
            old_logps = self.read(rollout, "logps")
            weights = truncated_importance_weights(old_logps, sampler_logps=rollout.logps, cap=config.sampler_cap)
        if config.high_entropy_share < 1:
            entropy = self.read(rollout, "entropy")
            everywhere = torch.tensor([x for part in gather(entropy[mask].tolist()) for x in part])
            threshold = entropy_threshold(everywhere.to(entropy), config.high_entropy_share)
            weights = weights * high_entropy_mask(entropy, mask, config.high_entropy_share, threshold)
        old, busy = replace(rollout, logps=old_logps, completion_mask=mask), advantages.any(-1).tolist()
        metrics |= over_minibatches(
            "GRPOTrainer", config, len(batch), lambda prompts: self.update(old, prompts, advantages, weights, busy)
        )
        self.steps_done += 1
        return metrics

    def collect(self, batch: list[Draw]) -> Rollout:
        """A group of completions for each prompt.

        A group whose scores are all equal teaches nothing: its place is taken by another prompt's, up to `resample`
        times, each place on its own, so that the number of processes cannot change the result.
        """
        rollout = self._collect(batch, "rollout")
        G = self.config.group_size
        for attempt in range(self.recipe.resample):
            places = equal_groups(rollout.scores, G).nonzero().squeeze(-1).tolist()
            spare = local_rows(self.spare[self.steps_done * self.recipe.resample + attempt])
            if places:
                batch = [spare[i] if i in places else draw for i, draw in enumerate(batch)]
                rollout = rollout.replaced(places, self._collect([spare[i] for i in places], f"spare {attempt}"), G)
        shown = zip(batch, rollout.completions[::G], rollout.scores[::G].tolist(), strict=True)
        self.samples = [{"prompt": d.row.source["prompt"], "completion": c, "score": s} for d, c, s in shown][:4]
        self.drawn = batch
        return rollout

    def _collect(self, batch: list[Draw], stream: str) -> Rollout:
        return collect(
            self.models["policy"],
            self.ref_policy,
            None,
            self.rewards,
            self.tokenizer,
            batch,
            self.config.sampling(self.tokenizer.eos_ids),
            seed=self.seed,
            stream=stream,
            group_size=self.config.group_size,
            weights=self.config.reward_weights,
        )

    def advantages(self, rollout: Rollout) -> Tensor:
        """[B, T]: penalties and KL on top of the scores, then the recipe's comparison."""
        config, recipe, mask = self.config, self.recipe, rollout.completion_mask
        penalty = -config.missing_eos_penalty * (~rollout.ended).to(rollout.scores.dtype)
        if recipe.overlong_share:
            buffer = max(1, round(recipe.overlong_share * config.max_tokens))
            penalty = penalty + overlong_penalty(mask.sum(-1), max_tokens=config.max_tokens, buffer=buffer)
        scores, kl_coef = rollout.scores + penalty, config.kl_coef if recipe.kl_in == "reward" else 0.0
        if recipe.advantage in PER_TOKEN:
            logps = {"logps": rollout.logps, "ref_logps": rollout.ref_logps if kl_coef else rollout.logps}
            mask = mask & ~scores.isnan()[:, None]  # what nobody could judge has no advantage
            rewards = kl_shaped_rewards(
                scores.nan_to_num(0.0), **logps, mask=mask, kl_coef=kl_coef, estimator=recipe.estimator
            )
            returns = discounted_returns(rewards, mask=mask, gamma=config.gamma)
            if recipe.advantage == "returns":
                return returns
            return masked_whiten(returns, mask, moments_of_all(returns, mask))
        if kl_coef:
            kl = ESTIMATORS[recipe.estimator](rollout.logps, ref_logps=rollout.ref_logps)
            scores = scores - kl_coef * torch.where(mask, kl, 0).sum(-1)
        rows = ADVANTAGES[recipe.advantage](self, scores, torch.cat((rollout.parts, penalty[:, None]), -1))
        return torch.where(mask, rows[:, None], 0)

    def update(
        self, rollout: Rollout, prompts: range, advantages: Tensor, weights: Tensor, busy: list[bool]
    ) -> dict[str, float]:
        """One optimizer step on the completions of some prompts, taken in micro-batches of similar length.

        busy: for each row of the rollout, has it any advantage; asked of the device once a step, not once an update.
        """
        config, G = self.config, self.config.group_size
        rows = range(prompts.start * G, prompts.stop * G)
        mask = rollout.completion_mask[rows.start : rows.stop]
        counts = all_sum(torch.stack([mask.sum(), mask.any(-1).sum()]))
        entropy_coef = self.entropy.coef if self.entropy else config.entropy_coef
        rollout, rows = self.without_idle_rows(rollout, rows, busy, entropy_coef)
        seen = all_sum(rollout.completion_mask[rows].sum())  # what is looked at: an average over what is trained on
        groups = microbatches([rollout.lengths[i] for i in rows], config.microbatch_tokens)
        sums: dict[str, Tensor] = {}
        for group in groups:
            picked = [rows[i] for i in group]
            old = rollout.select(picked)
            width = old.input_ids.shape[1]
            A, W = advantages[picked, :width], weights[picked, :width]
            with gradient_sync(self.policy, group is groups[-1]):
                loss, terms = (self.fused_loss if config.fused else self.open_loss)(old, A, W, counts, entropy_coef)
                backward(loss)
            policy_loss = masked_sum(terms.pop("policy_loss").detach(), old.completion_mask)
            for name, part in {"loss": loss.detach(), "policy_loss": policy_loss}.items():
                sums[name] = sums.get(name, 0) + part
            add_means(sums, terms, old.completion_mask, seen)
        metrics = self.optimizer.step({**sums, "seen": seen / world_size()})
        if not metrics.pop("seen"):  # an average over nothing is no observation
            metrics = {name: metrics[name] for name in ("loss", "policy_loss", "grad_norm", "lr")}
        if self.entropy:
            self.entropy.update(metrics["entropy"])
            metrics["entropy_coef"] = self.entropy.coef
        return metrics

    def without_idle_rows(
        self, rollout: Rollout, rows: range, busy: list[bool], entropy_coef: float
    ) -> tuple[Rollout, list[int]]:
        """Leave out the rows whose loss and gradient are exactly 0: no advantage, and no other term.

        Late in training that is half of them. The counts that the loss is divided by stay those of all rows. A process
        left with none keeps one, without tokens: every process must come to the exchange of gradients.
        """
        if entropy_coef or self.entropy or (self.config.kl_coef and self.recipe.kl_in == "loss"):
            return rollout, list(rows)
        kept = [i for i in rows if busy[i]]
        if kept:
            return rollout, kept
        return replace(rollout, completion_mask=torch.zeros_like(rollout.completion_mask)), [rows[0]]

    def open_loss(
        self, old: Rollout, A: Tensor, weights: Tensor, counts: Tensor, entropy_coef: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss as the paper writes it -> (loss, what to look at)."""
        config, recipe, mask = self.config, self.recipe, old.completion_mask
        now = self.policy(old.input_ids, old.attention_mask, temperature=config.temperature)
        logps = torch.where(mask, now.logps, 0)  # a prompt's log-probs say nothing about choices
        old_logps = torch.where(mask, old.logps, 0)
        policy_losses = losses = weights * self.surrogate(logps, old_logps, A, mask, recipe)
        terms = {"entropy": now.entropy, **self.diagnostics(logps, old_logps, A)}
        if config.kl_coef and recipe.kl_in == "loss":
            losses = losses + config.kl_coef * ESTIMATORS[recipe.estimator](logps, ref_logps=old.ref_logps)
        if entropy_coef:
            losses = losses - entropy_coef * now.entropy
        share = self.token_weights(mask, counts)
        return masked_sum(losses * share, mask), {"policy_loss": policy_losses * share, **terms}

    def fused_loss(
        self, old: Rollout, A: Tensor, weights: Tensor, counts: Tensor, entropy_coef: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, head and loss in one: the reduction becomes a weight per token."""
        config, recipe, mask = self.config, self.recipe, old.completion_mask
        old_logps = torch.where(mask, old.logps, 0)

        def token_loss(logps: Tensor, old: Tensor, ref: Tensor, A: Tensor, W: Tensor) -> Tensor:
            losses = W * self.surrogate(logps, old, A, None, recipe)
            if config.kl_coef and recipe.kl_in == "loss":
                losses = losses + config.kl_coef * ESTIMATORS[recipe.estimator](logps, ref_logps=ref)
            return losses

        head = partial(
            fused_linear_loss,
            input_ids=old.input_ids,
            token_loss=token_loss,
            mask=mask,
            count=1.0,
            inputs={"old": old_logps, "ref": old.ref_logps, "A": A, "W": weights},
            weights=self.token_weights(mask, counts).to(old_logps.dtype),
            temperature=config.temperature,
        )
        loss, logps, entropy = self.policy(old.input_ids, old.attention_mask, head=head)
        policy_losses = weights * self.surrogate(logps, old_logps, A, mask, recipe) * self.token_weights(mask, counts)
        return loss, {"policy_loss": policy_losses, "entropy": entropy, **self.diagnostics(logps, old_logps, A)}

    def diagnostics(self, logps: Tensor, old_logps: Tensor, A: Tensor) -> dict[str, Tensor]:
        """Ratio and KL of each token; what was clipped only where the surrogate clips tokens."""
        terms = ratio_diagnostics(logps, old_logps=old_logps, advantages=A, **self.recipe.bounds)
        if self.recipe.surrogate != "clip":
            del terms["clip_fraction"]
        return terms

    def token_weights(self, mask: Tensor, counts: Tensor) -> Tensor:
        """What each token's loss counts in the update, [B, T]: with this the reduction is a plain sum."""
        tokens, rows = counts
        lengths = mask.sum(-1, keepdim=True).clamp(min=1)
        weight = {
            "token": 1 / tokens.clamp(min=1),
            "sequence": 1 / (rows.clamp(min=1) * lengths),
            "constant": 1 / (rows.clamp(min=1) * self.config.max_tokens),
            "sum": 1 / rows.clamp(min=1),
        }[self.recipe.reduction]
        return weight.expand(mask.shape)

    @torch.no_grad()
    def read(self, rollout: Rollout, what: str) -> Tensor:
        """logps or entropy of the policy as it stands, read again by the training forward: [B, T], 0 at padding."""
        result = torch.zeros_like(rollout.logps)
        for group in microbatches(rollout.lengths, self.config.microbatch_tokens):
            part = rollout.select(group)
            now = self.models["policy"](part.input_ids, part.attention_mask, temperature=self.config.temperature)
            result[group, : part.input_ids.shape[1]] = getattr(now, what).to(result.dtype)
        return torch.where(rollout.completion_mask, result, 0)

    @torch.no_grad()
    def greedy_scores(self) -> Tensor:
        """[B]: what the greedy completion of each prompt scores, once for each of the prompt's samples."""
        greedy = replace(self.config.sampling(self.tokenizer.eos_ids), temperature=0.0)
        prompts, rows = [draw.row.prompt for draw in self.drawn], [draw.row.source for draw in self.drawn]
        completions = generate(self.models["policy"].transformer, prompts, greedy, tokenizer=self.tokenizer)
        texts = self.tokenizer.decode_completions([completion.ids for completion in completions])
        asked = [row["prompt"] for row in rows], texts, rows
        weights = torch.tensor(self.config.reward_weights)
        parts = torch.tensor([score_completions(reward, *asked, optional=True) for reward in self.rewards]).T
        return weighted_scores(parts, weights).repeat_interleave(self.config.group_size)

    def state_dict(self) -> dict[str, Any]:
        entropy = {"entropy": self.entropy.state_dict()} if self.entropy else {}
        return {"optimizer": self.optimizer.state_dict(), "steps_done": self.steps_done, **entropy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps_done = state["steps_done"]
        if self.entropy:
            self.entropy.load_state_dict(state["entropy"])


def _whitened_group(t: GRPOTrainer, scores: Tensor, parts: Tensor) -> Tensor:
    centred = group_advantages(scores, t.config.group_size, "none").masked_fill(scores.isnan(), torch.nan)
    return whiten_judged(centred, _moments(centred))


def _each_function(t: GRPOTrainer, scores: Tensor, parts: Tensor) -> Tensor:
    weights = parts.new_tensor([*t.config.reward_weights, 1.0])  # the last column are the penalties
    summed = gdpo_advantages(parts, weights, t.config.group_size).masked_fill(scores.isnan(), torch.nan)
    return whiten_judged(summed, _moments(summed))


def _beta(t: GRPOTrainer, scores: Tensor, parts: Tensor) -> Tensor:
    if bool(((scores < 0) | (scores > 1)).any()):
        raise InputError(
            f"GRPOTrainer: {t.config.algorithm} needs rewards in [0, 1], got {scores.min():.3g}..{scores.max():.3g}; "
            "scale them, or choose another algorithm"
        )
    p = scores.view(-1, t.config.group_size).nanmean(-1)
    return bnpo_advantages(scores, t.config.group_size, _moments(p))


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return moments_of_all(x, ~x.isnan())


# (trainer, scores [B] with penalties, parts [B, F + 1] with penalties as the last column) -> advantages [B]
ADVANTAGES: dict[str, Callable[[GRPOTrainer, Tensor, Tensor], Tensor]] = {
    "group": lambda t, s, _: group_advantages(s, t.config.group_size, t.recipe.scale_rewards, _moments(s)),
    "whitened_group": _whitened_group,
    "leave_one_out": lambda t, s, _: rloo_advantages(s, t.config.group_size),
    "greedy": lambda t, s, _: remax_advantages(s, greedy_scores=t.greedy_scores().to(s)),
    "beta": _beta,
    "each_function": _each_function,
}
PER_TOKEN = ("returns", "whitened_returns")  # these two come from rewards placed on tokens
NEED_NO_GROUP = (*PER_TOKEN, "greedy")


def share_of_all(flags: Tensor) -> float:
    """The share of True over all processes."""
    total, n = all_sum(torch.tensor([float(flags.sum()), float(flags.numel())], device=flags.device)).tolist()
    return total / max(n, 1.0)
