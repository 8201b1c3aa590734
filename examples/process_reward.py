"""Reward models of right and wrong: is the answer right (outcome), is each step right (process)?

torchrun examples/process_reward.py                     # reviews, sentence by sentence
torchrun examples/process_reward.py --kind outcome      # the same texts, one label each
torchrun examples/process_reward.py --data rows.jsonl   # {prompt, steps: [text], labels: [true or false]}
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minirlhf import job
from minirlhf.algorithms.process_reward import ProcessRewardConfig, ProcessRewardTrainer, encode_steps
from minirlhf.data import Batches
from minirlhf.errors import InputError, exits_cleanly
from minirlhf.model import LoRAConfig, ModelConfig, ProcessRewardModel
from minirlhf.tasks import Task, reviews
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.table import table
from minirlhf.training.vocabulary import metrics_help


@dataclass(frozen=True)
class Job(job.JobConfig):
    kind: Literal["process", "outcome"] = "process"  # [-] a label on each step, or one on the whole answer
    rows: int = 20_000  # [rows] of the embedded task


SETTINGS = {
    "job": Job,
    "model": ModelConfig,
    "lora": LoRAConfig,
    "process_reward": ProcessRewardConfig,
    "run": RunSettings,
}


def load_rows(common: Job) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows)."""
    if common.data is None:
        rows = reviews.step_rows(common.rows, common.seed)
        held_out = reviews.step_rows(1024, common.seed, held_out=True)
    else:
        rows = read_labelled(Path(common.data))
        held_out, rows = rows[: len(rows) // 20 + 1], rows[len(rows) // 20 + 1 :]
    if common.kind == "outcome":
        rows, held_out = ([as_outcome(row) for row in part] for part in (rows, held_out))
    return rows, held_out


def as_outcome(row: dict) -> dict:
    """All steps as one, with one label: is everything right?"""
    return {**row, "steps": ["".join(row["steps"])], "labels": [all(row["labels"])]}


def read_labelled(path: Path) -> list[dict]:
    """Raises: InputError, naming the line, for anything but {prompt, steps, labels}, or if there is no such file."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: needed a JSONL file ({error}); check the path") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not all(label in (True, False) for label in row["labels"]):
                raise ValueError("a label is neither true nor false")
            rows.append({"prompt": str(row["prompt"]), "steps": list(row["steps"]), "labels": list(row["labels"])})
        except (ValueError, KeyError, TypeError) as error:
            needed = '{"prompt": text, "steps": [text], "labels": [true or false]}'
            raise InputError(f"{path}: line {number}: needed {needed}, got {line[:60]!r} ({error})") from None
    return rows


@exits_cleanly
def main() -> None:
    started = time.perf_counter()
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common, config = settings["job"], settings["process_reward"]
    job.check_base(common)
    with job.session_of(settings) as device:
        folder = job.open_output(common, "process_reward")
        rows, held_out = load_rows(common)
        texts = [{"prompt": row["prompt"], "response": "".join(row["steps"])} for row in rows]
        tokenizer = job.load_tokenizer(common, Task("steps", texts, [], [], [], [], []), folder)
        base = job.first_policy(common, settings["model"], tokenizer).transformer
        model = job.adapt(ProcessRewardModel(base), settings, device)
        job.choose_threads(model, common, device)
        context = base.config.max_position_embeddings
        encoded, held_out_rows = (encode_steps(tokenizer, part, context) for part in (rows, held_out))

        steps = job.steps_for(config.steps, config.max_epochs, len(encoded), config.batch_size)
        trainer = ProcessRewardTrainer(model, tokenizer, config, updates=steps)
        before = trainer.evaluate(held_out_rows)
        batches = Batches(encoded, batch_size=config.batch_size, steps=steps, seed=common.seed, stream="process")
        run = Run(
            job.stage_run(settings, folder, "process_reward"),
            trainer,
            batches,
            settings=settings,
            tokenizer=tokenizer,
            evaluate=lambda: trainer.evaluate(held_out_rows),
        )
        for batch in run:
            run.record(trainer.step(batch))
        after = trainer.evaluate(held_out_rows)
        labels = [label for row in held_out for label in row["labels"]]
        share = sum(labels) / len(labels)
        shown = [["accuracy", before["accuracy"], after["accuracy"], max(share, 1 - share)]]
        job.say(f"\n{table(['on held-out labels', 'before', 'after', 'always the same'], shown)}\n")
        job.say(f"{time.perf_counter() - started:.0f} s; everything is in {folder}")


if __name__ == "__main__":
    main()
