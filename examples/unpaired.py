"""Learning from single answers that people liked or not: KTO, BCO.

python examples/unpaired.py    # the embedded task: its pairs, split in two
python examples/unpaired.py --unpaired.loss bco
python examples/unpaired.py --data rows.jsonl    # {prompt, response, label}
"""

from minirlhf.algorithms import UnpairedConfig, UnpairedTrainer
from minirlhf.algorithms.unpaired import single_rows
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import win_rate
from minirlhf.jobs import Job
from minirlhf.jobs.programs import load_unpaired


@exits_cleanly
def main() -> None:
    options = {"after": ("sft",), "needs": ("unpaired",), "task": load_unpaired}
    with Job.open("unpaired", UnpairedConfig, help=__doc__, **options) as job:
        base = job.policy()
        model = base.transformer.config
        rows, held_out = (single_rows(part, model.max_position_embeddings) for part in job.rows("unpaired", model))
        stage = job.stage(base, "unpaired", (rows, held_out))
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            updates = job.config.steps_for(len(rows))
            trainer = UnpairedTrainer(stage.policy, stage.reference, job.tokenizer, job.config, updates, rows=rows)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        after = stage.evaluate(stage.policy)
        job.report(job.config.loss, before, after, win_rate=win_rate(before, after))


if __name__ == "__main__":
    main()
