"""Refuse settings that would be ignored."""

from __future__ import annotations

from typing import Any

from minirlhf.errors import InputError
from minirlhf.jobs.parallel import check_parallel
from minirlhf.jobs.settings import JobConfig, changed


def check_effects(settings: dict[str, Any], after: tuple[str, ...] | None = None) -> None:
    """Refuse settings that would be ignored, and model settings that config.json cannot hold.

    after: the stages before the program's own. With (), LoRA without --policy is refused too.
    """
    from minirlhf.pretrained.config_json import config_to

    check_parallel(settings)
    job = settings["job"]
    if not job.policy:
        config_to(settings["model"])
    if (job.template or job.template_variables) and not job.policy:
        raise InputError(f"--template{'' if job.template else '_variables'}: needs a model folder; give --policy DIR")
    for stage, flag, folder in (("sft", "--policy", job.policy), ("reward", "--reward", job.reward)):
        if job.stop_after == stage and folder:
            raise InputError(f"{flag} replaces this stage, so --stop-after {stage} would do nothing; drop one flag")
    if job.freeze and job.train != "all":
        raise InputError(f"--freeze: --train {job.train} freezes all but adapters already; see lora.target_modules")
    if "lora" not in settings and (job.train != "all" or job.freeze):
        raise InputError("--train, --freeze: this program trains all weights of a new model; drop both")
    check_lora(settings, "--train lora or --train qlora")
    if job.policy and "base_steps" in changed(job):  # of examples/llama.py
        raise InputError("--base_steps: --policy is a trained base already; drop one of the two")
    if after == ():
        check_base(job)


def check_lora(settings: dict[str, Any], flags: str = "--train lora") -> None:
    """Refuse settings of LoRA if all weights are trained.   flags: train adapters instead."""
    if settings["job"].train == "all" and "lora" in settings and (names := changed(settings["lora"])):
        raise InputError(f"--lora.{names[0]}: all weights are trained; give {flags}")


def check_base(job: JobConfig) -> None:
    """Refuse LoRA or --freeze without --policy if no stage comes before: the program starts from random weights."""
    asked = f"--train {job.train}" if job.train != "all" else f"--freeze {','.join(job.freeze)}" if job.freeze else ""
    if asked and not job.policy:
        raise InputError(f"{asked}: needs a trained model, this program starts from random weights; give --policy DIR")
