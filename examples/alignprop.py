"""AlignProp: a diffusion model learns from the gradient of a reward.

python examples/alignprop.py                            # a classifier is asked
python examples/alignprop.py --alignprop.last_steps 1   # the last step only
python examples/alignprop.py --alignprop.kl_coef 0      # it is fooled
"""

from minirlhf.errors import exits_cleanly
from minirlhf.extras.diffusion.alignprop import AlignPropConfig, AlignPropTrainer
from minirlhf.extras.diffusion.drawings import SHAPE
from minirlhf.extras.diffusion.program import open_job


@exits_cleanly
def main() -> None:
    with open_job("alignprop", AlignPropConfig, help=__doc__) as job:
        denoiser, reference = job.models()
        if not job.finished:
            parts = denoiser, reference, job.goal.reward, job.chain, job.config
            trainer = AlignPropTrainer(*parts, shape=SHAPE, drawn=job.drawn_pictures, seed=job.seed)
            run = job.run(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        job.report()


if __name__ == "__main__":
    main()
