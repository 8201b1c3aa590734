"""PPO on one frozen base: policy, value model and reward model are its adapters.

python examples/multi_adapter.py    # the embedded task; SFT makes the base
python examples/multi_adapter.py --policy DIR --data pairs.jsonl
python examples/multi_adapter.py --policy DIR --train qlora    # base in 4 bits
"""

from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, open_stage
from minirlhf.jobs.given_models import scorer_of
from minirlhf.jobs.programs import MultiAdapterJobConfig, four_models, stage_on_one_base, with_own_head
from minirlhf.jobs.reward_model import train_reward_model
from minirlhf.pretrained import load_adapter
from minirlhf.training import ADAPTER


@exits_cleanly
def main() -> None:
    options = {"after": ("sft", "reward"), "needs": ("pairs",), "job": MultiAdapterJobConfig}
    with Job.open("multi_adapter", PPOConfig, section="ppo", help=__doc__, **options) as job:
        job = job if job.common.policy else with_own_head(job)
        base = job.policy().transformer
        models = four_models(job, base)
        job.say(models.sizes())

        stage = open_stage(job, "reward", "reward_model")
        if stage.finished:
            load_adapter(models.reward, stage.folder / ADAPTER, "reward")
        accuracy = train_reward_model(job, stage, models.reward)
        reward = scorer_of(job, models.reward)

        stage = stage_on_one_base(job, models, reward)
        before = stage.evaluate(models.reference)
        if not stage.finished:
            options = {"value_model": models.value, "seed": job.seed}
            trainer = PPOTrainer(models.policy, models.reference, reward, job.tokenizer, job.config, **options)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report("PPO", before, stage.evaluate(models.policy), reward_model_accuracy=accuracy)


if __name__ == "__main__":
    main()
