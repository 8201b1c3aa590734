"""Rules about given rows: SFT, reward models, preferences. Each returns its evidence in words, or None."""

from __future__ import annotations

import math

from minirlhf.seeing.rules.record import Record, change_of, mean
from minirlhf.seeing.story import number

FREE = ("orpo", "cpo", "simpo", "alphapo")  # losses of DPO's family without a reference


def has_reference(r: Record) -> bool:
    """False for a loss without a reference: its margin is one of log-probs, and begins anywhere but at 0."""
    return r.settings.get("dpo.loss") not in FREE and not r.settings.get("dpo.reference_free")


def chosen_falls(r: Record) -> str | None:
    """In nats, because the implicit reward is beta times the log-ratio."""
    chosen, margin = r.last("chosen_reward", 5), change_of(r.values("margin"))
    beta = r.setting("beta", 0.1)
    if not chosen or not margin or margin.by <= 0 or not has_reference(r):
        return None
    if beta <= 0 or mean(chosen) > -10 * beta:
        return None
    return (
        f"the margin grew from {number(margin.before)} to {number(margin.after)}, but the chosen answers too lost "
        f"probability: chosen_reward is {number(mean(chosen))}, {number(-mean(chosen) / beta)} nats less log-prob"
    )


def at_chance(r: Record) -> str | None:
    """Pairs are ranked like a coin would, or worse."""
    if not (r.values("margin") and r.values("accuracy")) or r.values("win_prob"):
        return None
    held_out = r.values("eval/accuracy")
    late = held_out[-2:] if len(held_out) >= 3 else []
    trained = r.values("accuracy")
    if len(trained) < 40 or not (late or len(trained) >= 60):
        return None
    name, found = ("eval/accuracy", max(late)) if late else ("accuracy", mean(trained[-20:]))
    if found > 0.55 or mean(trained[-20:]) > 0.6:
        return None
    return f"{name} is {number(found)} after {r.steps('accuracy')[-1]} steps; a coin has 0.5"


def overfits(r: Record) -> str | None:
    """The held-out loss rises from its lowest value, in two evaluations in a row, while the training loss falls."""
    held_out, steps = r.values("eval/loss"), r.steps("eval/loss")
    if len(held_out) < 4 or r.values("score_mean"):
        return None
    best = min(range(len(held_out)), key=held_out.__getitem__)
    trained = [x for step, x in zip(r.steps("loss"), r.values("loss"), strict=True) if step >= steps[best]]
    change = change_of(trained, least=3)
    if best > len(held_out) - 3 or min(held_out[-2:]) < 1.2 * held_out[best] or not change or change.by >= 0:
        return None
    return (
        f"since step {steps[best]} the loss on held-out rows rose from {number(held_out[best])} to "
        f"{number(held_out[-1])} while the training loss fell from {number(change.before)} to {number(change.after)}"
    )


def loss_near_zero(r: Record) -> str | None:
    """Texts have an entropy: a model that is never surprised knows them by heart, or sees the answers."""
    losses = r.last("loss", 5)
    if r.kind != "sft" or r.values("score_mean") or not losses or mean(losses) > 0.02:
        return None
    return f"the loss is {number(mean(losses))} nats per token: the model is never surprised by its rows"


def dpo_starts_elsewhere(r: Record) -> str | None:
    """Before the first update the policy is the reference: all log-ratios are 0, and -log sigmoid(0) = log 2."""
    losses, margins = r.values("loss"), r.values("margin")
    if r.kind != "dpo" or not losses or r.steps("loss")[0] != 1 or not margins or not has_reference(r):
        return None
    has_more = r.setting("nll_coef", 0) or r.settings.get("dpo.weighting")
    plain = r.settings.get("dpo.loss", "sigmoid") == "sigmoid" and not has_more
    if plain and abs(losses[0] - math.log(2)) > 0.01:
        return (
            f"at step 1 the policy is still the reference, but the loss is {number(losses[0])} instead of log 2 = 0.693"
        )
    if abs(margins[0]) > 0.01:
        return f"at step 1 the policy is the reference, but the margin is {number(margins[0])} instead of 0"
    return None
