"""Rules about gradients, learning rates and the value function. Each returns its evidence in words, or None."""

from __future__ import annotations

from itertools import pairwise

from minirlhf.seeing.rules.record import Record, change_of, mean
from minirlhf.seeing.story import number


def gradient_always_clipped(r: Record) -> str | None:
    values, most = r.last("grad_norm", 30), r.setting("max_grad_norm", 1.0)
    if not values or min(values) < most or sorted(values)[15] < 3 * most:
        return None
    return (
        f"in all of the last 30 steps the gradient was clipped: its median is {number(sorted(values)[15])}, "
        f"max_grad_norm is {number(most)}"
    )


def gradient_grows(r: Record) -> str | None:
    change = change_of(r.values("grad_norm"))
    if not change or change.after < 10 * change.before or change.sigmas < 4:
        return None
    return f"the length of the gradient grew from {number(change.before)} to {number(change.after)}"


def rate_too_high(r: Record) -> str | None:
    moved = r.last("approx_kl", 5) if r.values("score_mean") else []
    if moved and mean(moved) > 0.1:
        return f"each step moved the policy by {number(mean(moved))} nats per token (approx_kl, last 5 steps)"
    losses = r.values("loss") if not r.values("score_mean") else []
    change = change_of(losses, least=10)
    if change and change.sigmas > 4 and change.after > 1.1 * change.before and change.before > 0:
        return f"the loss rose from {number(change.before)} to {number(change.after)}"
    return None


def rate_too_low(r: Record) -> str | None:
    """Neither the policy nor the loss has moved."""
    if r.values("score_mean"):
        kl, entropy = r.last("kl", 10), change_of(r.values("entropy"))
        score = change_of(r.values("score_mean"))
        if not kl or not entropy or not score or abs(score.sigmas) > 3 or len(r.values("kl")) < 20:
            return None
        if abs(mean(kl)) > 0.02 or abs(entropy.by) > 0.01 * abs(entropy.before):
            return None
        return (
            f"after {len(r.values('kl'))} steps the policy is still its reference: the KL is {number(mean(kl))} "
            f"and the entropy {number(entropy.after)} (at first {number(entropy.before)})"
        )
    change = change_of(r.values("loss"), least=30)
    if not change or change.before <= 0 or abs(change.by) > 0.01 * change.before or abs(change.sigmas) > 3:
        return None
    return f"the loss stayed at {number(change.after)} (at first {number(change.before)})"


def warm_up_never_ends(r: Record) -> str | None:
    rates, half = r.values("lr"), max(40, r.setting("steps", 0) / 2)
    if len(rates) < half or r.setting("warmup", 0.05) > 0.5 or any(x >= y for x, y in pairwise(rates)):
        return None
    return f"the learning rate has risen in all of {r.steps('lr')[-1]} steps, to {rates[-1]:.1e}"


def dead_critic(r: Record) -> str | None:
    """A value function may be worse than a constant while the scores rise in the first steps."""
    values = r.values("explained_variance")
    if len(values) >= 20 and max(map(abs, values[-10:])) < 0.001:
        return "explained_variance stays at 0: the value function is a constant"
    if len(values) >= 40 and max(values[-20:]) < 0 and mean(values[-20:]) < -0.25:
        return f"explained_variance is {number(mean(values[-20:]))}: the value function is worse than a constant"
    return None


def advantages_not_centred(r: Record) -> str | None:
    """Whitened advantages have mean 0, so at a ratio near 1 the policy loss is near 0 too."""
    losses, moved = r.last("policy_loss", 10), r.last("approx_kl", 10)
    whitened = r.kind == "ppo" and r.settings.get("ppo.whiten_advantages", True)
    if not whitened or not losses or not moved or mean(moved) > 0.02 or mean([abs(x) for x in losses]) < 0.1:
        return None
    return f"policy_loss is {number(mean([abs(x) for x in losses]))} away from 0 in the last 10 steps"
