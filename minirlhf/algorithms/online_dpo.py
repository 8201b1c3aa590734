"""Preference learning on pairs that are written as one goes and ranked by a judge: Online DPO, XPO, Nash-MD.

Online DPO: Guo et al. 2024, arXiv:2402.04792. XPO: Xie et al. 2024, arXiv:2405.21046. Nash-MD: Munos et al. 2023,
arXiv:2312.00886. B prompts, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minirlhf.algorithms.on_policy import OnPolicyConfig, check_stop_token, over_minibatches
from minirlhf.data.batches import Draw, microbatches, pad_sequences
from minirlhf.errors import InputError, check_range
from minirlhf.generation.engine import Completion, generate
from minirlhf.losses import dpo_sigmoid_loss, ipo_loss, nash_md_loss, sum_logps, xpo_bonus
from minirlhf.model.mixture import GeometricMixture
from minirlhf.model.policy import Policy, check_reference, disable_dropout
from minirlhf.rewards.judges import Judge, judge_pairs
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer

LOSSES = {"sigmoid": dpo_sigmoid_loss, "ipo": ipo_loss}


@dataclass(frozen=True)
class OnlineDPOConfig(OnPolicyConfig):
    algorithm: Literal["online_dpo", "xpo", "nash_md"] = "online_dpo"  # [-] whom the policy is compared with: itself,
    #                               the reference, a mixture of both
    batch_size: int = 128  # [prompts] per step, over all processes; two completions each
    minibatch_size: int = 128  # [prompts] per update
    epochs: int = 1  # [epochs] how often a step goes over its batch
    loss: Literal["sigmoid", "ipo"] = "sigmoid"  # [-] of the pair, for online_dpo and xpo
    beta: float = 0.1  # [score per nat] what a nat of KL costs
    alpha: float = 1e-3  # [-] XPO's bonus for leaving what the reference says
    mixture: float = 0.5  # [share] of the reference in Nash-MD's opponent
    missing_eos_penalty: float = 0.0  # [chance] taken from the winning chance of a completion that did not end

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", above=0)
        check_range(self, "alpha", least=0)
        check_range(self, "mixture", "missing_eos_penalty", least=0, most=1)


@dataclass(frozen=True)
class Match:
    """One batch of prompts, each completed twice, and who won."""

    prompts: list[list[int]]
    mine: list[Completion]  # by the policy
    other: list[Completion]  # by its opponent
    win_prob: Tensor  # [B] that mine is better


class OnlineDPOTrainer:
    """Policy, frozen reference, judge -> better policy.   Raises: InputError if policy and reference share weights."""

    headline = ("win_prob", "kl", "eval/gold_reward")
    best = ("eval/gold_reward", "max")

    def __init__(
        self,
        policy: Policy,
        ref_policy: Policy,
        judge: Judge,
        tokenizer: Tokenizer,
        config: OnlineDPOConfig,
        *,
        seed: int = 0,
    ) -> None:
        check_reference("OnlineDPOTrainer", policy, ref_policy)
        if policy.value_head is not None:
            raise InputError("OnlineDPOTrainer: needed a policy without value head, which no loss here would train")
        check_stop_token("OnlineDPOTrainer", config, policy.transformer.config.vocab_size)
        self.config, self.tokenizer, self.judge, self.seed = config, tokenizer, judge, seed
        self.ref_policy = ref_policy.requires_grad_(False).eval()
        disable_dropout(policy)
        self.models = {"policy": policy}
        self.policy = wrap(policy)
        self.optimizer = Optimizer(self.models, config, config.updates)
        self.device = policy.transformer.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """Write two answers to each prompt, ask the judge, learn from the result."""
        match = self.play(batch)
        metrics = over_minibatches("OnlineDPOTrainer", self.config, len(batch), lambda rows: self.update(match, rows))
        lengths = torch.tensor([float(sum(len(c.ids) for c in match.mine)), float(len(batch))], device=self.device)
        tokens, n = all_sum(lengths).tolist()
        return {**metrics, "response_length": tokens / n}

    def play(self, batch: list[Draw]) -> Match:
        config, rows = self.config, [draw.row.source for draw in batch]
        mine = self._write(self.models["policy"].transformer, batch, sample=0)
        opponent = {
            "online_dpo": lambda: self.models["policy"].transformer,
            "xpo": lambda: self.ref_policy.transformer,
            "nash_md": lambda: GeometricMixture(
                self.models["policy"].transformer, self.ref_policy.transformer, config.mixture
            ),
        }[config.algorithm]()
        other = self._write(opponent, batch, sample=1)
        texts = [self.tokenizer.decode_completions([c.ids for c in side]) for side in (mine, other)]
        prompts = [row["prompt"] for row in rows]
        chances = torch.tensor(judge_pairs(self.judge, prompts, *texts, rows), device=self.device)
        cut = [torch.tensor([float(c.finish != "stop") for c in side], device=self.device) for side in (mine, other)]
        chances = (chances - config.missing_eos_penalty * (cut[0] - cut[1])).clamp(0, 1)
        shown = zip(prompts, *texts, chances.tolist(), strict=True)
        self.samples = [{"prompt": p, "completion": a, "other": b, "win_prob": c} for p, a, b, c in shown][:4]
        return Match([draw.row.prompt for draw in batch], mine, other, chances)

    def update(self, match: Match, rows: range) -> dict[str, float]:
        """One optimizer step on some prompts, taken in micro-batches of similar length."""
        count = all_sum(torch.tensor(float(len(rows)), device=self.device))
        lengths = [len(match.prompts[i]) + max(len(match.mine[i].ids), len(match.other[i].ids)) for i in rows]
        groups = microbatches(lengths, self.config.microbatch_tokens // 2)
        sums: dict[str, Tensor] = {}
        for group in groups:
            picked = [rows[i] for i in group]
            with gradient_sync(self.policy, group is groups[-1]):
                losses, terms = self.losses(match, picked)
                loss = losses.sum() / count
                backward(loss)
            for name, x in {"loss": losses, "win_prob": match.win_prob[picked], **terms}.items():
                sums[name] = sums.get(name, 0) + x.detach().sum() / count
        return self.optimizer.step(sums)

    def losses(self, match: Match, rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (losses [B], what to look at [B])."""
        config, wins = self.config, match.win_prob[rows]
        both = [match.mine[i].ids for i in rows] + [match.other[i].ids for i in rows]
        if config.algorithm == "nash_md":  # the opponent's answer serves the judge alone
            both = both[: len(rows)]
        batch = pad_sequences([match.prompts[i] for i in rows] * (len(both) // len(rows)), both, 0, self.device)
        logps = self.policy(batch.input_ids, batch.attention_mask, temperature=config.temperature).logps
        with torch.no_grad():
            ref = self.ref_policy(batch.input_ids, batch.attention_mask, temperature=config.temperature).logps
        ratios = sum_logps(logps - ref, batch.completion_mask)
        kl = ratios[: len(rows)].detach()
        # approx_kl, for target_kl: how far this update's policy is from the one that wrote
        written = torch.tensor([sum(match.mine[i].logps) for i in rows], device=self.device)
        moved = (written - sum_logps(logps, batch.completion_mask)[: len(rows)].detach()).abs()
        lengths = batch.completion_mask[: len(rows)].sum(-1)
        terms = {"kl": kl, "approx_kl": moved / lengths}
        if config.algorithm == "nash_md":
            options = {"ref_logps": ref, "mask": batch.completion_mask, "win_prob": wins, "beta": config.beta}
            return nash_md_loss(logps, **options), terms
        mine, other = ratios.chunk(2)
        won = wins > 0.5
        pairs = torch.where(won, mine, other), torch.where(won, other, mine)
        decided = (wins != 0.5).to(mine.dtype)  # a tie is no preference
        losses = decided * LOSSES[config.loss](*pairs, beta=config.beta)
        terms["accuracy"] = decided * (pairs[0] > pairs[1])
        if config.algorithm == "xpo":
            theirs, mask = logps.chunk(2)[1], batch.completion_mask.chunk(2)[1]
            losses = losses + xpo_bonus(theirs, mask=mask, alpha=config.alpha)
        return losses, terms

    def _write(self, transformer: torch.nn.Module, batch: list[Draw], sample: int) -> list[Completion]:
        keys = [(draw.epoch, draw.index, sample) for draw in batch]
        prompts, sampling = [draw.row.prompt for draw in batch], self.config.sampling(self.tokenizer.eos_ids)
        options = {"seed": self.seed, "stream": "rollout", "keys": keys, "tokenizer": self.tokenizer}
        return generate(transformer, prompts, sampling, **options)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
