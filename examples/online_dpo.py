"""Preference learning on the policy's own answers: Online DPO, XPO, Nash-MD.

python examples/online_dpo.py    # the embedded task, its reward model as judge
python examples/online_dpo.py --online_dpo.algorithm nash_md
python examples/online_dpo.py --policy DIR --reward DIR   # from your own models
"""

from minirlhf.algorithms import OnlineDPOConfig, OnlineDPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import win_rate
from minirlhf.jobs import Job, RLJobConfig
from minirlhf.rewards import judge_by


@exits_cleanly
def main() -> None:
    with Job.open("online_dpo", OnlineDPOConfig, after=("sft", "reward"), job=RLJobConfig, help=__doc__) as job:
        base = job.policy()
        reward, accuracy = job.reward(base)
        stage = job.stage(base, "prompts", reward=reward)
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            # the judge prefers the answer with the higher score; an environment rewards by itself
            models = stage.policy, stage.reference, judge_by(reward) if reward else None
            options = {"seed": job.seed, "environment": job.environment}
            trainer = OnlineDPOTrainer(*models, job.tokenizer, job.config, **options)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        after = stage.evaluate(stage.policy)
        measures = {"win_rate": win_rate(before, after), "reward_model_accuracy": accuracy}
        job.report(job.config.algorithm, before, after, **measures)


if __name__ == "__main__":
    main()
