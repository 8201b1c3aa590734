"""Job: an example program opens it first. Its methods are the stages of RLHF.

with Job.open("ppo", PPOConfig, after=("sft", "reward"), help=__doc__) as job:
    base = job.policy()
    reward, accuracy = job.reward(base)
    stage = job.stage(base, reward=reward, values=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from minirlhf.algorithms.on_policy import OnPolicyConfig
from minirlhf.data.encoding import EncodedRow
from minirlhf.jobs.models import choose_threads, load_finished, reference_for
from minirlhf.jobs.opened import Opened, load_task, load_tokenizer
from minirlhf.jobs.prepare import first_policy, prepare
from minirlhf.jobs.report import report
from minirlhf.jobs.reward_model import reward_for
from minirlhf.jobs.settings import JobConfig, sections
from minirlhf.jobs.sft import train_sft
from minirlhf.jobs.stage import EVALUATION_PROMPTS, PolicyStage, open_stage
from minirlhf.model.policy import Policy
from minirlhf.rewards.scoring import Reward
from minirlhf.runtime.device import session
from minirlhf.runtime.distributed import say
from minirlhf.tasks.task import Task
from minirlhf.training.settings import parse_settings
from minirlhf.training.vocabulary import metrics_help


class Job(Opened):
    @classmethod
    @contextmanager
    def open(
        cls,
        name: str,
        config: type,
        *,
        help: str,
        argv: list[str] | None = None,
        section: str | None = None,
        after: tuple[str, ...] = (),
        needs: tuple[str, ...] = (),
        job: type[JobConfig] = JobConfig,
        adapters: bool = True,
        defaults: dict[str, Any] | None = None,
        task: Callable[[JobConfig], Task] = load_task,
    ) -> Iterator[Job]:
        """Read the flags, then open device, folder, rows and tokenizer. Close device and processes at the end.

        Args:
            name:     name of the program; the output folder is runs/NAME-001.
            config:   the dataclass of the program's own settings.   section: name of these settings, default `name`.
            help:     the text above the settings in `--help`.   argv: the flags; None takes sys.argv.
            after:    the stages before the program's own: "sft", "reward".
            needs:    parts that the task must have: "sft", "pairs".
            job:      the dataclass of plain flags.   adapters: False leaves out [lora].
            defaults: new default values, such as {"grpo.group_size": 4}.
            task:     a function that makes the rows of a program without data files.
        Raises: InputError for bad settings, before anything is written.
        """
        from minirlhf.jobs.effects import check_effects  # here, so that the core loads no leaf
        from minirlhf.jobs.learning_rates import settings_for_model, trained_parameters
        from minirlhf.jobs.out_of_memory import advised
        from minirlhf.jobs.pictures import pictured
        from minirlhf.jobs.strategies import in_parallel
        from minirlhf.runtime.log_level import log_level
        from minirlhf.training.lock import unlocked_at_end

        section = section or name
        classes = sections(section, config, job=job, after=after, adapters=adapters, defaults=defaults)
        settings = parse_settings(classes, argv, description=help, epilogue=metrics_help())
        if settings["job"].policy:
            settings = settings_for_model(classes, settings["job"], argv)
        check_effects(settings, after)
        common = settings["job"]
        options = {name: getattr(common, name) for name in ("device", "precision", "seed", "threads")}
        options["parameters"] = trained_parameters(settings)
        with log_level(common.log_level), session(**options) as device, unlocked_at_end():
            opened = cls.make(name, section, settings, device, task, needs, after)
            try:
                with pictured(opened, after), in_parallel(opened, after), advised(opened, after):
                    yield opened
            except Stopped as stage:
                say(f"stopped after {stage}; go on with --output {opened.folder} --resume")

    @classmethod
    def make(
        cls,
        name: str,
        section: str,
        settings: dict[str, Any],
        device: torch.device,
        task: Callable[[JobConfig], Task] = load_task,
        needs: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
    ) -> Job:
        """Open folder, rows and tokenizer for settings that are already read."""
        started, common = time.perf_counter(), settings["job"]
        from minirlhf.jobs.checks import begun, check_flags
        from minirlhf.jobs.folder import find_output
        from minirlhf.jobs.given_rows import given_task

        check_flags(settings)
        folder, rows = find_output(common, name), given_task(settings, section) or task(common)
        tokenizer = load_tokenizer(common, rows.texts(), folder)
        job = cls(section, settings, folder, rows, tokenizer, device, started)
        return begun(job, name, needs, after)  # refuse all that can be refused now, not after SFT

    def base(self) -> Policy:
        """`--policy`, or a policy with random weights. The stage that trains the policy moves it to the device."""
        return first_policy(self.common, self.settings["model"], self.tokenizer)

    def policy(self, stop_at: float | None = None) -> Policy:
        """`--policy`, or the SFT policy: trained now, or loaded if an earlier start trained it. See `train_sft`."""
        if self.common.policy:
            return self.base()
        policy = train_sft(self, stop_at)
        self._stop_after("sft")
        return policy

    def reward(self, policy: Policy) -> tuple[Reward, float | None]:
        """-> (reward function, accuracy of the reward model on held-out pairs or None). See `reward_for`."""
        reward, accuracy = reward_for(self, policy)
        self._stop_after("reward")
        return reward, accuracy

    def stage(
        self,
        base: Policy,
        part: str = "prompts",
        rows: tuple[list[EncodedRow], list[EncodedRow]] | None = None,
        *,
        reward: Reward | None = None,
        values: bool = False,
        teacher: Policy | None = None,
        reads: tuple[str, ...] = (),
    ) -> PolicyStage:
        """The program's own stage. It trains from the weights of `base`.

        Args:
            part:    the part of the task to train on: "prompts", "pairs" or "sft".
            rows:    (rows to train on, held-out rows) as ids, instead of that part.
            values:  add a value head to the policy, or a value model if the settings ask for a separate one.
            teacher: the reference instead of `base`; all weights of `base` are then trained.
            reads:   further sections of settings that the stage depends on.
        """
        stage = open_stage(self, self.section, self.section, reads)
        settings, config, common, device = stage.settings, stage.config, self.common, self.device
        choose_threads(teacher or base, common, device)
        shape = base.transformer.config
        reserve = config.max_tokens if isinstance(config, OnPolicyConfig) else 1
        rows, held_out = rows or self.rows(part, shape, reserve)
        prompts = held_out if part == "prompts" else self.held_out("prompts", shape)
        value_model, policy = None, base
        if values:
            from minirlhf.jobs.given_models import value_model_for  # here, so that the core loads no leaf

            value_model = value_model_for(self, base)
            policy = Policy(base.transformer, value_head=value_model is None)
        policy = policy if teacher else prepare(policy, settings, device)
        reference = teacher or reference_for(policy)
        if stage.finished:
            policy = load_finished(stage.finished, common, device)
        elif value_model:
            value_model = prepare(value_model.requires_grad_(True), settings, device)
        say(f"evaluating on {len(prompts[:EVALUATION_PROMPTS]):,} held-out prompts")
        models = {"policy": policy, "reference": reference, "value_model": value_model, "reward": reward}
        return PolicyStage(**vars(stage), **models, rows=rows, held_out=held_out, prompts=prompts)

    report = report  # (title, before, after, **extra): a method

    def _stop_after(self, stage: str) -> None:
        if self.common.stop_after == stage:
            raise Stopped(stage)


class Stopped(Exception):
    """`--stop-after` ends the job here."""
