"""Preference learning on sampled pairs that a judge ranks: Online DPO, XPO, Nash-MD.

Online DPO: Guo et al. 2024, arXiv:2402.04792. XPO: Xie et al. 2024, arXiv:2405.21046. Nash-MD: Munos et al. 2023,
arXiv:2312.00886. B prompts, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.on_policy import OnPolicyConfig, check_stop_token, over_minibatches
from minirlhf.algorithms.unused import refuse_changed
from minirlhf.data.batches import Draw, drawn, microbatches, pad_sequences
from minirlhf.errors import InputError, check_range
from minirlhf.generation.engine import Completion
from minirlhf.losses import dpo_sigmoid_loss, ipo_loss, nash_md_loss, sum_logps, xpo_bonus
from minirlhf.model.mixture import GeometricMixture
from minirlhf.model.policy import Policy, check_policy, disable_dropout
from minirlhf.rewards.judges import Judge, judge_pairs
from minirlhf.rollout.collect import sample_rows
from minirlhf.rollout.samples import ROWS, token_lists
from minirlhf.runtime.distributed import all_sum, backward, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of

LOSSES = {"sigmoid": dpo_sigmoid_loss, "ipo": ipo_loss}


@dataclass(frozen=True)
class OnlineDPOConfig(OnPolicyConfig):
    algorithm: Literal["online_dpo", "xpo", "nash_md"] = "online_dpo"  # [-] the opponent: the policy itself, the
    #                               reference, or a mixture of both
    batch_size: int = 128  # [prompts] per step, over all processes; two completions for each prompt
    minibatch_size: int = 128  # [prompts] per update
    epochs: int = 1  # [epochs] of each step over its batch
    loss: Literal["sigmoid", "ipo"] = "sigmoid"  # [-] the loss of a pair, in online_dpo and xpo
    beta: float = 0.1  # [score per nat] cost of KL to the reference
    xpo_alpha: float = 1e-3  # [-] XPO: weight of the bonus for making the reference's answers less likely
    mixture: float = 0.5  # [share] Nash-MD: share of the reference in the opponent
    missing_eos_penalty: float = 0.0  # [chance] subtracted from the chance to win if the completion did not end

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0)
        check_range(self, "xpo_alpha", least=0)
        check_range(self, "mixture", "missing_eos_penalty", least=0, most=1)
        if self.algorithm == "nash_md":
            refuse_changed(self, "loss", needed="the algorithm online_dpo or xpo")
            if (updates := self.epochs * self.minibatches) > 1:
                raise InputError(
                    "OnlineDPOConfig: nash_md has no ratio to correct for old samples, so it needs one update of each "
                    f"batch, got {updates}; set epochs to 1 and minibatch_size to {self.batch_size}"
                )
            refuse_changed(self, "target_kl", needed="several updates of each batch")
        for name, algorithm in {"xpo_alpha": "xpo", "mixture": "nash_md"}.items():
            if self.algorithm != algorithm:
                refuse_changed(self, name, needed=f"the algorithm {algorithm}")


@dataclass(frozen=True)
class Match:
    """A batch of prompts, the policy's and the opponent's completion of each prompt, and the judge's answers."""

    prompts: list[list[int]]
    by_policy: list[Completion]
    by_opponent: list[Completion]
    win_prob: Tensor  # [B] chance that the policy's completion is better


class OnlineDPOTrainer:
    """Policy, frozen reference, judge -> better policy.

    environment: `Episodes` to play. Without a judge the episode with more reward wins; a judge reads the texts alone.
    Raises: InputError if policy and reference share weights, or if there is neither judge nor environment.
    """

    headline = ("win_prob", "kl", "eval/gold_reward")
    best = ("eval/gold_reward", "max")
    saved = ("optimizer",)

    def __init__(
        self,
        policy: Policy,
        ref_policy: Policy,
        judge: Judge | None,
        tokenizer: Tokenizer,
        config: OnlineDPOConfig,
        *,
        seed: int = 0,
        environment: Any = None,
    ) -> None:
        if judge is None and environment is None:
            raise InputError("OnlineDPOTrainer: needed a judge or an environment, got neither")
        check_policy("OnlineDPOTrainer", policy, ref_policy)
        check_stop_token("OnlineDPOTrainer", config, policy.transformer.config.vocab_size)
        self.config, self.tokenizer, self.judge, self.seed = config, tokenizer, judge, seed
        self.environment = environment
        self.ref_policy = ref_policy.requires_grad_(False).eval()
        disable_dropout(policy)
        self.policy, self.wrapped_policy = policy, wrap(policy)
        self.models = {"policy": policy}
        self.optimizer = Optimizer(self.models, config, config.updates)
        self.device = policy.transformer.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """Sample two answers to each prompt, ask the judge, learn from the result."""
        match = self.play(batch)
        metrics = over_minibatches("OnlineDPOTrainer", self.config, len(batch), lambda rows: self.update(match, rows))
        tokens = sum(sum(completion.chosen or [True] * len(completion.ids)) for completion in match.by_policy)
        changed = len(batch) * getattr(self.judge, "disagreement", 0.0)  # pairs
        tokens, changed, n = all_sum(torch.tensor([tokens, changed, len(batch)], device=self.device)).tolist()
        if hasattr(self.judge, "disagreement"):
            metrics["disagreement"] = changed / n
        return {**metrics, "response_length": tokens / n}

    def play(self, batch: list[Draw]) -> Match:
        """Sample the policy's and the opponent's answer to each prompt, and let the judge compare the answers."""
        config, rows = self.config, [row.source for row in drawn(batch, 0)]
        policy, reference = self.policy.transformer, self.ref_policy.transformer
        opponent = policy
        if config.algorithm == "xpo":
            opponent = reference
        elif config.algorithm == "nash_md":
            opponent = GeometricMixture(policy, reference, config.mixture)
        samples = [self._sample(model, batch, sample) for sample, model in enumerate((policy, opponent))]
        ids, sides, inputs, episodes = zip(*samples, strict=True)
        (prompts, *_), texts = inputs[0], [texts for _, texts, _ in inputs]
        if self.judge:
            chances = judge_pairs(self.judge, prompts, *texts, rows)
        else:
            rewards = (self.environment.reward(*each) for each in inputs)
            chances = [0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(*rewards, strict=True)]
        chances = torch.tensor(chances, device=self.device)
        cut, cut_opponent = (
            torch.tensor([float(completion.finish != "stop") for completion in side], device=self.device)
            for side in sides
        )
        chances = (chances - config.missing_eos_penalty * (cut - cut_opponent)).clamp(0, 1)
        results = zip(prompts, *texts, chances.tolist(), strict=True)
        self.samples = [{"prompt": p, "completion": a, "other": b, "win_prob": c} for p, a, b, c in results][:4]
        if self.environment:
            for sample, episode in zip(self.samples, episodes[0], strict=False):
                sample |= {"prompt": episode.first, "turns": episode.shown()}
        for sample, answer in zip(self.samples[:ROWS], sides[0], strict=False):
            sample |= token_lists(self.tokenizer, answer.ids, answer.chosen, {"logps": answer.logps})
        return Match(ids[0], *sides, chances)

    def update(self, match: Match, rows: range) -> dict[str, float]:
        """One optimizer step on some prompts, taken in micro-batches of similar length."""
        count = all_sum(torch.tensor(float(len(rows)), device=self.device))
        pairs = [(match.by_policy[i].ids, match.by_opponent[i].ids) for i in rows]
        lengths = [len(match.prompts[i]) + max(map(len, pair)) for i, pair in zip(rows, pairs, strict=True)]
        sums = Sums()
        for group in micro_batches(microbatches(lengths, self.config.microbatch_tokens // 2), self.wrapped_policy):
            group_rows = [rows[i] for i in group]
            losses, terms = self.losses(match, group_rows)
            backward(losses.sum() / count)
            sums.add(count, loss=losses, win_prob=match.win_prob[group_rows], **terms)
        return self.optimizer.step(sums)

    def losses(self, match: Match, rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (losses [B], terms to report [B])."""
        config, wins = self.config, match.win_prob[rows]
        answers = [match.by_policy[i] for i in rows]
        if config.algorithm != "nash_md":  # in Nash-MD only the judge reads the opponent's answer
            answers += [match.by_opponent[i] for i in rows]
        prompts = [match.prompts[i] for i in rows] * (1 if config.algorithm == "nash_md" else 2)
        ids, chosen = [answer.ids for answer in answers], [answer.chosen for answer in answers if answer.chosen]
        batch = pad_sequences(prompts, ids, self.tokenizer.pad_id, self.device, chosen)
        options = {"temperature": config.temperature, "wanted": batch.completion_mask, "entropy": False}
        logps = self.wrapped_policy(batch.input_ids, batch.attention_mask, **options).logps
        with torch.no_grad():
            ref = self.ref_policy(batch.input_ids, batch.attention_mask, **options).logps
        ratios = sum_logps(logps - ref, batch.completion_mask)
        # approx_kl, for target_kl: the distance from the policy that sampled, per token
        sampled = torch.tensor([sum(match.by_policy[i].logps) for i in rows], device=self.device)
        moved = (sampled - sum_logps(logps, batch.completion_mask)[: len(rows)].detach()).abs()
        lengths = batch.completion_mask[: len(rows)].sum(-1)
        terms = {"kl": ratios[: len(rows)].detach(), "approx_kl": moved / lengths}
        if config.algorithm == "nash_md":
            options = {"ref_logps": ref, "mask": batch.completion_mask, "win_prob": wins, "beta": config.beta}
            return nash_md_loss(logps, **options), terms
        policy_ratios, opponent_ratios = ratios.chunk(2)
        won = wins > 0.5
        pairs = torch.where(won, policy_ratios, opponent_ratios), torch.where(won, opponent_ratios, policy_ratios)
        decided = (wins != 0.5).to(ratios.dtype)  # a tie is no preference
        losses = decided * LOSSES[config.loss](*pairs, beta=config.beta)
        terms["accuracy"] = decided * (pairs[0] > pairs[1])
        if config.algorithm == "xpo":
            opponent_logps, mask = logps.chunk(2)[1], batch.completion_mask.chunk(2)[1]
            losses = losses + xpo_bonus(opponent_logps, mask=mask, alpha=config.xpo_alpha)
        return losses, terms

    def _sample(self, transformer: torch.nn.Module, batch: list[Draw], sample: int) -> tuple:
        """The result of `sample_rows` for one side."""
        keys = [(draw.epoch, draw.index, sample) for draw in batch]
        rows, sampling = [draw.row for draw in batch], self.config.sampling(self.tokenizer.eos_ids)
        options = {"seed": self.seed, "stream": "rollout", "keys": keys}
        return sample_rows(transformer, self.tokenizer, self.environment, rows, sampling, **options)

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)
