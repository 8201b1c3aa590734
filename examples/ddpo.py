"""DDPO: a diffusion model learns from scores of its pictures.

python examples/ddpo.py                     # a classifier rewards a 7
python examples/ddpo.py --reward size       # bytes have no gradient
python examples/ddpo.py --ddpo.kl_coef 0    # the classifier is fooled
"""

from minirlhf.errors import exits_cleanly
from minirlhf.extras.diffusion.ddpo import DDPOConfig, DDPOTrainer
from minirlhf.extras.diffusion.drawings import SHAPE
from minirlhf.extras.diffusion.program import open_job


@exits_cleanly
def main() -> None:
    with open_job("ddpo", DDPOConfig, help=__doc__) as job:
        denoiser, reference = job.models()
        if not job.finished:
            parts = denoiser, reference, job.goal.reward, job.chain, job.config
            trainer = DDPOTrainer(*parts, shape=SHAPE, seed=job.seed)
            run = job.run(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report()


if __name__ == "__main__":
    main()
