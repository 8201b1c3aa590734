"""Reward models of right and wrong: is the answer right (outcome), is each step right (process)?

torchrun examples/process_reward.py                     # reviews, sentence by sentence
torchrun examples/process_reward.py --kind outcome      # the same texts, one label for each answer
torchrun examples/process_reward.py --data rows.jsonl   # {prompt, steps: [text], labels: [true or false]}
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minirlhf.algorithms import ProcessRewardConfig, ProcessRewardTrainer
from minirlhf.algorithms.process_reward import encode_steps
from minirlhf.errors import InputError, exits_cleanly
from minirlhf.jobs import Job, JobConfig, open_stage
from minirlhf.jobs.models import adapt, choose_threads
from minirlhf.model import ProcessRewardModel
from minirlhf.tasks import Task, reviews
from minirlhf.training.table import table


@dataclass(frozen=True)
class ProcessRewardJobConfig(JobConfig):
    kind: Literal["process", "outcome"] = "process"  # [-] a label for each step, or a label for the whole answer
    rows: int = 20_000  # [rows] of the embedded task


def steps_task(job: ProcessRewardJobConfig) -> Task:
    """A task whose SFT rows are {prompt, steps, labels, response}."""
    if job.data is None:
        rows, held_out = reviews.step_rows(job.rows, job.seed), reviews.step_rows(1024, job.seed, held_out=True)
    else:
        rows = read_labelled(Path(job.data))
        held_out, rows = rows[: len(rows) // 20 + 1], rows[len(rows) // 20 + 1 :]
    if job.kind == "outcome":
        rows, held_out = ([as_outcome(row) for row in part] for part in (rows, held_out))
    rows = [{**row, "response": "".join(row["steps"])} for row in rows]
    return Task("steps", rows, [], [], held_out, [], [])


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
    options = {"job": ProcessRewardJobConfig, "task": steps_task}
    with Job.open("process_reward", ProcessRewardConfig, help=__doc__, **options) as job:
        stage = open_stage(job, "process_reward", "process_reward")
        model = adapt(ProcessRewardModel(job.base().transformer), stage.settings, job.device)
        choose_threads(model, job.common, job.device)
        context = model.config.max_position_embeddings
        rows, held_out = (encode_steps(job.tokenizer, part, context) for part in (job.task.sft, job.task.held_out_sft))
        batches = stage.batches(rows, "process")
        trainer = ProcessRewardTrainer(model, job.tokenizer, job.config, updates=len(batches))
        before = trainer.evaluate(held_out)
        run = stage.run(trainer, batches, evaluate=lambda: trainer.evaluate(held_out))
        for batch in run:
            run.record(trainer.step(batch))
        after = trainer.evaluate(held_out)

        labels = [label for row in job.task.held_out_sft for label in row["labels"]]
        always_the_same = max(sum(labels), len(labels) - sum(labels)) / len(labels)
        header = ["on held-out labels", "before", "after", "always the same"]
        cells = ["accuracy", before["accuracy"], after["accuracy"], always_the_same]
        job.say(f"\n{table(header, [cells])}\n\neverything is in {job.folder}")


if __name__ == "__main__":
    main()
