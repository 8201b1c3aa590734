"""Supervised fine-tuning.

python examples/sft.py                      # the embedded task
python examples/sft.py --data rows.jsonl    # {prompt, response} or {messages}
"""

from minirlhf.algorithms import SFTConfig, SFTTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, open_stage
from minirlhf.jobs.sft import untrained_policy


@exits_cleanly
def main() -> None:
    with Job.open("sft", SFTConfig, needs=("sft",), help=__doc__) as job:
        stage = open_stage(job, "sft", "sft")
        if not stage.finished:
            policy = untrained_policy(job, stage)  # random weights, or --policy
            rows, held_out = job.rows("sft", policy.transformer.config)
            batches = stage.batches(rows)
            trainer = SFTTrainer(policy, job.tokenizer, job.config, updates=len(batches))
            run = stage.run(trainer, batches, evaluate=lambda: trainer.evaluate(held_out))
            for batch in run:
                run.record(trainer.step(batch))
        job.say(f"the model: {stage.folder / 'model'}")


if __name__ == "__main__":
    main()
