"""Rules about distances: policy and reference, policy and sampler. Each returns its evidence in words, or None."""

from __future__ import annotations

from minirlhf.seeing.rules.record import Record, change_of, error_of, mean
from minirlhf.seeing.story import number


def kl_explodes(r: Record) -> str | None:
    """A token's KL above the entropy at the start: the reference finds the texts less likely than its own texts."""
    kl, lengths, entropy = r.last("kl", 3), r.last("response_length", 3), r.values("entropy")
    if not kl or not lengths or len(entropy) < 5:
        return None
    token, start = mean(kl) / max(mean(lengths), 1e-9), mean(entropy[:3])
    if mean(kl) < 5 or token < 1.2 * start:
        return None
    return (
        f"the KL is {number(mean(kl))} nats per sequence, {number(token)} per token; the entropy of the reference was "
        f"{number(start)}, so the texts are no longer texts of the reference"
    )


def kl_negative(r: Record) -> str | None:
    values = r.last("kl", 10) if r.values("score_mean") else []
    if not values or mean(values) > -0.05 or mean(values) + 4 * error_of(values) > 0:
        return None
    return f"the mean of the last 10 estimates of the KL is {number(mean(values))} nats, too far below 0 for noise"


def kl_stays_zero(r: Record) -> str | None:
    """The reference moves with the policy."""
    kl, entropy = r.values("kl"), change_of(r.values("entropy"))
    score = change_of(r.values("score_mean"))
    if len(kl) < 20 or not entropy or not score or max(map(abs, kl)) > 0.01:
        return None
    if abs(score.sigmas) < 6 or abs(entropy.by) < 0.05 * entropy.before:
        return None
    return (
        f"the KL stays at 0 (at most {max(map(abs, kl)):.1e} nats), but score_mean went from {number(score.before)} to "
        f"{number(score.after)} and the entropy from {number(entropy.before)} to {number(entropy.after)}"
    )


def sampler_and_trainer_disagree(r: Record) -> str | None:
    """Before any update policy, reference and sampler are the same model."""
    gaps = r.last("sampler_gap", 5)
    if gaps and mean(gaps) > 0.1:
        return f"the log-probs of sampler and trainer differ by {number(mean(gaps))} nats per token (sampler_gap)"
    kl, lengths = r.values("kl"), r.values("response_length")
    if kl and lengths and r.steps("kl")[0] == r.steps("response_length")[0] == 1 and abs(kl[0]) > 0.001 * lengths[0]:
        return (
            f"at step 1 the policy is still the reference, but the KL is {number(kl[0])} nats per sequence of "
            f"{number(lengths[0])} tokens instead of 0"
        )
    first, rates = r.values("approx_kl")[:2], r.values("lr")[:2]
    begins = r.steps("approx_kl")[:2] == r.steps("lr")[:2] == [1, 2]
    if begins and 1.5 * rates[0] < rates[1] and first[0] > 0.002 and first[1] < 2 * first[0]:
        return (
            f"the updates of step 1 moved the policy by {number(first[0])} nats per token (approx_kl) and those of "
            f"step 2, at a higher rate, by {number(first[1])}: so most of it lies between sampler and trainer"
        )
    moved, updates = r.last("approx_kl", 5), r.last("updates", 5)
    if moved and updates and max(updates) == 1 and mean(moved) > 0.001:
        return (
            "each step makes one update, so its ratio compares sampler and trainer alone, but approx_kl is "
            f"{number(mean(moved))} nats per token instead of 0"
        )
    return None


def ratio_never_moves(r: Record) -> str | None:
    """Several updates a step, and yet no token's probability changes between them."""
    updates, ratios, moved = r.last("updates", 10), r.last("ratio", 10), r.last("approx_kl", 10)
    warm = r.setting("value_warmup", 0)
    if not updates or not ratios or not moved or min(updates) < 2 or r.steps("ratio")[-10] <= warm:
        return None
    if max(abs(x - 1) for x in ratios) > 1e-6 or max(moved) > 1e-9:
        return None
    return f"each step makes {updates[-1]:.0f} updates, but the ratio stays exactly 1 in the last 10 steps"


def clip_too_often(r: Record) -> str | None:
    values = r.last("clip_fraction", 5)
    if not values or mean(values) < 0.3:
        return None
    return f"in the last 5 steps the clip took the gradient from {mean(values):.0%} of the tokens"


def clip_never(r: Record) -> str | None:
    values, moved = r.last("clip_fraction", 10), r.last("approx_kl", 10)
    if not values or not moved or max(values) > 0 or mean(moved) < 0.02:
        return None
    return (
        f"in the last 10 steps the clip took no gradient at all, although the updates moved the policy by "
        f"{number(mean(moved))} nats per token"
    )
