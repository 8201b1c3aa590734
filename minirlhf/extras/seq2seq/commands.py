"""`minirlhf train seq2seq`. The example of the same name spells out the loop."""

from __future__ import annotations

from collections.abc import Callable

from minirlhf.algorithms.ppo import PPOTrainer
from minirlhf.algorithms.sft import SFTTrainer
from minirlhf.extras.seq2seq.program import Seq2SeqJob, open_job
from minirlhf.training.run import Trainer

HELP = "an encoder-decoder: SFT, then PPO\n\nminirlhf train seq2seq --policy DIR --data rows.jsonl --reward my.py:score"


def seq2seq(argv: list[str]) -> None:
    with open_job(help=HELP, argv=argv) as job:
        if not (job.common.skip_sft or job.finished("sft")):
            policy = job.first()
            rows, held_out = job.rows("sft", policy.transformer.config)
            trainer = SFTTrainer(policy, job.tokenizer, job.settings["sft"], len(job.batches("sft", rows)))
            _train(job, "sft", trainer, rows, lambda: trainer.evaluate(held_out))
        policy, reference = job.tuned()
        before = job.evaluate(reference, reference)
        if not job.finished("ppo"):
            rows, _ = job.rows("prompts", policy.transformer.config, reserve=job.config.max_tokens)
            tuner = PPOTrainer(policy, reference, job.given_reward, job.tokenizer, job.config, seed=job.seed)
            _train(job, "ppo", tuner, rows, lambda: job.evaluate(policy, reference, 128).known())
        job.report("PPO", before, job.evaluate(job.trained("ppo"), reference))


def _train(job: Seq2SeqJob, stage: str, trainer: Trainer, rows: list, evaluate: Callable[[], dict]) -> None:
    run = job.run(stage, trainer, rows, evaluate)
    for batch in run:
        run.record(trainer.step(batch))
