"""Supervised fine-tuning.

torchrun examples/sft.py                          # the embedded task
torchrun examples/sft.py --data rows.jsonl        # {prompt, response}, {messages}, or pairs (chosen is learnt)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from minirlhf import job
from minirlhf.algorithms.sft import SFTConfig, SFTTrainer
from minirlhf.data import Batches
from minirlhf.data.encoding import encode_rows
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import evaluate_policy
from minirlhf.generation import SamplingConfig
from minirlhf.model import LoRAConfig, ModelConfig, Policy, load_policy
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help

SETTINGS = {"job": job.JobConfig, "model": ModelConfig, "lora": LoRAConfig, "sft": SFTConfig, "run": RunSettings}


def train_sft(
    settings: dict,
    task: Task,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    stop_at: float | None = None,
) -> Policy:
    """Train a policy on the task's rows, or hand back the one this folder holds already.

    stop_at: the share of training prompts to solve greedily at which it is enough, where answers can be checked.
    """
    settings = job.settings_of(settings, "sft")
    common, config = settings["job"], settings["sft"]
    if finished := job.finished_stage(settings, folder, "sft"):
        return job.place(load_policy(finished), common, device)
    policy = job.first_policy(common, settings["model"], tokenizer)
    # random weights are no base
    policy = job.adapt(policy, settings, device) if common.policy else job.place(policy, common, device)
    job.choose_threads(policy, common, device)
    rows, held_out = job.encode(common, tokenizer, task, "sft", ("response",), policy.transformer.config)
    job.say(f"model: {sum(p.numel() for p in policy.parameters()):,} parameters")

    steps = job.steps_for(config.steps, config.max_epochs, len(rows), config.batch_size)
    trainer = SFTTrainer(policy, tokenizer, config, updates=steps)
    batches = Batches(rows, batch_size=config.batch_size, steps=steps, seed=common.seed, stream="sft")

    def evaluate() -> dict[str, float]:
        return {
            **trainer.evaluate(held_out),
            **({} if stop_at is None else {"solved": solved(policy, tokenizer, task)}),
        }

    place = job.stage_run(settings, folder, "sft")
    if stop_at is not None and place.eval_every is None:
        place = replace(place, eval_every=50)  # ten looks in a run would see the mark passed by far
    run = Run(
        place,
        trainer,
        batches,
        settings=settings,
        tokenizer=tokenizer,
        evaluate=evaluate if held_out else None,
        until=None if stop_at is None else lambda evaluation: evaluation["eval/solved"] >= stop_at,
    )
    for batch in run:
        run.record(trainer.step(batch))
    return policy


def solved(policy: Policy, tokenizer: Tokenizer, task: Task, prompts: int = 512) -> float:
    """The share of training prompts whose greedy answer has the whole reward."""
    context = policy.transformer.config.max_position_embeddings
    rows = encode_rows(tokenizer, task.prompts[:prompts], (), context=context).rows
    greedy = SamplingConfig(max_tokens=16, temperature=0.0, stop_ids=tokenizer.eos_ids)
    report = evaluate_policy(policy, tokenizer, rows, greedy, reward=task.reward)
    return report.measures["model_reward"]


def policy_for(
    settings: dict,
    task: Task,
    tokenizer: Tokenizer,
    folder: Path,
    device: torch.device,
    stop_at: float | None = None,
) -> Policy:
    """What the later stages start from: `--policy`, or a policy trained here."""
    if settings["job"].policy:
        return job.first_policy(settings["job"], settings["model"], tokenizer)  # each stage puts it where it trains
    return train_sft(settings, task, tokenizer, folder, device, stop_at)


@exits_cleanly
def main() -> None:
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common = settings["job"]
    job.check_base(common)
    with job.session_of(settings) as device:
        folder = job.open_output(common, "sft")
        task = job.load_task(common)
        tokenizer = job.load_tokenizer(common, task, folder)
        train_sft(settings, task, tokenizer, folder, device)
        job.say(f"the model: {folder / 'sft' / 'model'}")


if __name__ == "__main__":
    main()
