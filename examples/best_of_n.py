"""Best-of-n against PPO: the gold reward of both, at the same KL.

python examples/best_of_n.py                       # the embedded task, n <= 64
python examples/best_of_n.py --best_of 16 --data rows.jsonl
python examples/best_of_n.py --policy DIR --reward DIR       # your own models
"""

from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job
from minirlhf.jobs.best_of_n import DEFAULTS, BestOfNJobConfig, compare_with_ppo


@exits_cleanly
def main() -> None:
    options = {"after": ("sft", "reward"), "section": "ppo", "job": BestOfNJobConfig, "defaults": DEFAULTS}
    with Job.open("best_of_n", PPOConfig, help=__doc__, **options) as job:
        base = job.policy()
        reward, accuracy = job.reward(base)
        stage = job.stage(base, "prompts", reward=reward, values=True)
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            models = {"value_model": stage.value_model, "seed": job.seed}
            trainer = PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config, **models)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        after = stage.evaluate(stage.policy)
        job.report("PPO", before, after, reward_model_accuracy=accuracy)
        job.say(compare_with_ppo(stage, before, after))


if __name__ == "__main__":
    main()
