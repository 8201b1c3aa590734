"""`minirlhf train ddpo` and `minirlhf train alignprop`. The examples of the same names spell out the loop."""

from __future__ import annotations

from minirlhf.extras.diffusion.alignprop import AlignPropConfig, AlignPropTrainer
from minirlhf.extras.diffusion.ddpo import DDPOConfig, DDPOTrainer
from minirlhf.extras.diffusion.drawings import SHAPE
from minirlhf.extras.diffusion.program import PictureJob, open_job
from minirlhf.training.run import Trainer


def ddpo(argv: list[str]) -> None:
    help = "DDPO: a diffusion model learns from scores of its pictures\n\nminirlhf train ddpo --reward size"
    with open_job("ddpo", DDPOConfig, help=help, argv=argv) as job:
        parts = *job.models(), job.goal.reward, job.chain, job.config
        if not job.finished:
            _train(job, DDPOTrainer(*parts, shape=SHAPE, seed=job.seed))
        job.report()


def alignprop(argv: list[str]) -> None:
    help = "AlignProp: a diffusion model learns from the gradient of a reward\n\nminirlhf train alignprop --reward ink"
    with open_job("alignprop", AlignPropConfig, help=help, argv=argv) as job:
        parts = *job.models(), job.goal.reward, job.chain, job.config
        if not job.finished:
            _train(job, AlignPropTrainer(*parts, shape=SHAPE, drawn=job.drawn_pictures, seed=job.seed))
        job.report()


def _train(job: PictureJob, trainer: Trainer) -> None:
    run = job.run(trainer)
    for batch in run:
        run.record(trainer.step(batch))
