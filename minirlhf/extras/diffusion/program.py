"""The programs ddpo and alignprop: pictures of 16 x 16, from a base denoiser to a tuned one, in one folder.

with open_job("ddpo", DDPOConfig, help=__doc__) as job:
    denoiser, reference = job.models()
    trainer = DDPOTrainer(denoiser, reference, job.goal.reward, job.chain, job.config, shape=SHAPE, seed=job.seed)
    run = job.run(trainer)
    for batch in run:
        run.record(trainer.step(batch))
    job.report()
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minirlhf.adapters.lora import LoRAConfig, adapter_view, apply_lora
from minirlhf.data.batches import Batches
from minirlhf.errors import InputError, check_range
from minirlhf.extras.diffusion import files
from minirlhf.extras.diffusion.chain import Chain, ChainConfig, keyed_noise
from minirlhf.extras.diffusion.denoiser import Denoiser, DenoiserConfig
from minirlhf.extras.diffusion.drawings import SHAPE, drawn, labels_of
from minirlhf.extras.diffusion.files import load_denoiser
from minirlhf.extras.diffusion.png import grid, write_png
from minirlhf.extras.diffusion.pretraining import PretrainingConfig, PretrainingTrainer
from minirlhf.extras.diffusion.rewards import WITHOUT_GRADIENT, WITHOUT_LABEL, Goal, goal_of
from minirlhf.extras.diffusion.scoring import scored
from minirlhf.jobs.checks import check_flags
from minirlhf.jobs.effects import check_lora
from minirlhf.jobs.folder import find_output, take_output
from minirlhf.jobs.inputs import fingerprints, keep_inputs
from minirlhf.jobs.pictures import page_at_end
from minirlhf.jobs.settings import changed
from minirlhf.jobs.tracking import Tracking
from minirlhf.runtime.device import session
from minirlhf.runtime.distributed import is_main, restarted, say
from minirlhf.runtime.log_level import log_level
from minirlhf.runtime.randomness import seed_everything
from minirlhf.training.lock import unlocked_at_end
from minirlhf.training.run import Run, RunConfig, RunSettings, Trainer, finished_model
from minirlhf.training.same_settings import check_same_settings
from minirlhf.training.settings import parse_settings, settings_to_toml
from minirlhf.training.table import table

EVALUATED = 160  # pictures of an evaluation
SHOWN = 20  # pictures in a row of pictures.png


@dataclass(frozen=True)
class PicturesConfig:
    """Plain flags, and the top of the TOML file."""

    output: str | None = None  # [folder] everything is written here; default: a fresh runs/NAME-001
    resume: bool = False  # [-] go on with the job in `output`
    seed: int = 0  # [-] of drawings, initial weights and sampling
    reward: Literal["seven", "ink", "size"] = "seven"  # [-] a classifier sees a 7, much ink, or small when compressed
    base: str | None = None  # [folder] start from this denoiser, such as runs/ddpo-001/base/model
    train: Literal["all", "lora"] = "all"  # [-] all weights, or LoRA adapters on the Linears
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    threads: int | None = None  # [threads] of each process on a CPU; default: all
    tracker: tuple[str, ...] = ()  # [-] tensorboard, wandb, trackio, mlflow or FILE.py:FUNCTION: gets the metrics too
    log_level: Literal["quiet", "normal", "debug"] = "normal"  # [-] quiet: errors and the last line; debug: every step

    def __post_init__(self) -> None:
        check_range(self, "threads", least=1, most=1024)

    @property
    def resumes(self) -> bool:
        return self.resume or restarted()


@dataclass(frozen=True)
class PictureJob:
    """The settings, the folder and the models of a program that has begun."""

    name: str
    settings: dict[str, Any]  # section -> dataclass
    folder: Path
    device: torch.device
    goal: Goal
    chain: Chain
    started: float  # seconds, of time.perf_counter()
    tuned: dict[str, nn.Module]  # "denoiser" and "reference", once `models` has made them
    measured: dict[int, tuple[dict[str, float], Tensor]]  # step -> measures and pictures of its evaluation

    @property
    def seed(self) -> int:
        return self.settings["job"].seed

    @property
    def config(self) -> Any:
        """The program's own settings."""
        return self.settings[self.name]

    @property
    def finished(self) -> Path | None:
        """The tuned denoiser, if an earlier start of the job has finished it."""
        return finished_model(self.folder / self.name)

    def models(self) -> tuple[nn.Module, nn.Module]:
        """-> (denoiser to train, frozen reference), both as the base; the base is trained first if it must be."""
        base = self._base().to(self.device)
        if self.settings["job"].train == "lora":
            seed_everything(self.seed)
            denoiser = apply_lora(base, self.settings["lora"])
            reference = adapter_view(denoiser, None)
        else:
            denoiser, reference = base, deepcopy(base).requires_grad_(False)
        if final := self.finished:
            check_same_settings(self.folder / self.name / "config.toml", settings_to_toml(self.settings))
            denoiser = load_denoiser(final).to(self.device)
        self.tuned.update(denoiser=denoiser, reference=reference)
        return denoiser, reference

    def drawn_pictures(self, draws: list) -> tuple[Tensor, Tensor]:
        """A picture of the pretraining data for each draw -> (pictures, labels). A label of 0 gets any drawing."""
        count = self.settings["pretraining"].pictures
        keys = [((draw.epoch * 7919 + draw.index) % count,) for draw in draws]
        pictures, label = drawn(keys, self.seed, "pictures")
        return pictures.to(self.device), label.to(self.device)

    def run(self, trainer: Trainer) -> Run:
        """The run of a trainer on the goal's prompts; it resumes if the job resumes. The base is evaluated first."""
        self.measure(0, self.tuned["reference"])
        labels, config = labels_of(self.goal.prompts), self.config
        batches = Batches(labels, batch_size=config.batch_size, steps=config.steps, seed=self.seed, stream="prompts")
        run = self._run(self.name, trainer, batches, self.settings)
        run.evaluate = lambda: self.measure(run.step, self.tuned["denoiser"])
        return run

    @torch.no_grad()
    def measure(self, step: int, denoiser: nn.Module) -> dict[str, float]:
        """{score, gold, kl} of new pictures, written to pictures/step-N.png. The noise is the same at every step."""
        labels = labels_of(self.goal.prompts)
        label = torch.tensor([labels[i % len(labels)] for i in range(EVALUATED)], device=self.device)
        keys, shape = [(i,) for i in range(EVALUATED)], (self.chain.steps + 1, *SHAPE)
        noise = keyed_noise(self.seed, "evaluation", keys, shape).float().to(self.device)
        latents = self.chain.sample(denoiser, label, noise)
        pictures = latents[:, -1]
        both = [self.chain.all_means(model, latents, label) for model in (denoiser, self.tuned["reference"])]
        measures = {"score": scored(self.goal.reward, pictures, label), "gold": self.goal.gold(pictures, label)}
        measures["kl"] = self.chain.kls(*both).sum(-1)
        means = {name: values.double().mean().item() for name, values in measures.items()}
        self.measured[step] = means, pictures[:SHOWN]
        if is_main():
            write_png(self.folder / "pictures" / f"step-{step}.png", grid(pictures, SHOWN))
        return means

    def report(self) -> None:
        """Print base and tuned denoiser side by side; write pictures.png: a row of each, and one between."""
        steps = self.config.steps
        if steps not in self.measured:
            self.measure(steps, self.tuned["denoiser"])
        if 0 not in self.measured:
            self.measure(0, self.tuned["reference"])
        middle = min(self.measured, key=lambda step: abs(step - steps / 2))
        rows = sorted({0, middle, steps})  # a resumed job may have no evaluation between
        if is_main():
            write_png(self.folder / "pictures.png", grid(torch.cat([self.measured[step][1] for step in rows]), SHOWN))
        before, after = self.measured[0][0], self.measured[steps][0]
        names = {"score": f"score ({self.settings['job'].reward})", "gold": "gold", "kl": "KL to the base (nats)"}
        cells = [[text, before[name], after[name]] for name, text in names.items()]
        samples = steps * self.config.batch_size * getattr(self.config, "group_size", 1)
        seconds = time.perf_counter() - self.started
        say(f"\n{table([f'on {EVALUATED} new pictures', 'base', self.name], cells)}\n")
        say(f"{samples:,} samples; the rows of pictures.png: after {', '.join(map(str, rows))} steps; {seconds:.0f} s")
        say(f"everything is in {self.folder}", "quiet")

    def _base(self) -> Denoiser:
        """`--base`, or a denoiser pretrained on drawings: now, or by an earlier start of the job."""
        job, config, schedule = self.settings["job"], self.settings["pretraining"], self.chain.config.schedule
        if job.base:
            return check_base(job.base, schedule)
        plain = PicturesConfig()
        settings = {"job": replace(job, reward=plain.reward, train=plain.train), "pretraining": config}
        settings |= {"chain": ChainConfig(schedule=schedule), "run": self.settings["run"]}
        folder = self.folder / "base"
        if final := finished_model(folder):
            check_same_settings(folder / "config.toml", settings_to_toml(settings))
            return load_denoiser(final)
        pictures, label = drawn([(i,) for i in range(config.pictures)], self.seed, "pictures")
        seed_everything(self.seed)
        denoiser = Denoiser(DenoiserConfig(schedule=schedule)).to(self.device)
        parts = pictures.to(self.device), label.to(self.device), schedule, config, self.seed
        trainer = PretrainingTrainer(denoiser, *parts)
        batches = Batches.of(range(config.pictures), config, seed=self.seed, stream="pictures")
        run = self._run("base", trainer, batches, settings)
        for batch in run:
            run.record(trainer.step(batch))
        return denoiser

    def _run(self, name: str, trainer: Trainer, batches: Batches, settings: dict[str, Any]) -> Run:
        job, own = self.settings["job"], vars(self.settings["run"])
        if name == "base":  # the best checkpoint is one of the program's own stage
            own = own | {"best_metric": None, "best_mode": None, "patience": 0, "final": "last"}
        config = RunConfig(**own, output=str(self.folder / name), resume=job.resumes, seed=self.seed)
        track = Tracking(job.tracker, self.folder / name, len(batches))
        return Run(config, trainer, batches, settings=settings, files=files, on_metrics=track)


def check_base(folder: str, schedule: str) -> Denoiser:
    """The denoiser in this folder.   Raises: InputError if it draws other pictures, or has another schedule."""
    base = load_denoiser(folder)
    needed = DenoiserConfig(channels=base.config.channels, schedule=schedule)
    if (own := base.config.schedule) != schedule:
        raise InputError(
            f"{folder}: was trained with the schedule {own}, got --chain.schedule {schedule}; give --chain.schedule "
            f"{own}"
        )
    if base.config != needed:
        raise InputError(f"{folder}: needed pictures of this program, {needed}, got {base.config}; take another base")
    return base


def check(name: str, settings: dict[str, Any], chain: Chain) -> None:
    """Refuse settings that would be ignored, or cannot work together.   name: of the program."""
    job, config = settings["job"], settings[name]
    check_flags(settings)
    check_lora(settings)
    config.check_chain(chain)
    chain.check_noisy("chain")  # evaluations measure the KL to the base
    if config.needs_gradient and job.reward in WITHOUT_GRADIENT:
        raise InputError(f"--reward {job.reward}: {job.reward} has no gradient, which {name} needs; use ddpo")
    if job.reward in WITHOUT_LABEL and chain.config.guidance != 1:
        raise InputError(
            f"--chain.guidance: has no effect with --reward {job.reward}, because its prompt has no label; drop it"
        )
    if job.base:
        check_base(job.base, chain.config.schedule)
        read = ["pictures"] if getattr(config, "mix_coef", 0) else []
        if names := [field for field in changed(settings["pretraining"]) if field not in read]:
            unread = ", ".join(f"pretraining.{field}" for field in names)
            say(f"not read, because no such stage is trained: {unread}")


@contextmanager
def open_job(name: str, config: type, *, help: str, argv: list[str] | None = None) -> Iterator[PictureJob]:
    """Read the flags, then open device, folder, chain and reward.   name: of the program and of its settings.

    Raises: InputError for bad settings, before anything is written.
    """
    classes = {"job": PicturesConfig, "chain": ChainConfig, "pretraining": PretrainingConfig, "lora": LoRAConfig}
    settings = parse_settings(classes | {name: config, "run": RunSettings}, argv, description=help)
    job, started = settings["job"], time.perf_counter()
    options = {"device": job.device, "precision": "fp32", "seed": job.seed, "threads": job.threads}
    with log_level(job.log_level), session(**options) as device, unlocked_at_end():
        chain = Chain(settings["chain"])
        check(name, settings, chain)
        folder, files_of_job = find_output(job, name), fingerprints(settings)
        folder = take_output(folder, job, name, "base")
        keep_inputs(folder, files_of_job)
        goal = goal_of(job.reward, job.seed, device)
        with page_at_end(folder):
            yield PictureJob(name, settings, folder, device, goal, chain, started, {}, {})
