"""Less rude, as grammatical: PPO against a classifier of polite texts.

python examples/detoxify.py                      # reviews by people who swear
python examples/detoxify.py --data comments      # a folder with clean/, toxic/
python examples/detoxify.py --data rows.jsonl    # {text, label}: is it polite?
python examples/detoxify.py --policy DIR --data rows.jsonl --reward DIR

The last command begins with your own models.
"""

from minirlhf.algorithms import PPOConfig, PPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job
from minirlhf.jobs.labelled import LabelledJobConfig, classifier_for
from minirlhf.jobs.programs import DETOXIFY_DEFAULTS, load_rudeness, share_rude


@exits_cleanly
def main() -> None:
    options = {"after": ("sft", "reward"), "job": LabelledJobConfig, "defaults": DETOXIFY_DEFAULTS}
    with Job.open("detoxify", PPOConfig, section="ppo", task=load_rudeness, help=__doc__, **options) as job:
        base = job.policy()  # --policy, or SFT on all texts: it learns rude words
        reward, accuracy = classifier_for(job, base)  # --reward, or a classifier of the labels: its log-odds
        stage = job.stage(base, "prompts", reward=reward, values=True)
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            options = {"value_model": stage.value_model, "seed": job.seed}
            trainer = PPOTrainer(stage.policy, stage.reference, reward, job.tokenizer, job.config, **options)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        after = stage.evaluate(stage.policy)
        job.report("PPO", before, after, classifier_accuracy=accuracy, **share_rude(job, before, after))


if __name__ == "__main__":
    main()
