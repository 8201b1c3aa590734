"""minirlhf check: what would stop a job, found before the job begins. Nothing is written.

minirlhf check                           # this machine
minirlhf check ppo --data rows.jsonl     # a program of `minirlhf train`, with its flags
minirlhf check journey.toml              # the program that the file names: program = "ppo"

Checked are all settings, files, folders, rows, lengths, memory and disk; then each stage takes one step in memory, on
its longest rows. The exit code is 0 if nothing is found, and 2 if something is.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minirlhf.cli.chat import ChatConfig
from minirlhf.cli.data_look import CheckFlags, ShowFlags
from minirlhf.cli.data_make import AugmentFlags, DownloadFlags, PairsFlags, SampleFlags
from minirlhf.cli.data_write import ConvertFlags, MergeFlags, SplitFlags
from minirlhf.cli.eval import EvalConfig
from minirlhf.cli.machine import check_device, free_disk, machine
from minirlhf.cli.program import program_of
from minirlhf.cli.rehearsal import Rehearsal, noted, rehearse, with_few_held_out
from minirlhf.cli.train import PROGRAMS, Program
from minirlhf.errors import InputError
from minirlhf.jobs import checks
from minirlhf.jobs.data_flags import flags_of, with_data
from minirlhf.jobs.effects import check_base, check_effects
from minirlhf.jobs.folder import find_output
from minirlhf.jobs.given_models import value_folder
from minirlhf.jobs.given_rewards import reward_of
from minirlhf.jobs.given_rows import Reader, given_task, source_task, validation_sets
from minirlhf.jobs.learning_rates import trained_parameters, with_rates
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.opened import load_task, load_tokenizer
from minirlhf.jobs.plan import disk_of_stages, footprints, longest_rows
from minirlhf.jobs.settings import sections
from minirlhf.jobs.strategies import in_parallel, of_process
from minirlhf.model.config import ModelConfig
from minirlhf.pretrained.weights import read_config
from minirlhf.runtime.device import resolve_device, session
from minirlhf.runtime.distributed import say, world_size
from minirlhf.runtime.memory import in_words, share_of_process
from minirlhf.runtime.parallel.strategy import current
from minirlhf.training.config_file import read_document, settings_in
from minirlhf.training.fields import TOP, fields_of
from minirlhf.training.settings import read_flags

FILES = (".toml", ".yaml", ".yml")
# Table of a file -> the settings of the command that reads it
COMMANDS = {cls.table: cls for cls in (SampleFlags, AugmentFlags, PairsFlags, DownloadFlags, CheckFlags, ShowFlags)}
COMMANDS |= {cls.table: cls for cls in (SplitFlags, MergeFlags, ConvertFlags, EvalConfig, ChatConfig)}


def main(argv: list[str]) -> None:
    if any(word in ("-h", "--help") for word in argv):
        return print(__doc__.strip())
    sys.dont_write_bytecode = True  # a reward function's file is imported
    findings: list[str] = []
    if first := os.environ.get("RANK", "0") == "0":  # under torchrun every process checks, and the first tells
        print("\n".join(f"{name:<12}  {fact}" for name, fact in machine().items()), flush=True)
    try:
        with noted(findings):
            check_device(resolve_device())
        if argv:
            argv = ["--config", *argv] if argv[0].endswith(FILES) else argv
            name, flags = program_of("check", argv, PROGRAMS)
            if first:
                print(f"\nminirlhf train {name}", flush=True)
            check_program(name, flags, findings)
    finally:  # an error of ours must not hide the findings
        if first:
            tell(findings)
    if findings:
        raise InputError(f"minirlhf check: needed no problem, found {len(findings)}; see the list")


def tell(findings: list[str]) -> None:
    found = f"{len(findings) or 'no'} problem{'s' * (len(findings) != 1)} found"
    lines = (f"{number}. {finding}" for number, finding in enumerate(findings, start=1))
    print("", found, *lines, sep="\n", flush=True)


def check_program(name: str, flags: list[str], findings: list[str]) -> None:
    """Add to the findings all that would stop the program."""
    program = PROGRAMS[name]
    after, section = program.options.get("after", ()), program.options.get("section", name)
    known = {key: value for key, value in program.options.items() if key in ("job", "after", "adapters", "defaults")}
    classes = sections(section, program.config, **known)
    settings = read_all(classes, flags, findings)
    check_other_tables(classes, flags, findings)
    if settings["job"].policy:
        with noted(findings):
            settings = read_all(with_rates(classes, settings["job"]), flags, [])
    common = settings["job"]
    with noted(findings):
        check_effects(settings)
    with noted(findings):
        checks.check_flags(settings)
    if not after:
        with noted(findings):
            check_base(common)
    surroundings = {"device": common.device, "precision": common.precision, "threads": common.threads}
    with noted(findings):
        surroundings["parameters"] = trained_parameters(settings)
    with noted(findings), session(**surroundings, seed=common.seed) as device:
        check_parts(program, name, section, settings, device, findings)


def check_parts(
    program: Program, name: str, section: str, settings: dict[str, Any], device: torch.device, findings: list[str]
) -> None:
    """Check folder, rows and models; then take one step of each stage."""
    common, folder, task, tokenizer = settings["job"], Path("runs"), None, None
    with noted(findings):
        folder = find_output(common, program.folder or name)
    with noted(findings):
        task = given_task(settings, section) or program.options.get("task", load_task)(common)
    with noted(findings):
        tokenizer = load_tokenizer(common, task.texts() if task else (), folder)
    if not task:
        check_rows(settings, findings)
    if not task or not tokenizer:
        check_models(common, findings)
        return say("the stages are not tried, because they need rows and a tokenizer")
    opened = section, settings, folder, with_few_held_out(task), tokenizer, device, time.perf_counter()
    job, after = Rehearsal(*opened, findings=findings), program.options.get("after", ())
    attempt = partial(noted, findings)
    with attempt():
        job, _, shape = checks.checked(job, program.options.get("needs", ()), after, attempt)
        if job.common.reward and not job.given_reward:
            return say("the stages are not tried, because they need a reward")
        with in_parallel(job, after):
            if fits(job, shape, after):
                rehearse(job, program.parts)


def check_rows(settings: dict[str, Any], findings: list[str]) -> None:
    """Add what is wrong with each data file: the reading of a job ends at the first."""
    common, reader = settings["job"], Reader(settings["job"], tell=lambda text: None)
    files = [getattr(config, "data", None) or "" for config in settings.values()]
    sources = [name.strip() for name in ",".join(files).split(",") if name.strip()]
    sources += [held_out] if isinstance(held_out := reader.flags.held_out, str) else []
    for name in sources:
        with noted(findings):
            source_task(name, reader, 0)
    for entry in flags_of(common).validation:
        with noted(findings):
            validation_sets(reader, (entry,))


def check_models(common: Any, findings: list[str]) -> None:
    """Add the faults of the rewards and of the other models, if no stage is tried."""
    rewards = [name.strip() for flag in ("reward", "gold") for name in (getattr(common, flag, None) or "").split(",")]
    for name in filter(None, rewards):
        with noted(findings):
            reward_of(name, lambda folder: read_config(resolve_model(folder)))
    for flag, find in (("value", value_folder), ("student", resolve_model)):
        if folder := getattr(common, flag, None):
            with noted(findings):
                read_config(find(folder))


def fits(job: Rehearsal, shape: ModelConfig, after: tuple[str, ...]) -> bool:
    """True if the job fits into memory, by plan. Notes memory and disk that do not suffice."""
    free, whole = share_of_process(job.device), footprints(job, shape, after, world_size(), longest_rows(job, after))
    needed = {stage: of_process(part, current(), shape, world_size()).total for stage, part in whole.items()}
    each = " for each process" if world_size() > 1 else ""
    plan = ", ".join(f"{stage} {in_words(size)}" for stage, size in needed.items())
    say(f"memory by plan: {plan}; {in_words(free)} are free on {job.device}{each}")
    disk, room = disk_of_stages(job, shape, after), free_disk(job.folder)
    say(f"checkpoints and final models: {in_words(disk)}; {in_words(room)} are free on the disk of {job.folder}")
    if disk > room:
        job.findings.append(
            f"{job.folder}: needed {in_words(disk)} for checkpoints and models, got {in_words(room)}; choose "
            "another --output, or lower --run.keep"
        )
    stage, most = max(needed.items(), key=lambda item: item[1])
    if most > free:
        job.findings.append(
            f"{stage}: needed {in_words(most)} of memory by plan, got {in_words(free)} on {job.device}; "
            "`minirlhf plan` looks for settings that fit"
        )
    return most <= free


def read_all(classes: dict[str, type], argv: list[str], findings: list[str]) -> dict[str, Any]:
    """The settings as `parse_settings` gives them. A faulty setting is noted, and its default is taken."""
    hints = {name: hint for section, cls in classes.items() for name, _, hint in fields_of(section, cls)}
    hints_of_flags, flags = {**hints, "config": str}, {}
    for words in words_of_flags(argv):
        with noted(findings):
            flags = read_flags(words, hints_of_flags) | flags
    path, values = flags.pop("config", None), {}
    if len(findings) == 0:
        with noted(findings):
            read_flags(argv, hints_of_flags)  # refuses a flag that stands twice
    if path:
        with noted(findings):
            values, problems, _ = settings_in(path, read_document(path), classes, hints)
            findings += [str(problem) for problem in problems]
    values |= flags
    built = {}
    for section, cls in classes.items():
        given = {field.name: values[name] for name, field, _ in fields_of(section, cls) if name in values}
        built[section] = made(cls, given, findings)
    return built


def words_of_flags(argv: list[str]) -> list[list[str]]:
    """The words of each flag."""
    flags: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not flags:
            flags.append([])
        flags[-1].append(word)
    return flags


def made(cls: type, given: dict[str, Any], findings: list[str]) -> Any:
    """An instance with the given values, without those that it refuses: each refusal is noted."""
    try:
        return cls(**given)
    except ValueError as error:
        if str(error) not in findings:
            findings.append(str(error))
        for name in given:
            others = {key: value for key, value in given.items() if key != name}
            try:
                return cls(**others)
            except ValueError as second:
                if str(second) != str(error):
                    return made(cls, others, findings)
        return cls()


def check_other_tables(classes: dict[str, type], argv: list[str], findings: list[str]) -> None:
    """Check the tables of the file that other programs and commands read."""
    words = next((words for words in words_of_flags(argv) if words[0].partition("=")[0] == "--config"), None)
    document: dict[str, Any] = {}
    if words:
        with noted([]):  # a file that cannot be read is noted already
            document = read_document(path := words[-1].removeprefix("--config="))
    others = {name: (name, with_data(program.config)) for name, program in PROGRAMS.items() if name not in classes}
    others |= {name: (TOP, cls) for name, cls in COMMANDS.items()}
    for name in [name for name in others if isinstance(document.get(name), dict)]:
        section, cls = others[name]
        hints = {full: hint for full, _, hint in fields_of(section, cls)}
        values, problems, _ = settings_in(path, {name: document[name]}, {section: cls}, hints)
        findings += [str(problem) for problem in problems]
        with noted(findings), suppress(TypeError):  # a setting without default may come as a flag
            cls(**{key.rpartition(".")[2]: value for key, value in values.items()})
