"""minirlhf plan: the memory of a job, and settings that fit. No weights are loaded.

minirlhf plan --model DIR --algorithm grpo --gpus 8 --memory 80
minirlhf plan --model DIR --algorithm grpo --gpus 8 --memory 80 --fit fits.toml    # writes settings that fit
minirlhf plan --model DIR --algorithm sft --train lora              # this machine; any flags of `minirlhf train sft`

`--help` after the name of an algorithm shows no more: `minirlhf train NAME --help` has the flags of a program.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minirlhf.cli.check import words_of_flags
from minirlhf.cli.program import program_of
from minirlhf.cli.train import PROGRAMS
from minirlhf.errors import InputError, check_range
from minirlhf.jobs.checks import own_stage, shape_of, stages_of
from minirlhf.jobs.fits_file import table, text_of
from minirlhf.jobs.fitting import Machine, Plan, first_that_fits, fits, flags, least, planned
from minirlhf.jobs.learning_rates import trained_parameters, with_rates
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.plan import step_of
from minirlhf.jobs.settings import sections
from minirlhf.jobs.speed import time_class
from minirlhf.jobs.strategies import ROOM
from minirlhf.model.config import ModelConfig
from minirlhf.model.footprint import parameters
from minirlhf.runtime.device import resolve_device, resolve_precision
from minirlhf.runtime.memory import in_words, share_of_process
from minirlhf.tasks.task import Task
from minirlhf.training.checkpoint import write_whole
from minirlhf.training.fields import as_text
from minirlhf.training.settings import parse_settings

OF_A_MACHINE = 8  # GPUs, if there are more


@dataclass(frozen=True)
class PlanFlags:
    algorithm: str  # [-] a program of `minirlhf train`, such as grpo
    model: str  # [folder] the model to train, as --policy of `minirlhf train`
    gpus: int | None = None  # [GPUs] one process for each; none: one process on this machine
    memory: float | None = None  # [GB] free on each GPU; none: the free memory of this machine
    tokens: int = 512  # [tokens] of the longest row, or of the longest prompt to sample from
    fit: str | None = None  # [file] write settings that fit, for --config of `minirlhf train`

    def __post_init__(self) -> None:
        check_range(self, "gpus", "tokens", least=1, most=2**20)
        check_range(self, "memory", above=0, most=1e6)
        if self.gpus and self.gpus > OF_A_MACHINE and self.gpus % OF_A_MACHINE:
            raise InputError(
                f"minirlhf plan: more than {OF_A_MACHINE} GPUs stand in machines of {OF_A_MACHINE}, got {self.gpus}; "
                f"give a multiple of {OF_A_MACHINE}"
            )
        if self.gpus and not self.memory:
            raise InputError("minirlhf plan: needed the memory of each GPU, got none; give --memory GB")
        if self.fit and Path(self.fit).exists():
            raise InputError(f"--fit {self.fit}: the file exists already; choose another name")


def main(argv: list[str]) -> None:
    own, of_program = [], []
    for words in words_of_flags(argv):
        named_here = name_of(words) in {*PlanFlags.__dataclass_fields__, "help"} or not words[0].startswith("--")
        (own if named_here else of_program).append(words)
    flags = parse_settings({"job": PlanFlags}, sum(own, []), description=__doc__.strip())["job"]
    job, after = opened(flags, sum(of_program, []))
    shape, machine = shape_of(job), machine_of(flags, [*stages_of(job, after), own_stage(job)])
    asked = planned(job, shape, after, machine)
    print(heading(flags, shape, machine, job), "", table(asked), "", sep="\n")
    found = asked if fits(asked, machine) else first_that_fits(job, shape, after, machine)
    start = [["minirlhf", "train", flags.algorithm], ["--policy", flags.model], *of_program]
    print(*verdict(asked, found, machine, start), sep="\n")
    if found is None:
        message = nothing_fits(least(job, shape, after, machine), machine)
        if flags.fit:
            raise InputError(f"--fit {flags.fit}: {message}")
        print(message)
    elif flags.fit:
        write_whole(Path(flags.fit), text_of(found))
        print(f"{flags.fit} has these settings:", command_of([start[0], ["--config", flags.fit]], machine), sep="\n")
    step = step_of(job, asked.stage, shape, machine.processes, machine.rows[asked.stage])
    print(f"a step of {asked.stage} takes {time_class(job, shape, asked.stage, step, gpu=bool(flags.gpus))}")


def name_of(words: list[str]) -> str:
    """The name of a flag, given as its words."""
    return words[0].partition("=")[0].removeprefix("--").replace("-", "_")


def opened(flags: PlanFlags, others: list[str]) -> tuple[Opened, tuple[str, ...]]:
    """-> (the job, without rows and tokenizer; the stages before its own)."""
    name, _ = program_of("plan", [flags.algorithm], PROGRAMS)
    program = PROGRAMS[name]
    known = {key: value for key, value in program.options.items() if key in ("job", "after", "adapters", "defaults")}
    section = program.options.get("section", name)
    classes = sections(section, program.config, **known)
    argv, help = [*others, "--policy", flags.model], __doc__.strip()
    classes = with_rates(classes, parse_settings(classes, argv, description=help)["job"])
    settings = parse_settings(classes, argv, description=help)
    device = torch.device("cuda") if flags.gpus else resolve_device(settings["job"].device)
    if settings["job"].precision == "auto":
        dtype = resolve_precision("auto", device, trained_parameters(settings)) if not flags.gpus else torch.bfloat16
        settings["job"] = replace(settings["job"], precision="bf16" if dtype == torch.bfloat16 else "fp32")
    no_rows = Task("plan", (), (), (), (), (), ())
    job = Opened(section, settings, Path(), no_rows, None, device, 0.0)
    return job, program.options.get("after", ())


def machine_of(flags: PlanFlags, stages: list[str]) -> Machine:
    processes = flags.gpus or 1
    free = flags.memory * 1e9 if flags.memory else share_of_process(resolve_device())
    return Machine(processes, max(1, processes // OF_A_MACHINE), free, dict.fromkeys(stages, (0, flags.tokens)))


def heading(flags: PlanFlags, shape: ModelConfig, machine: Machine, job: Opened) -> str:
    """A line that names the model, the algorithm and the machine of the plan."""
    where = f"{flags.gpus} GPU{'s' * (flags.gpus > 1)}" if flags.gpus else "this machine"
    return (
        f"{flags.algorithm}, {flags.model}: {parameters(shape) / 1e9:.3g} billion parameters, "
        f"--train {job.common.train}, on {where} with {in_words(machine.free)} each; "
        f"the longest row or prompt has {flags.tokens:,} tokens"
    )


def verdict(asked: Plan, found: Plan | None, machine: Machine, start: list[list[str]]) -> list[str]:
    """Whether the settings fit, and why; settings that fit, as a command. start: as for `command`."""
    needed, room = in_words(asked.memory.total), in_words(ROOM * machine.free)
    if found is asked:
        return [f"fits: {needed} of {room}, which is 90% of the memory", command(asked, machine, start)]
    moment, parts = max(asked.memory.moments.items(), key=lambda item: sum(item[1].values()))
    largest = max(parts, key=parts.get)
    lines = [f"does not fit: {needed} of {room}, which is 90% of the memory; the largest part is {largest} ({moment})"]
    if found is None:
        return lines
    return [*lines, f"this fits, with {in_words(found.memory.total)}:", command(found, machine, start), *reasons(found)]


def nothing_fits(least: Plan, machine: Machine) -> str:
    """least: the plan that needs least memory."""
    needed = least.memory.total / ROOM
    digit = 1e8 if needed >= 1e8 else 1e5  # the last that `in_words` shows; the sum is rounded up
    return (
        f"no settings fit: each process needs at least {in_words(math.ceil(needed / digit) * digit)} of free memory "
        f"({flags(least.changes) or 'with these settings'}), got {in_words(machine.free)}; take more or larger GPUs, a "
        "smaller model, or shorter rows"
    )


def command(plan: Plan, machine: Machine, start: list[list[str]]) -> str:
    """The command line of a plan. A given flag keeps its value, unless the plan changes this flag.

    start: the words of each given flag.
    """
    kept = [words for words in start if name_of(words) not in plan.changes]
    return command_of([*kept, *([f"--{name}", as_text(value)] for name, value in plan.changes.items())], machine)


def command_of(words: list[list[str]], machine: Machine) -> str:
    """The command line that starts these words of `minirlhf` in each process."""
    launcher = []
    if machine.processes > 1:
        launcher = ["torchrun"] + (["--nnodes", str(machine.machines)] if machine.machines > 1 else [])
        launcher += ["--nproc-per-node", str(machine.processes // machine.machines), "-m"]
    return "  " + shlex.join([*launcher, *sum(words, [])])


WHY = {
    "microbatch_tokens": "smaller micro-batches keep the result, and activations shrink with them",
    "gradient_checkpointing": "checkpointing computes blocks again in the backward pass: every second, or each",
    "train": "adapters need no gradients and moments of the base; they learn other weights than full training",
}


def reasons(plan: Plan) -> list[str]:
    """Why each change helps, a line each."""
    return [f"  {name}: {why}" for name, why in WHY.items() if name in {key.rpartition(".")[2] for key in plan.changes}]
