"""Runs of diffusion models: exact resume, folders, the programs from their first line to their last."""

import json
from copy import deepcopy

import pytest
import torch

from minirlhf.adapters.lora import LoRAConfig, adapter_view, apply_lora
from minirlhf.cli.main import main
from minirlhf.data import Batches
from minirlhf.errors import InputError
from minirlhf.extras.diffusion import files, rewards
from minirlhf.extras.diffusion.alignprop import AlignPropConfig, AlignPropTrainer
from minirlhf.extras.diffusion.chain import Chain, ChainConfig
from minirlhf.extras.diffusion.ddpo import DDPOConfig, DDPOTrainer
from minirlhf.extras.diffusion.denoiser import Denoiser, DenoiserConfig
from minirlhf.extras.diffusion.drawings import SHAPE, drawn, labels_of
from minirlhf.extras.diffusion.pretraining import PretrainingConfig, PretrainingTrainer
from minirlhf.extras.diffusion.rewards import ink
from minirlhf.training import Run
from minirlhf.training.run import RunConfig

from ...html import data_of

CHAIN = Chain(ChainConfig(denoising_steps=2))


def pretraining(model):
    pictures, label = drawn([(i,) for i in range(12)], 0, "x")
    config = PretrainingConfig(steps=4, batch_size=4, pictures=12)
    return PretrainingTrainer(model, pictures, label, "cosine", config), Batches.of(range(12), config)


def ddpo(model):
    config = DDPOConfig(steps=4, batch_size=2, group_size=2, kl_coef=0.1)
    reference = adapter_view(apply_lora(model, LoRAConfig(r=2)), None)
    batches = Batches([1, 2, 3], batch_size=2, steps=4, seed=0, stream="prompts")
    return DDPOTrainer(model, reference, ink, CHAIN, config, shape=SHAPE), batches


def alignprop(model):
    config = AlignPropConfig(steps=4, batch_size=2, kl_coef=0.1, mix_coef=0.1, last_steps=1)
    batches = Batches([1, 2, 3], batch_size=2, steps=4, seed=0, stream="prompts")

    def pictures(draws):
        return drawn([(draw.index,) for draw in draws], 0, "x")

    reference = deepcopy(model).requires_grad_(False)
    return AlignPropTrainer(model, reference, ink, CHAIN, config, shape=SHAPE, drawn=pictures), batches


def run(make, folder, resume=False, steps=4):
    """Some steps of a run; the program then ends as if it were killed."""
    torch.manual_seed(0)
    trainer, batches = make(Denoiser(DenoiserConfig(channels=8)))
    settings = RunConfig(output=str(folder), resume=resume, save_every=1)
    running = Run(settings, trainer, batches, files=files)
    for batch in running:
        running.record(trainer.step(batch))
        if running.step == steps < 4:
            return None
    return {name: p.clone() for name, p in trainer.models["denoiser"].named_parameters()}


@pytest.mark.parametrize("make", [pretraining, ddpo, alignprop])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(make, tmp_path):
    whole = run(make, tmp_path / "whole")
    run(make, tmp_path / "parts", steps=2)
    resumed = run(make, tmp_path / "parts", resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(p, resumed[name]) for name, p in whole.items())
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == 4
    final = files.load_denoiser(tmp_path / "parts" / "model")
    assert sum(p.numel() for p in final.parameters()) > 0


QUICK = ["--device", "cpu", "--threads", "1", "--chain.denoising_steps", "2", "--pretraining.pictures", "64"]
QUICK += ["--pretraining.steps", "2", "--pretraining.batch_size", "4"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minirlhf.extras.diffusion.rewards.CLASSIFIERS", {"gold": (2, 64, 0.4), "proxy": (2, 64, 0.0)})
    monkeypatch.setattr("minirlhf.extras.diffusion.program.EVALUATED", 20)

    def command(*words):
        monkeypatch.setattr("sys.argv", ["minirlhf", "train", *map(str, words)])
        main()

    return command


def test_the_programs_run_from_base_to_report(command, tmp_path, capsys):
    flags = ["--ddpo.steps", "2", "--ddpo.batch_size", "1", "--ddpo.group_size", "2", "--ddpo.kl_coef", "1"]
    command("ddpo", *QUICK, *flags, "--output", "one")
    names = {"base", "ddpo", "pictures", "pictures.png", "page.html"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    (job,) = data_of((tmp_path / "one" / "page.html").read_text())["jobs"]
    assert [name for name, _ in job["images"]] == ["pictures.png", *(f"pictures/step-{k}.png" for k in range(3))]
    assert {path.name for path in (tmp_path / "one/pictures").iterdir()} == {"step-0.png", "step-1.png", "step-2.png"}
    rows = [json.loads(line) for line in (tmp_path / "one/ddpo/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[-1].keys() >= {"score_mean", "kl", "eval/score", "eval/gold", "eval/kl"}
    out = capsys.readouterr().out
    assert "score (seven)" in out and "KL to the base" in out and "\neverything is in one\n" in out
    command("ddpo", *QUICK, *flags, "--output", "one", "--resume")  # finished: the report again
    assert "score (seven)" in capsys.readouterr().out

    flags = ["--alignprop.steps", "2", "--alignprop.batch_size", "2", "--train", "lora", "--reward", "ink"]
    flags += ["--base", "one/base/model", "--tracker", "tensorboard"]
    command("alignprop", *QUICK, *flags, "--output", "two")
    assert len(list((tmp_path / "two/alignprop/tensorboard").iterdir())) == 1
    assert (tmp_path / "two/alignprop/model/model.safetensors").exists()
    assert not (tmp_path / "two/base/model").exists() and "score (ink)" in capsys.readouterr().out


def test_what_cannot_work_is_refused_before_anything_is_written(command, tmp_path, capsys):
    for words, message in (
        (["ddpo", "--chain.denoising_steps", "0"], "denoising_steps must be at least 1 and at most 1000, got 0"),
        (["ddpo", "--chain.min_std", "0"], "step 9 has no noise, so no log-prob"),
        (["alignprop", "--reward", "size"], "size has no gradient"),
        (["ddpo", "--base", "missing"], "needed the settings of a denoiser"),
        (["alignprop", "--alignprop.last_steps", "11"], "last_steps must be at most the number of denoising steps"),
        (["ddpo", "--reward", "eight"], "--reward: needed"),
        (["ddpo", "--tracker", "tensorbord"], "--tracker: needed tensorboard, wandb"),
        (["ddpo", "--lora.r", "2"], "--lora.r: all weights are trained; give --train lora"),
        (["ddpo", "--base", ""], "--base: needed a value, got empty text"),
        (["ddpo", "--chain.guidance", "2"], "--chain.guidance: has no effect with --reward seven"),
    ):
        with pytest.raises(SystemExit) as caught:
            command(*words)
        err = capsys.readouterr().err
        assert caught.value.code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_base_of_another_schedule_is_refused(tmp_path):
    from minirlhf.extras.diffusion.program import check_base

    files.save_final(Denoiser(DenoiserConfig(channels=8, schedule="linear")), tmp_path)
    with pytest.raises(InputError, match="was trained with the schedule linear.*give --chain.schedule linear"):
        check_base(str(tmp_path), "cosine")


def test_a_job_is_not_resumed_on_another_base(command, tmp_path, capsys):
    """The reference would be another model than the model that training began with."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        files.save_final(Denoiser(DenoiserConfig(channels=8)), tmp_path / str(seed))
    flags = [*QUICK, "--base", "base", "--ddpo.steps", "1", "--ddpo.batch_size", "1", "--ddpo.group_size", "2"]
    (tmp_path / "0").rename(tmp_path / "base")
    command("ddpo", *flags, "--output", "job")
    assert "not read, because no such stage is trained: pretraining.steps" in capsys.readouterr().out
    (tmp_path / "base").rename(tmp_path / "0")
    (tmp_path / "1").rename(tmp_path / "base")
    with pytest.raises(SystemExit):
        command("ddpo", *flags, "--output", "job", "--resume")
    assert "model.safetensors: has changed since the job in job began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("channels", 4096, "needed the weights of this denoiser, got another set, shape"),
        ("size", 16.0, "size must be a whole number"),
        ("schedule", 5, "schedule must be text"),
        ("width", 5, "'width' is missing or unknown"),
    ],
)
def test_a_denoiser_of_other_settings_is_refused_before_its_weights_are_made(tmp_path, name, value, text):
    files.save_final(Denoiser(DenoiserConfig(channels=8)), tmp_path)
    path, before = tmp_path / "config.json", torch.random.get_rng_state()
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(InputError, match=text):
        files.load_denoiser(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_base_of_other_pictures_is_refused(tmp_path):
    from minirlhf.extras.diffusion.program import check_base

    files.save_final(Denoiser(DenoiserConfig(channels=8, labels=8)), tmp_path)
    with pytest.raises(InputError, match="needed pictures of this program.*labels=15.*got.*labels=8"):
        check_base(str(tmp_path), "cosine")


def test_guidance_is_refused_for_exactly_the_rewards_without_a_label(monkeypatch):
    monkeypatch.setattr(rewards, "CLASSIFIERS", {"gold": (1, 64, 0.4), "proxy": (1, 64, 0.0)})
    for name in ("seven", "ink", "size"):
        labels = labels_of(rewards.goal_of(name, 0, torch.device("cpu")).prompts)
        assert any(labels) == (name not in rewards.WITHOUT_LABEL)
