"""GRPO and its family: groups of completions, compared with one another.

python examples/grpo.py    # checked sums, from a model that can hardly add
python examples/grpo.py --grpo.algorithm dapo        # a row of ALGORITHMS
python examples/grpo.py --policy DIR --reward DIR    # from your own models
python examples/grpo.py --policy DIR --data rows.jsonl --reward my.py:right

The last command reads rows {prompt, answer} and scores them with your function.
ALGORITHMS stands in minirlhf/algorithms/grpo_recipes.py.
"""

from minirlhf.algorithms import GRPOConfig, GRPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job
from minirlhf.jobs.models import compiles
from minirlhf.jobs.programs import GRPO_DEFAULTS, GRPOJobConfig
from minirlhf.rewards import parts_of


@exits_cleanly
def main() -> None:
    options = {"after": ("sft", "reward"), "job": GRPOJobConfig, "defaults": GRPO_DEFAULTS}
    with Job.open("grpo", GRPOConfig, help=__doc__, **options) as job:
        config = job.config
        base = job.policy(stop_at=job.common.stop_sft_at if job.task.reward else None)
        reward, _ = job.reward(base)
        stage = job.stage(base, "prompts", reward=reward)
        before, greedy_before = stage.evaluate(stage.reference), stage.evaluate(stage.reference, greedy=True)
        if not stage.finished:
            reference = stage.reference if config.kl_coef else None
            spare = stage.batches(stage.rows, "grpo spare", times=max(1, config.recipe.resample))
            options = {"spare": spare, "seed": job.seed, "compiled": compiles(job.common, job.device)}
            options["environment"] = job.environment
            trainer = GRPOTrainer(stage.policy, reference, parts_of(reward), job.tokenizer, config, **options)
            run = stage.train_on(trainer, prompts=256)
            for batch in run:
                run.record(trainer.step(batch))
        greedy = {"greedy_gold_before": greedy_before, "greedy_gold_after": stage.evaluate(stage.policy, greedy=True)}
        gold = {name: report.measures["gold_reward"] for name, report in greedy.items()}
        job.report(config.algorithm, before, stage.evaluate(stage.policy), **gold)


if __name__ == "__main__":
    main()
