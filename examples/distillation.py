"""Learning from a teacher: given answers, GKD, MiniLLM.

python examples/distillation.py    # SFT makes the teacher; a narrower student
python examples/distillation.py --policy DIR    # a teacher that you have
python examples/distillation.py --policy DIR --student DIR    # same tokenizer
python examples/distillation.py --distillation.algorithm minillm \\
    --distillation.beta 1 --distillation.on_policy 1
"""

from minirlhf.algorithms import DistillationConfig, DistillationTrainer
from minirlhf.errors import exits_cleanly
from minirlhf.evaluation import win_rate
from minirlhf.jobs import Job
from minirlhf.jobs.given_models import given_student
from minirlhf.jobs.models import to_device
from minirlhf.jobs.programs import DistillationJobConfig, first_student


@exits_cleanly
def main() -> None:
    options = {"after": ("sft",), "needs": ("sft",), "job": DistillationJobConfig, "adapters": False}
    with Job.open("distillation", DistillationConfig, help=__doc__, **options) as job:
        student = given_student(job, job.common.student) if job.common.student else None
        teacher = to_device(job.policy(), job.common, job.device)
        shapes = [model.transformer.config for model in (teacher, student) if model]
        rows = job.rows("sft", min(shapes, key=lambda shape: shape.max_position_embeddings))
        student = student or first_student(job, teacher, rows[0])
        stage = job.stage(student, "sft", rows, teacher=teacher, reads=("sft",))
        before = stage.evaluate(student)
        if not stage.finished:
            updates = job.config.steps_for(len(stage.rows))
            trainer = DistillationTrainer(student, teacher, job.tokenizer, job.config, updates, seed=job.seed)
            run = stage.train_on(trainer)
            for batch in run:
                run.record(trainer.step(batch))
        after = stage.evaluate(stage.policy)
        job.report("distillation", before, after, win_rate=win_rate(before, after))


if __name__ == "__main__":
    main()
