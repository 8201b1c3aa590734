"""All that can be refused is refused here, before the first stage: a stage may take hours. Then the folder is taken."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from minirlhf.adapters import apply_lora, freeze
from minirlhf.algorithms.dpo import DPOConfig, check_models
from minirlhf.algorithms.on_policy import OnPolicyConfig, check_stop_token
from minirlhf.errors import InputError, shown
from minirlhf.jobs.before_training import rollouts_in
from minirlhf.jobs.data_flags import flags_of
from minirlhf.jobs.environments import with_environment
from minirlhf.jobs.folder import take_output, write_refused
from minirlhf.jobs.given_models import check_student, check_value, check_vocabulary, narrower
from minirlhf.jobs.inputs import fingerprints, keep_inputs
from minirlhf.jobs.models import resolve_model
from minirlhf.jobs.opened import RESPONSES, Opened
from minirlhf.jobs.reward_flags import RewardFlags, check_reward_flags
from minirlhf.jobs.settings import changed
from minirlhf.jobs.tracking import check_trackers
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, RewardModel
from minirlhf.model.transformer import Transformer
from minirlhf.nearest import nearest
from minirlhf.pretrained.hub import pinned
from minirlhf.pretrained.weights import Uninitialised, empty_policy, read_config
from minirlhf.runtime.agreed import agreed
from minirlhf.runtime.distributed import is_main, restarted, say
from minirlhf.runtime.same_on_ranks import check_same_settings_on_ranks
from minirlhf.training.checkpoint import holds_anything, is_complete, written_whole
from minirlhf.training.fields import as_toml
from minirlhf.training.going_back import check_step, go_back
from minirlhf.training.recorded import PLAYED
from minirlhf.training.runs import flat
from minirlhf.training.same_settings import MAY_CHANGE
from minirlhf.training.settings import settings_to_toml

PARTS = {"sft": "sft", "reward": "pairs"}  # stage -> the part of the task that it trains on
# of a stage
INSTEAD = {
    "sft": "rows for SFT with --sft.data FILE, or a trained model with --policy DIR",
    "reward": "--reward FILE.py:FUNCTION or DIR",
}
SECTIONS = {"sft": "sft", "reward": "reward_model"}  # stage -> the section of its settings


def begun(job: Opened, name: str, needs: tuple[str, ...], after: tuple[str, ...]) -> Opened:
    """The job once everything is checked: with its reward, its rows as ids, and a folder of its own.

    Args:
        name:  name of the program.   after: the stages before the program's own.
        needs: parts that the task must have.
    Raises: InputError, before anything is written.
    """
    job, refused, _ = checked(job, needs, after)
    first, files = [*stages_of(job, after), own_stage(job)][0], fingerprints(job.settings)
    job = replace(job, folder=take_output(job.folder, job.common, name, first))
    keep_inputs(job.folder, files)
    if step := step_to_resume(job):
        say(agreed(lambda: go_back(job.folder / own_stage(job), step)))
    write_refused(job.folder, [*job.task.refused, *refused])
    say(f"stages: {plan(job, name, after)}; results in {job.folder}")
    save_tokenizer(job)
    return job


def checked(
    job: Opened, needs: tuple[str, ...], after: tuple[str, ...], attempt: Callable[[], Any] = nullcontext
) -> tuple[Opened, list[str], ModelConfig]:
    """-> (the job with its reward and its rows as ids, a line for each row that is left out, the shape of its model).

    attempt: makes a context for each check. The default lets the first error pass; a caller who wants all errors gives
    a context that keeps them.
    """
    with attempt():
        job = with_environment(replace(job, settings=with_commits(job.settings)), shape_of)
    with attempt():
        job = with_gold(with_given_reward(job, after))
    stages, on_policy = stages_of(job, after), isinstance(job.config, OnPolicyConfig)
    needs = (*needs, *(part_of(job, stage) for stage in reversed(stages)), *(("prompts",) if on_policy else ()))
    for part in dict.fromkeys(needs):
        with attempt():
            need(job, part, stages)
    with attempt():
        check_stages(job, after, stages)
    with attempt():
        check_evaluations(job)
        check_lengths(job)
    with attempt():
        if step := step_to_resume(job):
            check_step(job.folder / own_stage(job), step, job.settings["run"].final)
    shape = shape_of(job)
    for check in checks_of_model(job, shape, stages):
        with attempt():
            check()
    if student := getattr(job.common, "student", None):
        shape = min(shape, read_config(resolve_model(student))[0], key=lambda shape: shape.max_position_embeddings)
    refused = []
    for part in [part for part in dict.fromkeys(needs) if part in RESPONSES and len(getattr(job.task, part))]:
        with attempt():
            refused += job.encode(part, shape, job.config.max_tokens if part == "prompts" else 1)
    return job, refused, shape


def step_to_resume(job: Opened) -> str | None:
    """The step of `--resume step-N`."""
    return None if job.common.resume in (True, False, "previous") or restarted() else job.common.resume


def need(job: Opened, part: str, stages: list[str]) -> None:
    """Raise InputError if the task lacks a part. The message names the flags that make the part needless."""
    try:
        job.task.need(part)
    except InputError as error:
        others = [f", or {INSTEAD[stage]}" for stage in stages if part_of(job, stage) == part and takes(job, stage)]
        raise InputError(f"{error}{''.join(others)}") from None


def checks_of_model(job: Opened, shape: ModelConfig, stages: list[str]) -> Iterator[Callable[[], object]]:
    """Checks of the job's models. Each raises an InputError."""
    common = job.common
    if isinstance(job.config, OnPolicyConfig):
        yield lambda: check_stop_token(type(job.config).__name__, job.config, shape.vocab_size)
    if common.policy:
        yield lambda: check_vocabulary(shape, job.tokenizer, common.policy, tell=lambda line: None)
    yield lambda: check_trainable(job, shape, stages)
    if value := getattr(common, "value", None):
        yield lambda: check_value(job, value, shape)
    if student := getattr(common, "student", None):  # of distillation
        yield lambda: check_student(job, student)
    if width := getattr(common, "student_width", None):  # of distillation
        yield lambda: narrower(shape, width)


def takes(job: Opened, stage: str) -> bool:
    """True if the program has a flag that replaces the stage."""
    return {"sft": "policy", "reward": "reward"}[stage] in {field.name for field in fields(job.common)}


def shape_of(job: Opened) -> ModelConfig:
    """The shape of the model that the job trains: of `--policy`, or of a new model."""
    if job.common.policy:
        return read_config(resolve_model(job.common.policy))[0]
    return replace(job.settings["model"], vocab_size=job.tokenizer.vocab_size)


def stages_of(job: Opened, after: tuple[str, ...]) -> list[str]:
    """The stages that the job trains before its own."""
    tunes_policy = getattr(job.common, "tunes_policy", False)
    given_reward = job.given_reward or job.common.reward or job.environment
    replaced = {"sft": job.common.policy and not tunes_policy, "reward": given_reward}
    return [stage for stage in after if not replaced[stage]]


def part_of(job: Opened, stage: str) -> str | None:
    """The part of the task that a stage before the program's own trains on."""
    own = getattr(job.common, "parts", {}).get(SECTIONS.get(stage))
    return own[0] if own else PARTS.get(stage)


def own_stage(job: Opened) -> str:
    """The name of the program's own stage, and of its folder."""
    return next((stage for stage, section in SECTIONS.items() if section == job.section), job.section)


def plan(job: Opened, name: str, after: tuple[str, ...]) -> str:
    """The stages of the job in words, as far as `--stop-after`."""
    stages, last = [*stages_of(job, after), name], job.common.stop_after
    return " -> ".join(stages[: stages.index(last) + 1] if last in stages else stages)


def with_given_reward(job: Opened, after: tuple[str, ...]) -> Opened:
    if "reward" not in after:
        return job
    if job.common.reward:
        from minirlhf.jobs.given_rewards import with_reward

        return with_reward(job)
    return job if job.environment else replace(job, given_reward=job.task.reward)


def with_gold(job: Opened) -> Opened:
    """The job with the reward of `--gold` as the task's exact measure."""
    if not job.common.gold:
        return job
    if own_stage(job) in ("sft", "reward", "process_reward"):
        raise InputError("--gold: this program samples no completions to measure; drop the flag")
    from minirlhf.jobs.given_rewards import gold_of

    return replace(job, task=replace(job.task, gold=gold_of(job, job.common.gold)))


def check_evaluations(job: Opened) -> None:
    """Refuse a best metric that no evaluation can have. A run itself looks for other names before its first step."""
    run, sets = job.settings["run"], job.task.validation
    metric, needs_best = run.best_metric, run.patience or run.final == "best"
    if needs_best and not metric and job.section in ("grpo", "online_dpo") and not job.task.gold:
        raise InputError(
            f"--run.{'patience' if run.patience else 'final'}: the best step is that of eval/gold_reward, which these "
            "rows do not measure; give --gold, or --run.best_metric eval/model_reward"
        )
    name = (metric or "").removeprefix("eval/").rpartition("/")[0]
    if metric and not metric.startswith("eval/"):
        raise InputError(f"--run.best_metric: needed a metric of evaluations, such as eval/loss, got {shown(metric)}")
    if name and name not in sets:
        near, known = (nearest(name, sets), ", ".join(sets)) if sets else ("", "none")
        raise InputError(
            f"--run.best_metric {metric}: needed a set of --validation, got {name}{near}; the sets are {known}"
        )


def with_commits(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with the commit behind each name of the hub: a resumed job then reads the same files."""
    changes = {}
    for section, config in settings.items():
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        texts = {name: value for name, value in values.items() if isinstance(value, str | tuple)}
        new = {name: pinned(value) for name, value in texts.items() if pinned(value) != value}
        changes |= {section: replace(config, **new)} if new else {}
    return settings | changes


def check_lengths(job: Opened) -> None:
    """Refuse flags of lengths that rows of steps do not follow: a step that is cut would keep its label."""
    flags = flags_of(job.common)
    if job.section == "process_reward" and (flags.max_prompt_length or flags.overlong != "refuse"):
        raise InputError("--max_prompt_length, --overlong: rows of steps are never cut; drop both, or use --max_length")


def check_flags(settings: dict[str, Any]) -> None:
    """Refuse settings that differ between processes, empty flags, and flags that another flag leaves without effect."""
    check_same_settings_on_ranks(flat(tomllib.loads(settings_to_toml(settings))))
    job = settings["job"]
    for name in [field.name for field in fields(job) if getattr(job, field.name) == ""]:
        raise InputError(f"--{name.rstrip('_')}: needed a value, got empty text; give a value, or drop the flag")
    check_trackers(job.tracker)
    if hasattr(job, "prompt_words") and settings["reward_model"].center_coef:
        raise InputError("--reward_model.center_coef: labels fix the zero of a classifier's scores; drop the flag")
    if getattr(job, "reward_weights", ()) and not job.reward:
        raise InputError("--reward_weights: needs rewards to weigh; give --reward")
    if isinstance(job, RewardFlags):
        check_reward_flags(job, settings)
        if job.replay:
            rollouts_in(job.replay)


def check_stages(job: Opened, after: tuple[str, ...], stages: list[str]) -> None:
    """Refuse a stage that is not there, a folder in a stage's place, and sizes that the processes cannot share."""
    common = job.common
    if job.environment and getattr(common, "replay_scores", None) == "new":
        raise InputError(f"--replay_scores new: {PLAYED}; drop the flag")
    if common.stop_after in after and common.stop_after not in stages:
        raise InputError(
            f"--stop-after {common.stop_after}: this job has no such stage, because the task checks its "
            "answers itself; drop the flag"
        )
    stops = "stop_sft_at" in changed(common) and common.stop_sft_at is not None  # of GRPO
    if stops and "sft" in stages and not job.task.reward:
        raise InputError("--stop_sft_at: this task does not check answers, so SFT cannot stop early; drop the flag")
    unused = [SECTIONS[stage] for stage in after if stage not in stages]
    unread = [f"{section}.{name}" for section in unused for name in changed(job.settings[section])]
    learns_texts = "sft" in stages or job.section in ("sft", "distillation")
    unread += ["train_on"] * ("train_on" in changed(common) and not learns_texts)
    if unread:
        say(f"not read, because no such stage is trained: {', '.join(unread)}")
    if "wrap" in changed(common) and "default" not in job.tokenizer.templates:
        say("not read, because the tokenizer has no chat template: wrap")
    for stage in [*stages, own_stage(job)]:
        folder = job.folder / stage
        if folder.is_dir() and holds_anything(folder) and not (folder / "config.toml").exists():
            raise InputError(f"{folder}: holds files that are not a run's; choose another --output")
    if (settings := job.folder / own_stage(job) / "config.toml").exists():
        check_same_job(job, settings)


def check_same_job(job: Opened, path: Path) -> None:
    """Refuse to train stages before a stage that an earlier start has begun with other settings of its own."""
    ours = {name: job.settings[name] for name in ("job", job.section)}
    try:
        old, new = tomllib.loads(path.read_text(encoding="utf-8")), tomllib.loads(settings_to_toml(ours))
    except ValueError as error:
        raise InputError(
            f"{path}: needed the settings of a run in TOML, got: {error}; choose another --output"
        ) from None
    for name in ours:
        before, now = (old, new) if name == "job" else (old.get(name, {}), new[name])
        keys = [key for key, value in {**before, **now}.items() if not isinstance(value, dict)]
        for key in [key for key in keys if key not in MAY_CHANGE and before.get(key) != now.get(key)]:
            began, says = (shown(f"{key} = {as_toml(table.get(key))}") for table in (before, now))
            raise InputError(
                f"{path.parent}: holds another run: it began with {began}, but the settings now say {says}; resume "
                "with its own settings or choose another --output"
            )


def check_trainable(job: Opened, shape: ModelConfig, stages: list[str]) -> None:
    """Try `--train` and `--freeze` on a model without storage. A given model is read as far as its shapes."""
    common: Any = job.common
    policy = empty_policy(resolve_model(common.policy)) if common.policy else empty(shape)
    if common.train == "all":
        if common.freeze:
            freeze(policy, common.freeze)
            if not any(p.requires_grad for p in policy.parameters()):
                raise InputError(f"--freeze {','.join(common.freeze)}: no parameter is left to train; freeze fewer")
        return
    apply_lora(policy, job.settings["lora"])
    if isinstance(job.config, DPOConfig):
        check_models(apply_lora(empty(shape), job.settings["lora"]), empty(shape), job.config)
    # beside adapters that share one base (their only choices of `train`), a reward model is no model of its own
    if "reward" in stages and type(common).train == "all":
        apply_lora(RewardModel(empty(shape).transformer), job.settings["lora"])


def empty(shape: ModelConfig) -> Policy:
    with torch.device("meta"), Uninitialised():
        return Policy(Transformer(shape))


def save_tokenizer(job: Opened) -> None:
    """Write the new tokenizer into the job's folder. All stages share it."""
    folder = job.folder / "tokenizer"
    if job.common.policy:
        return
    if is_main() and not is_complete(folder):
        with written_whole(folder) as aside:
            job.tokenizer.save(aside)
    say(f"tokenizer: {job.tokenizer.vocab_size:,} tokens, {folder}")
