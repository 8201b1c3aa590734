"""PPO on one frozen base: policy, value model and reward model are its adapters.

python examples/multi_adapter.py    # the embedded task; SFT makes the base
python examples/multi_adapter.py --policy DIR --data pairs.jsonl
python examples/multi_adapter.py --policy DIR --train qlora    # base in 4 bits
"""

from dataclasses import dataclass, replace
from typing import Literal

from minirlhf.adapters.select import ALL, HEAD
from minirlhf.adapters.shared_base import FourModels, put_three_adapters
from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, JobConfig, PolicyStage, open_stage
from minirlhf.jobs.given_models import convert_base
from minirlhf.jobs.models import choose_threads, to_device
from minirlhf.jobs.reward_model import train_reward_model
from minirlhf.pretrained import load_adapter
from minirlhf.rewards import RewardModelScorer
from minirlhf.runtime import seed_everything
from minirlhf.training import ADAPTER


@dataclass(frozen=True)
class MultiAdapterJobConfig(JobConfig):
    train: Literal["lora", "qlora"] = "lora"  # [-] adapters beside a frozen base, or beside a base held in 4 bits


def with_own_head(job: Job) -> Job:
    """Untie the head of a new base and put LoRA on it: in a tiny model, words used in the same positions differ only in
    the head. docs/models.md#adapters has the figures. If the user has chosen modules, they stay.
    """
    model, lora = replace(job.settings["model"], tie_word_embeddings=False), job.settings["lora"]
    lora = replace(lora, target_modules=(ALL, HEAD)) if lora.target_modules == (ALL,) else lora
    return replace(job, settings={**job.settings, "model": model, "lora": lora})


@exits_cleanly
def main() -> None:
    options = {"after": ("sft", "reward"), "needs": ("pairs",), "job": MultiAdapterJobConfig}
    with Job.open("multi_adapter", PPOConfig, section="ppo", help=__doc__, **options) as job:
        job = job if job.common.policy else with_own_head(job)
        base = job.policy().transformer
        choose_threads(base, job.common, job.device)
        seed_everything(job.seed)
        convert_base(base, job.common)
        models = FourModels.of(to_device(put_three_adapters(base, job.settings["lora"]), job.common, job.device))
        job.say(models.sizes())

        stage = open_stage(job, "reward", "reward_model")
        if stage.finished:
            load_adapter(models.reward, stage.folder / ADAPTER, "reward")
        accuracy = train_reward_model(job, stage, models.reward)
        reward = RewardModelScorer(models.reward, job.tokenizer, job.config.microbatch_tokens)

        rows, prompts = job.rows("prompts", base.config, reserve=job.config.max_tokens)
        parts = {"policy": models.policy, "reference": models.reference, "value_model": models.value, "reward": reward}
        parts |= {"rows": rows, "held_out": prompts, "prompts": prompts}
        stage = PolicyStage(**vars(open_stage(job, "ppo", "ppo")), **parts)
        before = stage.evaluate(models.reference)
        if stage.finished:
            load_adapter(models.policy, stage.folder / ADAPTER, "policy")
        else:
            options = {"value_model": models.value, "seed": job.seed}
            trainer = PPOTrainer(models.policy, models.reference, reward, job.tokenizer, job.config, **options)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report("PPO", before, stage.evaluate(models.policy), reward_model_accuracy=accuracy)


if __name__ == "__main__":
    main()
