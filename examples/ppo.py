"""RLHF from end to end: tokenizer, SFT, reward model, PPO, and a report.

python examples/ppo.py                             # the embedded task
python examples/ppo.py --data rows.jsonl           # your own preference pairs
python examples/ppo.py --policy DIR --reward DIR   # PPO alone, your own models
"""

from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, PipelineConfig


@exits_cleanly
def main() -> None:
    with Job.open("ppo", PPOConfig, after=("sft", "reward"), job=PipelineConfig, help=__doc__) as job:
        base = job.policy()  # --policy, or SFT on the task's rows
        reward, accuracy = job.reward(base)  # --reward, the task's own check, or a reward model trained on pairs
        # the policy to train, its frozen reference, training prompts, held-out prompts
        stage = job.stage(base, "prompts", reward=reward, values=True)
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            options = {"value_model": stage.value_model, "seed": job.seed, "environment": job.environment}
            trainer = PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config, **options)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report("PPO", before, stage.evaluate(stage.policy), reward_model_accuracy=accuracy)


if __name__ == "__main__":
    main()
