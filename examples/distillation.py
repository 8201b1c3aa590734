"""Learning from a teacher: distillation on given answers, on the student's own (GKD), or as a policy (MiniLLM).

torchrun examples/distillation.py                                  # SFT makes the teacher; a student of half its width
torchrun examples/distillation.py --distillation.algorithm minillm --distillation.beta 1 --distillation.on_policy 1
torchrun examples/distillation.py --policy DIR                     # that teacher
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from dpo import MAX_TOKENS
from sft import policy_for

from minirlhf import job
from minirlhf.algorithms.distillation import DistillationConfig, DistillationTrainer
from minirlhf.algorithms.sft import SFTConfig, SFTTrainer
from minirlhf.data import Batches
from minirlhf.errors import InputError, exits_cleanly
from minirlhf.evaluation import Report, win_rate
from minirlhf.generation import SamplingConfig
from minirlhf.model import ModelConfig, Policy, Transformer, load_policy
from minirlhf.runtime import seed_everything
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer
from minirlhf.training import Run, RunSettings, parse_settings
from minirlhf.training.vocabulary import metrics_help


@dataclass(frozen=True)
class Job(job.JobConfig):
    student_width: int = 32  # [numbers] hidden size of the student; its MLP shrinks alike
    student_steps: int = 100  # [steps] of SFT before it meets the teacher


SETTINGS = {"job": Job, "model": ModelConfig, "sft": SFTConfig, "distillation": DistillationConfig, "run": RunSettings}


def first_student(settings: dict, teacher: Policy, tokenizer: Tokenizer, rows: list, device: torch.device) -> Policy:
    """A smaller model that has read a few batches: it must write something before it can be corrected."""
    common, shape = settings["job"], teacher.transformer.config
    seed_everything(common.seed)
    smaller = common.student_width / shape.hidden_size
    small = replace(shape, hidden_size=common.student_width, intermediate_size=int(smaller * shape.intermediate_size))
    student = job.place(Policy(Transformer(small)), common, device)
    config = replace(settings["sft"], steps=common.student_steps)
    trainer = SFTTrainer(student, tokenizer, config, updates=config.steps)
    for batch in map(
        Batches(rows, batch_size=config.batch_size, steps=config.steps, seed=common.seed, stream="student").__getitem__,
        range(config.steps),
    ):
        trainer.step(batch)
    return student


def train_distillation(
    settings: dict, task: Task, tokenizer: Tokenizer, teacher: Policy, folder: Path, device: torch.device
) -> tuple[Report, Report]:
    """A small student of `teacher` -> how it wrote before and after."""
    settings = job.settings_of(settings, "distillation") | {"sft": settings["sft"]}
    common, config, shape = settings["job"], settings["distillation"], teacher.transformer.config
    job.choose_threads(teacher, common, device)
    rows, held_out = job.encode(common, tokenizer, task, "sft", ("response",), shape)
    _, prompts = job.encode(common, tokenizer, task, "prompts", (), shape, reserve=MAX_TOKENS)
    student = first_student(settings, teacher, tokenizer, rows, device)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, stop_ids=tokenizer.eos_ids, batch_size=512)
    evaluate = job.evaluator(common, task, tokenizer, prompts, sampling, teacher)
    before = evaluate(student)
    if finished := job.finished_stage(settings, folder, "distillation"):
        return before, evaluate(job.place(load_policy(finished), common, device))

    steps = job.steps_for(config.steps, config.max_epochs, len(rows), config.batch_size)
    trainer = DistillationTrainer(student, teacher, tokenizer, config, updates=steps, seed=common.seed)
    batches = Batches(rows, batch_size=config.batch_size, steps=steps, seed=common.seed, stream="distillation")
    run = Run(
        job.stage_run(settings, folder, "distillation"),
        trainer,
        batches,
        settings=settings,
        tokenizer=tokenizer,
        evaluate=lambda: {**trainer.evaluate(held_out), **evaluate(student, prompts=128).known()},
    )
    for batch in run:
        run.record(trainer.step(batch))
    return before, evaluate(student)


@exits_cleanly
def main() -> None:
    started = time.perf_counter()
    settings = parse_settings(SETTINGS, description=__doc__, epilogue=metrics_help())
    common = settings["job"]
    if common.train != "all" or common.freeze:
        raise InputError("--train, --freeze: a student starts from random weights, which is no base; leave them out")
    with job.session_of(settings) as device:
        folder = job.open_output(common, "distillation")
        task = job.load_task(common)
        task.need("sft")
        tokenizer = job.load_tokenizer(common, task, folder)
        teacher = job.place(policy_for(settings, task, tokenizer, folder, device), common, device)
        before, after = train_distillation(settings, task, tokenizer, teacher, folder, device)
        seconds = time.perf_counter() - started
        job.report(folder, "distillation", before, after, seconds, win_rate=win_rate(before, after))


if __name__ == "__main__":
    main()
