"""Rules about the texts of a policy and their scores. Each returns its evidence in words, or None."""

from __future__ import annotations

from minirlhf.seeing.rules.record import Record, change_of, mean
from minirlhf.seeing.story import number

MISSING = 1.0  # default of missing_eos_penalty


def score_up_gold_down(r: Record) -> str | None:
    """Gold lies below its best, in two evaluations in a row, while the score lies above its value at that best."""
    gold, steps = r.values("eval/gold_reward"), r.steps("eval/gold_reward")
    name = "eval/model_reward" if r.values("eval/model_reward") else "score_mean"
    score = dict(zip(r.steps(name), r.values(name), strict=True))
    if len(gold) < 3 or not {*steps} <= score.keys():
        return None
    best = max(range(len(gold)), key=gold.__getitem__)
    fall = gold[best] - max(gold[-2:])
    rise = score[steps[-1]] - score[steps[best]]
    if best > len(gold) - 3 or fall < 0.05 * max(1.0, abs(gold[best])) or rise <= 0:
        return None
    return (
        f"since step {steps[best]} {name} rose from {number(score[steps[best]])} to {number(score[steps[-1]])} while "
        f"eval/gold_reward fell from {number(gold[best])} to {number(gold[-1])}"
    )


def objective_falls(r: Record) -> str | None:
    """score - kl_coef * KL - penalty for missing ends: any useful training raises it above its start."""
    if len(scores := r.values("score_mean")) < 20:
        return None
    kl = r.values("kl") or [0.0] * len(scores)
    in_reward = r.kind == "ppo" or r.settings.get(f"{r.kind}.kl_in") == "reward"  # a KL in the loss is biased
    price = (in_reward and r.values("kl_coef")) or [0.0] * len(scores)
    ended, penalty = r.values("ended") or [1.0] * len(scores), r.setting("missing_eos_penalty", MISSING)
    if not len(scores) == len(kl) == len(price) == len(ended):
        return None
    gains = [s - c * k - penalty * (1 - e) for s, c, k, e in zip(scores, price, kl, ended, strict=True)]
    change = change_of(gains)
    if not change or change.sigmas > -5 or change.by > -0.02 * max(1.0, abs(change.before)):
        return None
    return (
        "the objective (score_mean, less kl_coef * kl, less the penalty for missing ends) fell from "
        f"{number(change.before)} in the first steps to {number(change.after)}"
    )


def entropy_collapses(r: Record) -> str | None:
    """The entropy is lost, and different prompts get the same text."""
    entropy, scores = r.values("entropy"), r.values("score_mean")
    if len(entropy) < 10 or not scores:
        return None
    first, last = mean(entropy[:3]), mean(entropy[-3:])
    rows = [row for row in r.newest_samples() if isinstance(row.get("completion"), str)]
    texts = {(str(row.get("prompt")), row["completion"]) for row in rows}
    prompts, answers = {prompt for prompt, _ in texts}, {answer for _, answer in texts}
    if last > 0.05 * first or len(prompts) < 2 or len(answers) > len(prompts) / 2:
        return None
    return (
        f"the entropy fell from {number(first)} to {number(last)} nats per token, and {len(prompts)} prompts got "
        f"{len(answers)} different text{'s' * (len(answers) > 1)}"
    )


def length_drifts(r: Record) -> str | None:
    change = change_of(r.values("response_length"), least=10)
    if not change or abs(change.sigmas) < 6 or 0.5 * change.before < change.after < 1.5 * change.before:
        return None
    if abs(change.by) < 2:
        return None
    return f"the mean length of a completion went from {number(change.before)} to {number(change.after)} tokens"


def equal_scores(r: Record) -> str | None:
    """No completion is better than another, and the score has not risen: nothing is solved, and nothing is learned."""
    spread, groups = r.last("score_std", 5), r.last("equal_groups", 5)
    change = change_of(r.values("score_mean"))
    if not change or change.sigmas > 3:
        return None
    if groups and mean(groups) > 0.9:
        return f"in {mean(groups):.0%} of the groups all completions have the same score, and the score does not rise"
    if spread and max(spread) < 1e-6:
        return f"all completions of the last 5 steps have the score {number(r.last('score_mean', 1)[0])}"
    return None


def never_ends(r: Record) -> str | None:
    """Few texts end, although ends are asked for: by a penalty, or because most texts ended at the start."""
    ended, change = r.values("ended"), change_of(r.values("ended"))
    penalty = r.setting("missing_eos_penalty", MISSING) > 0
    if not change or len(ended) < 20 or not (penalty or max(ended[:3]) > 0.5):
        return None
    if max(ended[-10:]) <= 0.01:
        return f"in the last 10 steps {max(ended[-10:]):.1%} of the completions ended; all others reached max_tokens"
    if change.after < 0.5 * change.before and change.sigmas < -6:
        return f"the share of completions that end fell from {change.before:.0%} to {change.after:.0%}"
    if penalty and len(ended) >= 40 and change.after < 0.5 and change.sigmas < 3:
        return f"{change.after:.0%} of the completions end, no more than at first, although missing ends cost score"
    return None


def score_stays(r: Record) -> str | None:
    """Nothing is learned, although the policy moves."""
    change, planned = change_of(r.values("score_mean")), r.setting("steps", 0)
    if not change or len(r.values("score_mean")) < max(40, planned / 2) or abs(change.sigmas) > 3:
        return None
    return f"score_mean stayed at {number(change.after)} (at first {number(change.before)})"
