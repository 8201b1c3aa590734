"""Run folders as `Run` writes them, made in a moment."""

import json
from pathlib import Path

from minirlhf.manifest import write_manifest

STARTED = "2026-01-0{day} 12:00:00  started at step 0 of {steps}\n"


def lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_run(folder: Path, steps=20, kind="ppo", day=1, samples=4, planned=None, finished=True, **settings) -> Path:
    """A run whose kl is step / 10 and whose gold reward, evaluated at every fifth step, is step / 100."""
    folder.mkdir(parents=True)
    values = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    (folder / "config.toml").write_text(f'output = "x"\nseed = 0\n\n[model]\nhidden_size = 8\n\n[{kind}]\n{values}')
    rows = [{"step": k, "loss": 1 / (k + 1), "kl": (k + 1) / 10, "score_mean": k / 2} for k in range(steps)]
    for row in rows[4::5]:
        row["eval/gold_reward"] = (row["step"] + 1) / 100
    lines(folder / "metrics.jsonl", rows)
    lines(folder / "timings.jsonl", [{"step": k, "seconds": 0.5, "memory_mb": 100 + k} for k in range(steps)])
    texts = [
        {"step": k, "prompt": f"p{i % 2}", "completion": f"answer {i} of step {k}", "score": k + i / 10}
        for k in range(steps)
        for i in range(samples)
    ]
    lines(folder / "samples.jsonl", texts)
    (folder / "log.txt").write_text(STARTED.format(day=day, steps=planned or steps))
    if finished:
        (folder / "model").mkdir()
        write_manifest(folder / "model")
    return folder


def make_pipeline(folder: Path, **settings) -> Path:
    make_run(folder / "sft", kind="sft", day=1)
    make_run(folder / "reward", kind="reward_model", day=2)
    make_run(folder / "ppo", kind="ppo", day=3, **settings)
    summary = {"seconds": 30.0, "before": {"gold_reward": -0.25}, "after": {"gold_reward": 0.75}, "kl": 2.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
