"""A pipeline's folder stands for the policy of its last stage."""

from __future__ import annotations

import re

import pytest

from minirlhf.errors import InputError
from minirlhf.jobs.given_rewards import reward_of
from minirlhf.jobs.models import resolve_model
from minirlhf.model import ModelConfig, RewardModel, Transformer, save_pretrained
from minirlhf.training.checkpoint import written_whole

SIZE = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
MODEL = Transformer(ModelConfig(**SIZE, num_hidden_layers=1))


def pipeline(folder, *stages, unfinished=()):
    for stage in (*stages, *unfinished):
        (folder / stage).mkdir(parents=True)
        (folder / stage / "config.toml").write_text("")
        if stage not in unfinished:
            with written_whole(folder / stage / "model") as aside:
                save_pretrained(RewardModel(MODEL) if "reward" in stage else MODEL, aside)
    return folder


@pytest.mark.parametrize(
    ("stages", "last"),
    [
        (["sft"], "sft"),
        (["sft", "reward"], "sft"),
        (["sft", "reward", "ppo"], "ppo"),
        (["dpo", "sft"], "dpo"),
        (["zzz", "sft"], "zzz"),
        (["reward", "grpo"], "grpo"),
    ],
    ids="+".join,
)
def test_a_pipeline_stands_for_its_last_policy(tmp_path, stages, last):
    assert resolve_model(pipeline(tmp_path, *stages)) == tmp_path / last / "model"
    assert resolve_model(tmp_path / last) == tmp_path / last / "model"
    assert resolve_model(tmp_path / last / "model") == tmp_path / last / "model"


@pytest.mark.parametrize(
    ("stages", "unfinished", "text"),
    [
        (
            ["sft", "dpo", "ppo"],
            [],
            "several stages after SFT have a policy; name one stage: {0}/dpo, {0}/ppo, {0}/sft",
        ),
        (["sft", "reward"], ["ppo"], "its stage ppo has not finished; name a stage that has: {0}/sft"),
        (["sft"], ["reward"], "its stage reward has not finished; name a stage that has: {0}/sft"),
    ],
    ids=range(3),
)
def test_a_folder_without_one_last_policy_is_refused(tmp_path, stages, unfinished, text):
    with pytest.raises(InputError, match=f"^{re.escape(f'{tmp_path}: {text.format(tmp_path)}')}"):
        resolve_model(pipeline(tmp_path, *stages, unfinished=unfinished))


def test_other_folders_stand_for_themselves(tmp_path):
    assert resolve_model(pipeline(tmp_path / "a", "reward")) == tmp_path / "a"
    assert resolve_model(tmp_path / "missing") == tmp_path / "missing"
    save_pretrained(MODEL, pipeline(tmp_path / "b", "sft", "ppo", "dpo"))
    assert resolve_model(tmp_path / "b") == tmp_path / "b"  # a model's folder, whatever lies in it


@pytest.mark.parametrize(
    ("stages", "advice"),
    [
        (["sft", "reward", "ppo"], "did you mean {0}/reward?"),
        (["reward"], "did you mean {0}/reward?"),
        (["reward", "reward_2", "sft", "dpo", "ppo"], "did you mean {0}/reward or {0}/reward_2?"),
        (["sft", "ppo"], "none of its stages has a reward model"),
    ],
    ids=range(4),
)
def test_a_pipeline_is_no_reward(tmp_path, stages, advice):
    text = f"{tmp_path}: needed a reward model's folder, found a pipeline's; {advice.format(tmp_path)}"
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        reward_of(str(pipeline(tmp_path, *stages)), load=None)
