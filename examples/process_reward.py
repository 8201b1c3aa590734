"""Reward models: is the answer right (outcome), is each step right (process)?

python examples/process_reward.py                   # the steps are sentences
python examples/process_reward.py --kind outcome    # one label for each answer
python examples/process_reward.py --data rows.jsonl # {prompt, steps, labels}
"""

import time

from minirlhf.algorithms import ProcessRewardConfig, ProcessRewardTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, open_stage
from minirlhf.jobs.models import choose_threads
from minirlhf.jobs.prepare import prepare
from minirlhf.jobs.programs import ProcessRewardJobConfig, load_steps
from minirlhf.jobs.steps import encoded_steps
from minirlhf.model import ProcessRewardModel
from minirlhf.training.table import table


@exits_cleanly
def main() -> None:
    options = {"job": ProcessRewardJobConfig, "task": load_steps, "needs": ("steps",)}
    with Job.open("process_reward", ProcessRewardConfig, help=__doc__, **options) as job:
        stage = open_stage(job, "process_reward", "process_reward")
        model = prepare(ProcessRewardModel(job.base().transformer), stage.settings, job.device)
        choose_threads(model, job.common, job.device)
        rows, held_out = encoded_steps(job, model.config.max_position_embeddings)
        batches = stage.batches(rows, "process")
        trainer = ProcessRewardTrainer(model, job.tokenizer, job.config, updates=len(batches))
        before = trainer.evaluate(held_out)
        run = stage.run(trainer, batches, evaluate=lambda: trainer.evaluate(held_out))
        for batch in run:
            run.record(trainer.step(batch))
        after = trainer.evaluate(held_out)

        labels = [label for row in held_out for label in row.source["labels"]]
        always_the_same = max(sum(labels), len(labels) - sum(labels)) / len(labels) if labels else None
        header = [f"on {len(labels)} held-out labels", "before", "after", "always the same"]
        cells = ["accuracy", before.get("accuracy"), after.get("accuracy"), always_the_same]
        seconds = time.perf_counter() - job.started
        job.say(f"\n{table(header, [cells])}\n\n{seconds:.0f} s; everything is in {job.folder}")


if __name__ == "__main__":
    main()
