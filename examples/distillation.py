"""Learning from a teacher: given answers, GKD, MiniLLM.

python examples/distillation.py    # SFT makes the teacher; a narrower student
python examples/distillation.py --policy DIR    # a teacher that you have
python examples/distillation.py --policy DIR --student DIR    # same tokenizer
python examples/distillation.py --distillation.algorithm minillm \\
    --distillation.beta 1 --distillation.on_policy 1
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from minirlhf.algorithms import DistillationConfig, DistillationTrainer, SFTTrainer
from minirlhf.algorithms.distillation_checks import check_logits
from minirlhf.data import Batches
from minirlhf.errors import InputError, exits_cleanly
from minirlhf.evaluation import win_rate
from minirlhf.jobs import Job, JobConfig
from minirlhf.jobs.given_models import given_student, narrower
from minirlhf.jobs.models import choose_threads, to_device
from minirlhf.model import Policy, Transformer
from minirlhf.runtime import seed_everything


@dataclass(frozen=True)
class DistillationJobConfig(JobConfig):
    student: str | None = None  # [folder] train this model instead of a new one
    student_width: int = 32  # [numbers] hidden size of a new student; its MLP shrinks in the same ratio
    student_steps: int = 100  # [steps] of SFT before a new student meets the teacher
    trained: ClassVar[str] = "student"  # --policy is the teacher
    later_stages_only: ClassVar[tuple[str, ...]] = ("student", "student_width", "student_steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student and (self.student_width, self.student_steps) != (32, 100):
            raise InputError("--student_width, --student_steps: --student is a trained model already; drop both")
        if self.student and not self.policy:
            raise InputError("--student: needs a teacher with the same tokenizer; give --policy DIR")


def first_student(job: Job, teacher: Policy, rows: list) -> Policy:
    """A smaller model after a few steps of SFT: the teacher can only correct a student that writes words."""
    choose_threads(teacher, job.common, job.device)
    seed_everything(job.seed)
    student = Policy(Transformer(narrower(teacher.transformer.config, job.common.student_width)))
    student = to_device(student, job.common, job.device)
    config = replace(job.settings["sft"], steps=job.common.student_steps)
    batches = Batches.of(rows, config, seed=job.seed, stream="student")
    trainer = SFTTrainer(student, job.tokenizer, config, updates=len(batches))
    for batch in batches:
        trainer.step(batch)
    return student


@exits_cleanly
def main() -> None:
    options = {"after": ("sft",), "needs": ("sft",), "job": DistillationJobConfig, "adapters": False}
    with Job.open("distillation", DistillationConfig, help=__doc__, **options) as job:
        student = given_student(job, job.common.student) if job.common.student else None
        teacher = to_device(job.policy(), job.common, job.device)
        check_logits("teacher", teacher)
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
