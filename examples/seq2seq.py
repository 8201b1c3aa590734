"""An encoder-decoder rewrites reviews to the opposite sentiment.

python examples/seq2seq.py                # SFT on careless demonstrations, PPO
python examples/seq2seq.py --train lora   # PPO trains adapters only
python examples/seq2seq.py --policy DIR --data rows.jsonl --reward my.py:score
"""

from minirlhf.algorithms import PPOTrainer, SFTTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.extras.seq2seq.program import open_job


@exits_cleanly
def main() -> None:
    with open_job(help=__doc__) as job:
        if not (job.common.skip_sft or job.finished("sft")):
            policy = job.first()  # --policy, or a small model with random weights
            rows, held_out = job.rows("sft", policy.transformer.config)
            updates = len(job.batches("sft", rows))
            trainer = SFTTrainer(policy, job.tokenizer, job.settings["sft"], updates)
            run = job.run("sft", trainer, rows, lambda: trainer.evaluate(held_out))
            for batch in run:
                run.record(trainer.step(batch))
        policy, reference = job.tuned()
        before = job.evaluate(reference, reference)
        if not job.finished("ppo"):
            rows, _ = job.rows("prompts", policy.transformer.config, reserve=job.config.max_tokens)
            tuner = PPOTrainer(policy, reference, job.given_reward, job.tokenizer, job.config, seed=job.seed)
            run = job.run("ppo", tuner, rows, lambda: job.evaluate(policy, reference, 128).known())
            for batch in run:
                run.record(tuner.step(batch))
        job.report("PPO", before, job.evaluate(job.trained("ppo"), reference))


if __name__ == "__main__":
    main()
