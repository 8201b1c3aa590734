"""GRPO with a tool: sums of four digits, solved by calling a calculator.

python examples/tools.py
python examples/tools.py --tool false     # the same without the calculator
python examples/tools.py --policy DIR --data rows.jsonl    # {prompt, answer}
python examples/tools.py --policy DIR --data FILE --environment my.py:Tools

docs/tools.md explains how a call is written, answered and masked.
"""

from minirlhf.algorithms import GRPOConfig, GRPOTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.jobs import Job
from minirlhf.jobs.played import TOOLS_DEFAULTS, ToolsJobConfig, load_sums, share_of_calls, with_calculator
from minirlhf.rewards import parts_of


@exits_cleanly
def main() -> None:
    options = {"section": "grpo", "after": ("sft",), "job": ToolsJobConfig, "task": load_sums}
    with Job.open("tools", GRPOConfig, help=__doc__, defaults=TOOLS_DEFAULTS, **options) as job:
        base = job.policy()
        job, reward = with_calculator(job)
        stage = job.stage(base, "prompts", reward=reward)
        before = stage.evaluate(stage.reference)
        if not stage.finished:
            options = {"seed": job.seed, "environment": job.environment}
            trainer = GRPOTrainer(stage.policy, None, parts_of(reward), job.tokenizer, job.config, **options)
            run = stage.train_on(trainer, prompts=256)
            for batch in run:
                run.record(trainer.step(batch))
        after = stage.evaluate(stage.policy)
        calls = {"calls_before": share_of_calls(job, before), "calls_after": share_of_calls(job, after)}
        job.report("GRPO", before, after, **calls)


if __name__ == "__main__":
    main()
