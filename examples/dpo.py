"""Learning from pairs without a reward model: DPO and its family.

python examples/dpo.py                       # the embedded task: SFT, then DPO
python examples/dpo.py --dpo.loss simpo --dpo.beta 2   # a row of LOSSES
python examples/dpo.py --data pairs.jsonl    # {prompt, chosen, rejected}

LOSSES stands in minirlhf/algorithms/dpo_recipes.py.
"""

from minirlhf.algorithms import DPOConfig, DPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import win_rate
from minirlhf.jobs import Job
from minirlhf.model import copy_of


@exits_cleanly
def main() -> None:
    with Job.open("dpo", DPOConfig, after=("sft",), needs=("pairs",), help=__doc__) as job:
        stage = job.stage(job.policy(), "pairs")
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            # TR-DPO moves its reference; evaluations need the frozen reference
            reference = copy_of(stage.policy) if job.config.ref_update_every else stage.reference
            updates = job.config.steps_for(len(stage.rows))
            trainer = DPOTrainer(stage.policy, reference, job.tokenizer, job.config, updates)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        after = stage.evaluate(stage.policy)
        job.report(job.config.loss, before, after, win_rate=win_rate(before, after))


if __name__ == "__main__":
    main()
