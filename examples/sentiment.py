"""Positive continuations: PPO against a classifier of sentiment.

python examples/sentiment.py                     # beginnings of reviews
python examples/sentiment.py --data reviews      # a folder with pos/ and neg/
python examples/sentiment.py --data rows.jsonl   # {text, label}
python examples/sentiment.py --policy DIR --data rows.jsonl --reward DIR

The last command begins with your own models.
"""

from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job
from minirlhf.jobs.labelled import LabelledJobConfig, classifier_for
from minirlhf.jobs.programs import SENTIMENT_DEFAULTS, load_sentiment


@exits_cleanly
def main() -> None:
    options = {"after": ("sft", "reward"), "job": LabelledJobConfig, "defaults": SENTIMENT_DEFAULTS}
    with Job.open("sentiment", PPOConfig, section="ppo", task=load_sentiment, help=__doc__, **options) as job:
        base = job.policy()  # --policy, or SFT on all texts, positive and negative
        reward, accuracy = classifier_for(job, base)  # --reward, or a classifier of the labels: its log-odds
        stage = job.stage(base, "prompts", reward=reward, values=True)  # the prompts are beginnings of texts
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            options = {"value_model": stage.value_model, "seed": job.seed}
            trainer = PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config, **options)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report("PPO", before, stage.evaluate(stage.policy), classifier_accuracy=accuracy)


if __name__ == "__main__":
    main()
