"""GRPO and its family: groups of completions, compared with one another.

python examples/grpo.py    # checked sums, from a model that can hardly add
python examples/grpo.py --grpo.algorithm dapo        # a row of ALGORITHMS
python examples/grpo.py --policy DIR --reward DIR    # from your own models
python examples/grpo.py --policy DIR --data rows.jsonl --reward my.py:right

The last command reads rows {prompt, answer} and scores them with your function.
ALGORITHMS stands in minirlhf/algorithms/grpo_recipes.py.
"""

from dataclasses import dataclass

from minirlhf.algorithms import GRPOConfig, GRPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job, RLJobConfig
from minirlhf.rewards import parts_of


@dataclass(frozen=True)
class GRPOJobConfig(RLJobConfig):
    task: str = "arithmetic"  # [-] embedded task: arithmetic or reviews
    stop_sft_at: float | None = 0.4  # [share] end SFT once it solves this share of training prompts; none: all steps


# For answers of a few digits. Sentences need `--grpo.temperature 1`, more completions of fewer prompts, a kl_coef.
DEFAULTS = {
    # to look up single digits: many narrow heads, short rotary wavelengths, an lm_head apart from the embedding
    **{"model.num_attention_heads": 8, "model.num_key_value_heads": 8},
    **{"model.rope_theta": 100.0, "model.tie_word_embeddings": False},
    # SFT stops early. Its learning rate is constant, so the stopping point does not depend on a schedule.
    **{"sft.steps": 3000, "sft.max_epochs": 20.0, "sft.batch_size": 64, "sft.lr": 3e-3, "sft.lr_final": 1.0},
    # many prompts with few completions each; groups of equal reward are replaced
    **{"grpo.steps": 500, "grpo.batch_size": 256, "grpo.minibatch_size": None, "grpo.group_size": 4},
    **{"grpo.resample": 1, "grpo.lr": 1e-3, "grpo.temperature": 1.2},
}


@exits_cleanly
def main() -> None:
    with Job.open(
        "grpo", GRPOConfig, after=("sft", "reward"), job=GRPOJobConfig, defaults=DEFAULTS, help=__doc__
    ) as job:
        config = job.config
        base = job.policy(stop_at=job.common.stop_sft_at if job.task.reward else None)
        reward, _ = job.reward(base)
        stage = job.stage(base, "prompts", reward=reward)
        before, greedy_before = stage.evaluate(stage.reference), stage.evaluate(stage.reference, greedy=True)
        if not stage.finished:
            reference = stage.reference if config.kl_coef else None
            spare = stage.batches(stage.rows, "grpo spare", times=max(1, config.recipe.resample))
            options = {"spare": spare, "seed": job.seed, "compiled": job.compiles}
            trainer = GRPOTrainer(stage.policy, reference, parts_of(reward), job.tokenizer, config, **options)
            run = stage.train_on(trainer, prompts=256)
            for batch in run:
                run.record(trainer.step(batch))
        greedy = {"greedy_gold_before": greedy_before, "greedy_gold_after": stage.evaluate(stage.policy, greedy=True)}
        gold = {name: report.measures["gold_reward"] for name, report in greedy.items()}
        job.report(config.algorithm, before, stage.evaluate(stage.policy), **gold)


if __name__ == "__main__":
    main()
