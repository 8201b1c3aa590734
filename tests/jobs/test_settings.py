"""Settings of a job: which sections a program has, on which of them a stage depends, and which are refused."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from minirlhf.algorithms import PPOConfig
from minirlhf.errors import InputError
from minirlhf.jobs import JobConfig, PipelineConfig, RLJobConfig
from minirlhf.jobs.effects import check_base, check_effects
from minirlhf.jobs.settings import sections, stage_settings
from minirlhf.training.settings import settings_to_toml


def built(classes, **instances):
    return {name: instances.get(name) or cls() for name, cls in classes.items()}


def test_a_program_has_its_own_section_those_of_the_stages_before_it_and_the_common_ones():
    assert list(sections("ppo", PPOConfig)) == ["job", "model", "sharding", "lora", "ppo", "run"]
    names = ["job", "model", "sharding", "lora", "sft", "reward_model", "ppo", "run"]
    assert list(sections("ppo", PPOConfig, after=("sft", "reward"))) == names
    assert "lora" not in sections("ppo", PPOConfig, adapters=False)


def test_other_defaults_reach_their_sections_and_no_other():
    classes = sections("ppo", PPOConfig, defaults={"task": "arithmetic", "ppo.lam": 0.5, "ppo.steps": 7})
    assert (classes["job"]().task, classes["ppo"]().lam, classes["ppo"]().steps) == ("arithmetic", 0.5, 7)
    assert (JobConfig().task, PPOConfig().lam) == ("reviews", 0.95)
    assert isinstance(classes["ppo"](), PPOConfig)


@pytest.mark.parametrize("name", ["ppo.lambda", "colour", "grpo.steps"])
def test_a_default_of_a_setting_that_does_not_exist_is_an_error(name):
    with pytest.raises((TypeError, KeyError, InputError)):
        sections("ppo", PPOConfig, defaults={name: 1})


def test_sft_and_reward_training_do_not_depend_on_the_settings_of_later_stages():
    classes = sections("ppo", PPOConfig, job=PipelineConfig, after=("sft", "reward"))
    one = built(classes, job=classes["job"](reward="DIR", stop_after="sft"))
    other = built(classes, ppo=PPOConfig(lam=0.5))
    for section in ("sft", "reward_model"):
        texts = [settings_to_toml(stage_settings(settings, section)) for settings in (one, other)]
        assert texts[0] == texts[1]
    assert stage_settings(one, "ppo") != stage_settings(other, "ppo")


def test_a_program_names_its_own_flags_that_the_first_stages_do_not_depend_on():
    @dataclass(frozen=True)
    class StudentConfig(JobConfig):
        student_width: int = 32
        later_stages_only: ClassVar[tuple[str, ...]] = ("student_width",)

    settings = built(sections("ppo", PPOConfig, job=StudentConfig, after=("sft",)), job=StudentConfig(student_width=8))
    sft, ppo = (stage_settings(settings, section) for section in ("sft", "ppo"))
    assert (sft["job"].student_width, ppo["job"].student_width) == (None, 8)
    # the stage of a program without the flag has the same text
    assert "student_width" not in settings_to_toml(sft) and "student_width = 8" in settings_to_toml(ppo)


def test_a_stage_depends_on_lora_only_where_adapters_are_trained_and_on_sections_that_it_names():
    settings = built(sections("ppo", PPOConfig, after=("sft",)))
    assert list(stage_settings(settings, "ppo")) == ["job", "model", "sharding", "ppo", "run"]
    assert list(stage_settings(settings, "ppo", "sft")) == ["job", "model", "sharding", "ppo", "run", "sft"]
    settings["job"] = JobConfig(train="lora")
    assert list(stage_settings(settings, "ppo")) == ["job", "model", "sharding", "lora", "ppo", "run"]


def test_settings_that_would_be_ignored_are_refused():
    classes = sections("ppo", PPOConfig)
    check_effects(built(classes))
    with pytest.raises(InputError, match="--template: needs"):
        check_effects(built(classes, job=JobConfig(template="zephyr")))
    with pytest.raises(InputError, match="--template_variables: needs"):
        check_effects(built(classes, job=JobConfig(template_variables="{}")))
    with pytest.raises(InputError, match="--lora.r: all weights are trained"):
        check_effects(built(classes, lora=classes["lora"](r=4)))
    check_effects(built(classes, lora=classes["lora"](r=4), job=JobConfig(train="lora")))
    with pytest.raises(InputError, match="--freeze: --train lora freezes"):
        check_effects(built(classes, job=JobConfig(train="lora", freeze=("layers.0",), policy="DIR")))


def test_adapters_need_a_trained_base():
    check_base(JobConfig())
    check_base(JobConfig(train="lora", policy="DIR"))
    with pytest.raises(InputError, match="--train qlora: needs a trained model"):
        check_base(JobConfig(train="qlora"))
    with pytest.raises(InputError, match="--freeze layers.0,norm: needs"):
        check_base(JobConfig(freeze=("layers.0", "norm")))


def test_a_program_without_the_flags_of_reward_and_stop_has_none():
    assert (JobConfig().reward, JobConfig().stop_after, RLJobConfig().stop_after) == (None, None, None)
    assert PipelineConfig(reward="DIR", stop_after="sft").stop_after == "sft"
    with pytest.raises(TypeError):
        JobConfig(reward="DIR")


def test_a_stage_that_another_flag_replaces_is_no_place_to_stop():
    classes = sections("ppo", PPOConfig, job=PipelineConfig)
    with pytest.raises(InputError, match="--policy replaces this stage, so --stop-after sft would do nothing"):
        check_effects(built(classes, job=PipelineConfig(policy="DIR", stop_after="sft")))
    with pytest.raises(InputError, match="--reward replaces this stage, so --stop-after reward would do nothing"):
        check_effects(built(classes, job=PipelineConfig(reward="DIR", stop_after="reward")))
    check_effects(built(classes, job=PipelineConfig(policy="DIR", stop_after="reward")))


@pytest.mark.parametrize("common", [{"train": "lora"}, {"freeze": ("layers.0",)}])
def test_a_program_without_adapters_refuses_them(common):
    classes = sections("ppo", PPOConfig, adapters=False)
    with pytest.raises(InputError, match="--train, --freeze: this program trains all weights of a new model"):
        check_effects(built(classes, job=JobConfig(policy="DIR", **common)))
