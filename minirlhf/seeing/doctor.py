"""The doctor: names faults of a run in words. The rules are in rules/; docs/doctor.md has their figures.

A rule sees the series of a run up to a step. `examine` calls each rule at growing steps, so a finding names the first
step at which its rule fires, and a run that is still going on gets the same findings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from minirlhf.seeing.reading import SeenRun
from minirlhf.seeing.rules import divergence, policy, rows, updates
from minirlhf.seeing.rules.record import Record

LOOKS = 60  # at a run, at most; each look calls all rules


class Rule(NamedTuple):
    """find: Record -> a sentence with the evidence, or None.   needs: metrics without which it cannot fire."""

    title: str
    find: Callable[[Record], str | None]
    needs: tuple[str, ...]
    remedy: str
    docs: str


@dataclass(frozen=True)
class Finding:
    """step: the first at which the rule fires.   lasting: the rule still fires at the last step."""

    rule: str
    step: int
    evidence: str
    lasting: bool = True

    @property
    def of(self) -> Rule:
        return RULES[self.rule]


RULES: dict[str, Rule] = {
    "score_up_gold_down": Rule(
        "the score rises, gold falls",
        policy.score_up_gold_down,
        ("eval/gold_reward",),
        "take the checkpoint with the best gold, raise kl_coef, or train the reward on more pairs",
        "docs/troubleshooting.md#the-reward-rises-the-answers-become-worse",
    ),
    "objective_falls": Rule(
        "the policy becomes worse by its own measure",
        policy.objective_falls,
        ("score_mean",),
        "lower lr; with a reward or a loss of your own, look for a wrong sign",
        "docs/troubleshooting.md#the-reward-does-not-rise",
    ),
    "entropy_collapses": Rule(
        "the policy writes one text for all prompts",
        policy.entropy_collapses,
        ("entropy", "score_mean"),
        "take an earlier checkpoint, raise kl_coef or entropy_coef, lower lr",
        "docs/troubleshooting.md#all-answers-are-the-same",
    ),
    "length_drifts": Rule(
        "the length of the answers drifts",
        policy.length_drifts,
        ("response_length",),
        "read samples; the reward may pay for length, or for short answers",
        "docs/troubleshooting.md#answers-become-longer",
    ),
    "equal_scores": Rule(
        "all completions have the same score",
        policy.equal_scores,
        ("score_mean",),
        "take easier or harder prompts, larger groups, or a reward that tells answers apart",
        "docs/metrics.md#equal_groups",
    ),
    "never_ends": Rule(
        "the policy never writes an end token",
        policy.never_ends,
        ("ended",),
        "look for cut answers in the SFT rows; raise max_tokens or missing_eos_penalty; check the end token",
        "docs/troubleshooting.md#answers-do-not-end",
    ),
    "score_stays": Rule(
        "the score does not rise",
        policy.score_stays,
        ("score_mean",),
        "check that good and bad answers get different scores; then raise lr, lower kl_coef, train longer",
        "docs/troubleshooting.md#the-reward-does-not-rise",
    ),
    "kl_explodes": Rule(
        "the KL explodes",
        divergence.kl_explodes,
        ("kl", "entropy", "response_length"),
        "lower lr or epochs, set target_kl, raise kl_coef",
        "docs/troubleshooting.md#the-kl-explodes",
    ),
    "kl_negative": Rule(
        "the estimated KL is negative",
        divergence.kl_negative,
        ("kl", "score_mean"),
        "look for a mismatch: temperature, top-k, top-p, other weights, dropout, or a wrong sign",
        "docs/metrics.md#kl",
    ),
    "kl_stays_zero": Rule(
        "the reference moves with the policy",
        divergence.kl_stays_zero,
        ("kl", "entropy", "score_mean"),
        "give the trainer a frozen copy of the policy as its reference",
        "docs/metrics.md#kl",
    ),
    "sampler_and_trainer_disagree": Rule(
        "sampler and trainer disagree",
        divergence.sampler_and_trainer_disagree,
        ("kl",),
        "score what was sampled: same weights, temperature and masks; in bf16 take precision fp32 or sampler_cap",
        "docs/metrics.md#sampler_gap",
    ),
    "ratio_never_moves": Rule(
        "the ratio is always 1",
        divergence.ratio_never_moves,
        ("ratio", "updates", "approx_kl"),
        "keep the log-probs of sampling as old log-probs; do not recompute them in each update",
        "docs/metrics.md#ratio",
    ),
    "clip_too_often": Rule(
        "the clip acts on too many tokens",
        divergence.clip_too_often,
        ("clip_fraction",),
        "lower lr or epochs",
        "docs/metrics.md#clip_fraction",
    ),
    "clip_never": Rule(
        "the clip never acts",
        divergence.clip_never,
        ("clip_fraction", "approx_kl"),
        "check clip_eps and the old log-probs",
        "docs/metrics.md#clip_fraction",
    ),
    "gradient_always_clipped": Rule(
        "the gradient is always clipped",
        updates.gradient_always_clipped,
        ("grad_norm",),
        "the clip decides the size of the updates: look at the scale of the scores, lower lr",
        "docs/metrics.md#grad_norm",
    ),
    "gradient_grows": Rule(
        "the gradient grows",
        updates.gradient_grows,
        ("grad_norm",),
        "lower lr; in a loop of your own, set the gradients to zero after each update",
        "docs/troubleshooting.md#the-loss-is-not-finite",
    ),
    "rate_too_high": Rule(
        "the learning rate is too high",
        updates.rate_too_high,
        ("loss",),
        "halve lr; lower epochs, or set target_kl",
        "docs/troubleshooting.md#the-kl-explodes",
    ),
    "rate_too_low": Rule(
        "nothing moves",
        updates.rate_too_low,
        ("loss",),
        "raise lr, or look for a part that is frozen by mistake",
        "docs/troubleshooting.md#the-loss-is-0-or-does-not-move",
    ),
    "warm_up_never_ends": Rule(
        "the warm-up never ends",
        updates.warm_up_never_ends,
        ("lr",),
        "count the schedule in updates, not in tokens or micro-batches",
        "docs/metrics.md#lr",
    ),
    "dead_critic": Rule(
        "the value function learns nothing",
        updates.dead_critic,
        ("explained_variance",),
        "try separate_value_model, value_warmup, a larger value_coef",
        "docs/metrics.md#explained_variance",
    ),
    "advantages_not_centred": Rule(
        "the whitened advantages have another mean than 0",
        updates.advantages_not_centred,
        ("policy_loss", "approx_kl"),
        "take mean and variance over the tokens of the completions alone, without padding",
        "docs/metrics.md#policy_loss",
    ),
    "dpo_starts_elsewhere": Rule(
        "policy and reference differ before the first update",
        rows.dpo_starts_elsewhere,
        ("loss", "margin"),
        "check that the reference reads the same rows, and that dropout is off",
        "docs/metrics.md#chosen_reward",
    ),
    "chosen_falls": Rule(
        "the chosen answers lose probability",
        rows.chosen_falls,
        ("chosen_reward", "margin"),
        "a smaller lr, fewer epochs, nll_coef 1, or the loss ipo",
        "docs/metrics.md#chosen_reward",
    ),
    "at_chance": Rule(
        "pairs are ranked like a coin would",
        rows.at_chance,
        ("accuracy", "margin"),
        "look for rows with chosen and rejected exchanged; raise lr or steps",
        "docs/troubleshooting.md#the-accuracy-stays-at-a-half",
    ),
    "overfits": Rule(
        "too many steps for the rows",
        rows.overfits,
        ("eval/loss",),
        "take the best checkpoint (final best), more rows, or fewer epochs",
        "docs/metrics.md#evalname",
    ),
    "loss_near_zero": Rule(
        "the loss is too good",
        rows.loss_near_zero,
        ("loss",),
        "look for a model that sees the token it predicts; else the rows are few and learned by heart",
        "docs/metrics.md#loss",
    ),
}


def examine(run: SeenRun) -> list[Finding]:
    """The findings of all rules, in the order of their steps."""
    record, found = Record.of(run), {}
    for step in looks(record):
        past = record.up_to(step)
        for name, rule in RULES.items():
            if name not in found and (evidence := rule.find(past)):
                found[name] = Finding(name, step, evidence)
    last = [replace(finding, lasting=RULES[name].find(record) is not None) for name, finding in found.items()]
    return sorted(last, key=lambda finding: finding.step)


def looks(record: Record) -> list[int]:
    """The steps at which the rules are called: at most `LOOKS`, and the last step."""
    steps = sorted({step for steps, _ in record.curves.values() for step in steps})
    count = min(LOOKS, len(steps))
    return [steps[(k + 1) * len(steps) // count - 1] for k in range(count)]


def silent(run: SeenRun) -> list[str]:
    """The rules that cannot fire, because the run records too little."""
    return [name for name, rule in RULES.items() if not set(rule.needs) <= run.metrics.keys()]
