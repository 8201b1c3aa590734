"""A job in three sentences: the work, the result, the price."""

from __future__ import annotations

from minirlhf.seeing.reading import SeenJob, SeenRun

# Measures of a result, the best first: name in summary.json and behind eval/ -> words.
RESULTS = {
    "gold_reward": "the gold reward",
    "model_reward": "the reward model's score",
    "accuracy": "the accuracy",
    "loss": "the loss",
}
# Metrics that show the price of a result.
PRICES = {"kl": "the KL to the reference", "entropy": "the entropy", "response_length": "the length of answers"}
UNITS = {"kl": " nats", "entropy": " nats per token", "response_length": " tokens"}


def sentences(job: SeenJob) -> list[str]:
    """At most three sentences about the job, as far as its files say so."""
    return [text for text in (_work(job), _result(job), _price(job.runs[-1])) if text]


def duration(seconds: float) -> str:
    """ "48 s", "2 min 56 s", "3 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def number(value: float) -> str:
    """Three decimals, or four digits of a large number."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"


def _work(job: SeenJob) -> str:
    done = [_steps(run) for run in job.runs]
    listed = " and ".join([", ".join(done[:-1]), done[-1]] if len(done) > 1 else done)
    known = [run.seconds for run in job.runs if run.seconds is not None]
    time = f" in {duration(sum(known))}" if known else ""
    open_runs = [run.name for run in job.runs if not run.finished]
    end = f"{', '.join(open_runs)} {'has' if len(open_runs) == 1 else 'have'} not finished" if open_runs else "finished"
    return f"{listed} ran{time}; {end if open_runs else 'all of it finished'}."


def _steps(run: SeenRun) -> str:
    planned = f" of {run.planned:,}" if run.planned and run.planned != run.steps else ""
    return f"{run.name} ({run.steps:,}{planned} steps)"


def _result(job: SeenJob) -> str:
    before, after = (part if isinstance(part := job.summary.get(key), dict) else {} for key in ("before", "after"))
    changes = [
        f"{words} {_change(before[name], after[name])}"
        for name, words in RESULTS.items()
        if _is_number(before.get(name)) and _is_number(after.get(name))
    ]
    if changes:
        return f"On held-out prompts {' and '.join(changes)}."
    run = job.runs[-1]
    for name, words in RESULTS.items():
        series = run.metrics.get(f"eval/{name}")
        if series and series.first and series.last:
            best = series.lowest if name == "loss" else series.highest
            change = _change(series.first[1], series.last[1])
            return (
                f"On held-out rows {words} of {run.name} {change}; the best was {number(best[1])} at step {best[0]:,}."
            )
    for name in ("score_mean", "accuracy", "loss"):
        if (series := run.metrics.get(name)) and series.first and series.last:
            return f"In {run.name}, {name} {_change(series.first[1], series.last[1])}; no held-out rows were evaluated."
    return ""


def _price(run: SeenRun) -> str:
    parts = [
        f"{words} {_change(series.first[1], series.last[1])}{UNITS[name]}"
        for name, words in PRICES.items()
        if (series := run.metrics.get(name)) and series.first and series.last
    ]
    text = ", ".join(parts)
    return f"In the training batches of {run.name}, {text}." if text else ""


def _change(before: float, after: float) -> str:
    old, new = number(before), number(after)
    if old == new:
        return f"stayed at {new}"
    return f"{'rose' if after > before else 'fell'} from {old} to {new}"


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300
