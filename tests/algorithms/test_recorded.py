"""Rollouts that are recorded and replayed: an update from a file is the live update, bit for bit."""

import json
from dataclasses import fields

import pytest
import tiny
import torch
from torch import Tensor

from minirlhf.algorithms import GRPOConfig, PPOConfig
from minirlhf.errors import InputError
from minirlhf.rollout.rollout import Rollout
from minirlhf.training.recorded import Recorder, Replay, fingerprint, read_rollout, recorded_steps

BATCH = tiny.batches(8, 2)
MAKERS = {
    "ppo": lambda **more: tiny.ppo(epochs=1, **more),
    "ppo in fp32 with a value model": lambda **more: tiny.ppo(dtype=torch.float32, value_model=True, epochs=1, **more),
    "dapo": lambda **more: tiny.grpo(algorithm="dapo", resample=1, **more),
    "remax": lambda **more: tiny.grpo(algorithm="remax", minibatch_size=8, **more),
}
LONG = ("remax", "ppo in fp32 with a value model")


def never(prompts, completions, rows):
    raise AssertionError("a replay calls no reward")


def trained(trainer, first=0):
    return [trainer.step(BATCH[step]) for step in range(first, 2)]


def silent(name, **more):
    """A trainer whose rewards must not be called."""
    return MAKERS[name](**{"reward" if name.startswith("ppo") else "rewards": never}, **more)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in MAKERS]
)
def test_a_replayed_run_is_the_live_run_bit_for_bit(name, tmp_path):
    live = MAKERS[name]()
    live.sampler = Recorder(tmp_path, live)
    metrics = trained(live)
    again = silent(name)
    again.sampler = Replay(tmp_path, again)
    assert trained(again) == metrics
    torch.testing.assert_close(tiny.weights(again), tiny.weights(live), rtol=0, atol=0)
    assert again.samples == live.samples and recorded_steps(tmp_path) == [1, 2]


def test_recording_changes_nothing_and_a_resumed_replay_goes_on_bit_for_bit(tmp_path):
    live, plain = MAKERS["ppo"](), MAKERS["ppo"]()
    live.sampler = Recorder(tmp_path, live)
    metrics = trained(live)
    assert trained(plain) == metrics
    first, resumed = silent("ppo"), silent("ppo")
    first.sampler, resumed.sampler = Replay(tmp_path, first), Replay(tmp_path, resumed)
    first.step(BATCH[0])
    resumed.policy.load_state_dict(first.policy.state_dict())
    resumed.load_state_dict(first.state_dict())
    assert trained(resumed, first=1) == metrics[1:]
    torch.testing.assert_close(tiny.weights(resumed), tiny.weights(live), rtol=0, atol=0)


@pytest.fixture
def recorded(tmp_path):
    """A folder with a rollout, and the rollout."""
    trainer, found = MAKERS["ppo"](), []
    recorder = Recorder(tmp_path, trainer)
    trainer.sampler = lambda *parts, **options: found.append(recorder(*parts, **options)) or found[-1]
    trainer.step(BATCH[0])
    return tmp_path, found[0]


def replayed(folder, trainer=None, batch=None, rescore=False):
    trainer = trainer or silent("ppo")
    trainer.sampler = Replay(folder, trainer, rescore)
    return trainer.collect(batch or BATCH[0])


def test_every_field_keeps_its_dtype_and_its_values(recorded):
    folder, live = recorded
    found, origin = read_rollout(folder / "step-1" / "rollout.0-of-1")
    for field in fields(Rollout):
        before, after = getattr(live, field.name), getattr(found, field.name)
        if isinstance(before, Tensor):
            assert before.dtype == after.dtype and torch.equal(before, after), field.name
        else:
            assert before == after, field.name
    assert origin["sampling"]["max_tokens"] == 10 and origin["seed"] == 0


def test_another_reward_scores_the_recorded_texts(recorded):
    folder, live = recorded
    asked = []

    def lengths(prompts, completions, rows):
        asked.append((prompts, completions, [row["prompt"] for row in rows]))
        return [float(len(text)) for text in completions]

    found = replayed(folder, MAKERS["ppo"](reward=lengths, lr=0.5), rescore=True)
    prompts = [draw.row.source["prompt"] for draw in BATCH[0]]
    assert asked == [(prompts, live.completions, prompts)]
    assert found.scores.tolist() == [len(text) for text in live.completions]
    assert torch.equal(found.logps, live.logps) and torch.equal(found.values, live.values)


def test_new_scores_do_not_choose_the_prompts_of_dynamic_sampling(tmp_path):
    live = MAKERS["dapo"]()
    live.sampler = Recorder(tmp_path, live)
    live.step(BATCH[0])
    again = MAKERS["dapo"](rewards=lambda prompts, completions, rows: [0.0] * len(rows))  # all groups are equal
    again.sampler = Replay(tmp_path, again, rescore=True)
    with pytest.raises(InputError, match="^replay: dynamic sampling has chosen prompts by the recorded scores"):
        again.step(BATCH[0])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"temperature": 0.7}, "recorded with sampling.temperature 1.0, replayed with 0.7; use the settings"),
        ({"lr": 0.5}, "recorded with settings.lr 0.01, replayed with 0.5"),
        ({"seed": 1}, "recorded with seed 0, replayed with 1"),
        ({"dtype": torch.float32}, "recorded with precision 'torch.float64', replayed with 'torch.float32'"),
    ],
)
def test_other_settings_are_refused_by_name(recorded, settings, reason):
    with pytest.raises(InputError, match=reason):
        replayed(recorded[0], silent("ppo", **settings))


def test_other_models_rows_and_vocabularies_are_refused_by_name(recorded, monkeypatch):
    folder = recorded[0]
    with pytest.raises(InputError, match="recorded for other prompts; use the rows, the seed and the batch_size"):
        replayed(folder, batch=BATCH[1])
    trainer = silent("ppo")
    with torch.no_grad():
        next(trainer.policy.parameters()).view(-1)[-1] += 1e-12
    with pytest.raises(InputError, match="the policy's weights are not those that wrote this rollout"):
        replayed(folder, trainer)
    found, origin = read_rollout(folder / "step-1" / "rollout.0-of-1")

    def refused(changes, reason):
        monkeypatch.setattr("minirlhf.training.recorded.read_rollout", lambda path: (found, origin | changes))
        with pytest.raises(InputError, match=reason):
            replayed(folder)

    refused({"tokenizer": "other"}, "recorded with another tokenizer, so its ids are other texts")
    refused({"reference": "other"}, "the reference's weights are not those of the recorded run")
    shape = origin["model"] | {"hidden_size": 99}
    refused({"model": shape}, "recorded with model.hidden_size 99, replayed with")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
def test_the_fingerprint_of_a_model_reads_every_number(dtype, monkeypatch):
    monkeypatch.setattr("minirlhf.training.recorded.AT_ONCE", {"cpu": 7})
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Module()
    for name, shape in {"embedding": (9, 5), "scale": (3,)}.items():
        numbers = torch.randint(0, 256, shape, generator=generator).to(dtype)
        model.register_parameter(name, torch.nn.Parameter(numbers, requires_grad=False))
    before, seen = fingerprint(model), set()
    for p in model.parameters():
        for i in range(p.numel()):
            bits = p.view(-1).view(torch.uint8)
            bits[i * p.element_size()] ^= 1  # the smallest change
            seen.add(fingerprint(model))
            bits[i * p.element_size()] ^= 1
    assert len(seen) == 48 and before not in seen and fingerprint(model) == before
    model.embedding[[0, 4]] = model.embedding[[4, 0]]  # the same numbers in another order
    assert fingerprint(model) != before


def test_missing_damaged_and_partial_files_are_named(recorded):
    folder = recorded[0]
    path = folder / "step-1" / "rollout.0-of-1"
    trainer = silent("ppo")
    trainer.steps_done = 4
    with pytest.raises(InputError, match="needed the rollout of step 5, found none; recorded are the steps 1 to 1"):
        replayed(folder, trainer)
    with pytest.raises(InputError, match="holds no rollouts"):
        replayed(folder / "nothing")
    content = bytearray((path / "rollout.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "rollout.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"0-of-1: damaged: the checksum of rollout.safetensors differs.*record the"):
        replayed(folder)
    (path / "rollout.safetensors").unlink()
    with pytest.raises(InputError, match="damaged: rollout.safetensors is missing"):
        replayed(folder)
    path.rename(path.with_name("rollout.0-of-2"))
    with pytest.raises(InputError, match="it was recorded by 2 processes and is replayed by 1"):
        replayed(folder)


def test_a_file_that_fits_its_manifest_but_is_no_rollout_is_refused(tmp_path):
    from minirlhf.manifest import write_manifest

    (tmp_path / "rollout.json").write_text(json.dumps({"origin": {}, "completions": []}))
    write_manifest(tmp_path)
    with pytest.raises(InputError, match="needed a recorded rollout, got"):
        read_rollout(tmp_path)


def test_the_settings_of_a_rollout_are_json():
    for config in (PPOConfig(), GRPOConfig().recipe):
        assert json.loads(json.dumps(vars(config)))
