"""The programs of `minirlhf train` on a small task, in one process and in several.

python tests/scaling/programs.py FOLDER PROGRAM,... [LAYOUT,...] [flags of the program]
python tests/scaling/programs.py FOLDER PROGRAM,... [LAYOUT,...] --check    `minirlhf check` instead

Each job writes FOLDER/PROGRAM-LAYOUT and its output FOLDER/PROGRAM-LAYOUT.txt.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ranks
import torch
import torch._dynamo  # an optimizer loads it; here, so that the forks need not

import minirlhf.cli.check
import minirlhf.cli.train
from minirlhf.errors import InputError
from minirlhf.jobs import opened, stage
from minirlhf.runtime.parallel.sharding import is_sharded
from minirlhf.tasks import embedded_task

LAYOUTS = {
    "one": SimpleNamespace(world=1, flags=()),
    "auto-2": SimpleNamespace(world=2, flags=()),
    "ddp-2": SimpleNamespace(world=2, flags=("--parallel", "ddp")),
    "zero-2": SimpleNamespace(world=2, flags=("--parallel", "ddp", "--sharding.shard_optimizer", "true")),
    "fsdp-2": SimpleNamespace(world=2, flags=("--parallel", "fsdp")),
    "layers-2": SimpleNamespace(world=2, flags=("--parallel", "fsdp", "--sharding.gather", "layers")),
    "hsdp-4": SimpleNamespace(world=4, flags=("--parallel", "hsdp", "--sharding.replicas", "2")),
}
TINY = "--vocab_size 280 --model.hidden_size 16 --model.num_hidden_layers 2 --model.num_attention_heads 2 "
TINY += "--model.num_key_value_heads 1 --model.intermediate_size 32"
RUN = " --run.eval_every 0 --run.save_every 0"
TINY += RUN
STUDENT = " --student_width 8 --student_steps 2"
SFT = " --sft.steps 3 --sft.batch_size 8"
REWARD = " --reward_model.steps 3 --reward_model.batch_size 8"
ON_POLICY = " --{0}.steps 2 --{0}.batch_size 4 --{0}.minibatch_size 4 --{0}.max_tokens 8"
FLAGS = {
    "sft": SFT,
    "reward_model": REWARD,
    "process_reward": " --process_reward.steps 2 --process_reward.batch_size 8 --rows 40",
    "ppo": SFT + REWARD + ON_POLICY.format("ppo"),
    "grpo": SFT + ON_POLICY.format("grpo") + " --grpo.group_size 4 --stop_sft_at none",
    "online_dpo": SFT + REWARD + ON_POLICY.format("online_dpo"),
    "dpo": SFT + " --dpo.steps 3 --dpo.batch_size 8 --dpo.ref_update_every 2",
    "unpaired": SFT + " --unpaired.steps 3 --unpaired.batch_size 8",
    "distillation": SFT + " --distillation.steps 3 --distillation.batch_size 8 --distillation.max_tokens 8" + STUDENT,
    "multi_adapter": SFT + REWARD + ON_POLICY.format("ppo"),
    "llama": SFT + REWARD + ON_POLICY.format("ppo") + " --base_steps 3",
    **dict.fromkeys(("sentiment", "detoxify"), SFT + REWARD + ON_POLICY.format("ppo") + " --rows 100"),
}


@functools.cache
def small_task(name: str, seed: int):
    """An embedded task with few rows of each kind."""
    task = embedded_task(name, seed, sft_rows=64, pair_rows=64)
    held_out = {part: getattr(task, part)[:5] for part in ("held_out_sft", "held_out_pairs", "held_out_prompts")}
    return replace(task, prompts=task.prompts[:64], **held_out)


def flags_of(program: str, layout: str, given: list[str]) -> list[str]:
    """The flags of a job. given: more flags; models that they name replace new models and stages."""
    flags = TINY + FLAGS[program]
    if program == "process_reward":
        flags += " --model.max_position_embeddings 200"
    if "--policy" in given:
        flags = RUN + (FLAGS[program] if program in ("sft", "reward_model") else FLAGS[program].replace(SFT, ""))
    if "--student" in given:
        flags = flags.replace(STUDENT, "")
    if "--reward" in given:
        flags = flags.replace(REWARD, "")
    return [*flags.split(), *LAYOUTS[layout].flags, *given]


def tell_slices(policy_stage: stage.PolicyStage, *args, train_on=stage.PolicyStage.train_on):
    """As `PolicyStage.train_on`; names the models of the stage that are in slices."""
    parts = {name: getattr(policy_stage, name) for name in ("policy", "reference", "value_model", "reward")}
    models = {name: getattr(part, "model", None) if name == "reward" else part for name, part in parts.items()}
    print(
        "in slices:", *(name for name, model in models.items() if model is not None and is_sharded(model)), flush=True
    )
    return train_on(policy_stage, *args)


def run_job(folder: Path, program: str, layout: str, more: list[str], check: bool = False) -> None:
    """One process of a job."""
    torch.set_num_threads(1)
    opened.embedded_task, stage.EVALUATION_TOKENS, stage.PolicyStage.train_on = small_task, 6, tell_slices
    argv = flags_of(program, layout, more)
    with (folder / f"{program}-{layout}.txt").open("a") as file, contextlib.redirect_stdout(file):
        try:
            if check:
                minirlhf.cli.check.main([program, *argv])
            else:
                output = [] if "--output" in argv else ["--output", str(folder / f"{program}-{layout}")]
                minirlhf.cli.train.train(program, [*argv, *output])
        except InputError as error:
            print(f"error: {error}", flush=True)
            raise


def main(folder: str, programs: str, layouts: str = "one,fsdp-2", *more: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    small_task("reviews", 0)  # here, so that no fork has to make it again
    failed = []
    for program in programs.split(","):
        for layout in layouts.split(","):
            try:
                flags = [word for word in more if word != "--check"]
                ranks.run(LAYOUTS[layout].world, run_job, Path(folder), program, layout, flags, flags != [*more])
            except RuntimeError as error:
                failed.append(f"{program} {layout}: {error}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
