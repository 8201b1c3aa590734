"""A reward model from preference pairs.

python examples/reward_model.py                     # the embedded task
python examples/reward_model.py --data pairs.jsonl  # {prompt, chosen, rejected}
python examples/reward_model.py --policy DIR        # from your own SFT model
"""

from minirlhf.algorithms import RewardConfig, RewardTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, open_stage
from minirlhf.jobs.reward_model import untrained_reward_model


@exits_cleanly
def main() -> None:
    options = {"section": "reward_model", "needs": ("pairs",)}
    with Job.open("reward", RewardConfig, help=__doc__, **options) as job:
        stage = open_stage(job, "reward", "reward_model")
        model = untrained_reward_model(job, stage, job.base().transformer)
        rows, held_out = job.rows("pairs", model.config)
        batches = stage.batches(rows)
        trainer = RewardTrainer(model, job.tokenizer, job.config, updates=len(batches))
        if not stage.finished:
            run = stage.run(trainer, batches, evaluate=lambda: trainer.evaluate(held_out))
            for batch in run:
                run.record(trainer.step(batch))
        accuracy = trainer.evaluate(held_out).get("accuracy")
        job.say(f"accuracy on held-out pairs: {accuracy}; the model: {stage.folder / 'model'}")


if __name__ == "__main__":
    main()
