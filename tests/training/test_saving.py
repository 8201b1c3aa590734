"""Saving and loading a run: damage of every kind is named, weights are checked, a thread may write."""

import contextlib
import gc
import json
import shutil
import threading
from functools import partial

import pytest
import tiny
import torch

from minirlhf.errors import InputError
from minirlhf.losses import AdaptiveEntropyController, FixedKLController
from minirlhf.manifest import check_model_files, damage, write_manifest
from minirlhf.pretrained import trained
from minirlhf.pretrained.adapter_files import load_adapter, read_adapter, save_adapter, update_sizes
from minirlhf.pretrained.weights import load_pretrained
from minirlhf.rewards.functions import FileReward
from minirlhf.rewards.scoring import score_completions
from minirlhf.runtime import ending
from minirlhf.training import Run, RunConfig, saving
from minirlhf.training.checkpoint import written_whole
from minirlhf.training.run import finished_model
from minirlhf.training.state_types import check_state

STEPS = 4


def run_in(folder, stop=None, batches=STEPS, change=lambda trainer, step: None, **config):
    trainer = tiny.sft(torch.float32, STEPS)
    config = RunConfig(output=str(folder), **{"eval_every": 0, "save_every": 2, "keep": 9, **config})
    run = Run(config, trainer, tiny.batches(8, STEPS), tokenizer=tiny.tokenizer())
    for batch in run:
        metrics = trainer.step(batch)
        change(trainer, run.step)
        run.record(metrics)
        if run.step == stop:
            saving.wait(run)
            break
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_in(folder)
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_first_key(path):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(dict(list(value.items())[1:])))


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(bytes(range(128, 256)) * (path.stat().st_size // 128 + 1)),
    "gone": lambda path: path.unlink(),
}
JSON_DAMAGE = {
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("3"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "without a key": without_first_key,
}
MODEL_FILES = ["manifest.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
FILES = ["manifest.json", "state.json", "state.safetensors", *(f"policy/{name}" for name in MODEL_FILES[1:])]


def cases(files):
    return [(file, kind) for file in files for kind in DAMAGE | (JSON_DAMAGE if file.endswith(".json") else {})]


@pytest.mark.parametrize(("file", "kind"), cases(FILES))
def test_every_damage_of_the_newest_checkpoint_is_named(tmp_path, finished, file, kind):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    newest = tmp_path / "run/checkpoints/step-4"
    (DAMAGE | JSON_DAMAGE)[kind](newest / file)
    with pytest.raises(InputError, match=f"^{newest}: damaged: .*`--resume previous` .*step-2") as caught:
        run_in(tmp_path / "run", resume=True)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("file", "kind"), cases([file.removeprefix("policy/") for file in FILES if "state" not in file])
)
def test_every_damage_of_a_finished_model_is_named(tmp_path, finished, capsys, file, kind):
    """A text may be edited by hand, so a text that can still be read is only named."""
    shutil.copytree(finished / "model", tmp_path / "model")
    (DAMAGE | JSON_DAMAGE)[kind](tmp_path / "model" / file)
    if (file, kind) == ("manifest.json", "gone"):
        load_pretrained(tmp_path / "model")  # as a model from elsewhere
    elif file.endswith("safetensors") or file == "manifest.json" or kind == "gone":
        with pytest.raises(InputError, match=f"^{tmp_path / 'model'}: damaged: .*{file}"):
            load_pretrained(tmp_path / "model")
    else:
        with contextlib.suppress(InputError):  # of the reader of this text
            load_pretrained(tmp_path / "model")
        assert f"{tmp_path / 'model' / file}: changed since it was written\n" in capsys.readouterr().out


def test_an_edited_text_leaves_a_model_finished(tmp_path, finished, capsys):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"comment": "mine"}))
    assert finished_model(tmp_path / "run")
    run_in(tmp_path / "run", resume=True)  # it writes no other model over the edited folder
    assert "mine" in path.read_text() and "damaged" not in capsys.readouterr().out
    edited = tmp_path / "run/checkpoints/step-4/policy/config.json"  # a checkpoint is no place for edits
    edited.write_text(path.read_text())
    with pytest.raises(InputError, match="damaged: policy/config.json has"):
        run_in(tmp_path / "run", resume=True)


def as_before_checksums(folder):
    """Write the manifest of an early version."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "manifest.json").write_text(json.dumps({name: file["size"] for name, file in files.items()}))


def test_a_run_of_an_early_version_goes_on_and_says_that_its_contents_cannot_be_checked(tmp_path, finished, capsys):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    newest = tmp_path / "run/checkpoints/step-2"
    shutil.rmtree(tmp_path / "run/checkpoints/step-4")
    as_before_checksums(newest)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    run_in(tmp_path / "run", resume=True)
    line = "an early version wrote it without checksums; its sizes are right, its contents cannot be checked\n"
    assert capsys.readouterr().out.count(f"{newest}: {line}") == 1
    for file in ("model/model.safetensors", "checkpoints/step-4/state.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (finished / file).read_bytes()
    DAMAGE["truncated"](tmp_path / "other/checkpoints/step-2/policy/model.safetensors")
    with pytest.raises(
        InputError, match=f"^{tmp_path}/other/checkpoints/step-2: damaged: policy/model.safetensors has"
    ):
        run_in(tmp_path / "other", resume=True)


def test_a_model_of_an_early_version_is_loaded_and_its_sizes_are_checked(tmp_path, finished, capsys):
    for folder, source in (("model", "model"), ("step-4", "checkpoints/step-4")):
        shutil.copytree(finished / source, tmp_path / folder)
        as_before_checksums(tmp_path / folder)
        model = tmp_path / ("model" if folder == "model" else "step-4/policy")
        load_pretrained(model)
        assert f"{tmp_path / folder}: an early version wrote it without checksums" in capsys.readouterr().out
        DAMAGE["truncated"](model / "model.safetensors")
        with pytest.raises(InputError, match=f"^{tmp_path / folder}: damaged: .*model.safetensors has"):
            load_pretrained(model)
    shutil.copytree(finished / "model", tmp_path / "other")
    (tmp_path / "other/manifest.json").write_text('{"version": 3}')  # of another tool
    load_pretrained(tmp_path / "other")


def test_an_adapter_is_checked_alone_and_inside_a_checkpoint(tmp_path, capsys):
    with written_whole(tmp_path / "step-1", {"step": 1}) as folder:
        save_adapter(tiny.adapted(tiny.transformer()), folder / "policy")
    with written_whole(tmp_path / "adapter") as folder:
        save_adapter(tiny.adapted(tiny.transformer()), folder)
    for folder in (tmp_path / "step-1/policy", tmp_path / "adapter"):
        load_adapter(tiny.transformer(), folder)
        flip(folder / "adapter_model.safetensors")
        for read in (partial(load_adapter, tiny.transformer()), read_adapter, update_sizes):
            with pytest.raises(InputError, match="damaged: the checksum of .*adapter_model.safetensors differs"):
                read(folder)
        flip(folder / "adapter_model.safetensors")
    capsys.readouterr()
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(path.read_text() + "\n")
    read_adapter(tmp_path / "adapter")
    assert capsys.readouterr().out == f"{path}: changed since it was written\n"


def test_the_bits_of_a_manifest_count(tmp_path, finished):
    shutil.copytree(finished / "model", tmp_path / "model")
    path = tmp_path / "model/manifest.json"
    data = path.read_bytes()
    for position in range(0, len(data), 5):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 7
        path.write_bytes(broken)
        try:
            same = json.loads(broken) == json.loads(data)  # white space
        except ValueError:
            same = False
        assert same or damage(tmp_path / "model"), position


def test_a_model_inside_a_checkpoint_and_a_manifest_of_another_tool(tmp_path, finished):
    shutil.copytree(finished / "checkpoints/step-4", tmp_path / "step-4")
    check_model_files(tmp_path / "step-4/policy")
    flip(tmp_path / "step-4/policy/model.safetensors")
    with pytest.raises(InputError, match="the checksum of policy/model.safetensors differs"):
        load_pretrained(tmp_path / "step-4/policy")
    shutil.copytree(finished / "model", tmp_path / "other")
    (tmp_path / "other/manifest.json").write_text('{"models": []}')
    load_pretrained(tmp_path / "other")


STATES = [
    {"step": "4"},
    {"step": -1},
    {"step": 99},
    {"done": 3},
    {"best": []},
    {"best": {"step": 2}},
    {"trainer": {}},
    {"trainer": []},
    {"trainer": {"optimizer": 3}},
    {"trainer": {"optimizer": {"update": "3"}}},
    {"trainer": {"optimizer": {"update": -1}}},
    {"trainer": {"optimizer": {"update": 3.5}}},
    {"trainer": {"optimizer": {"update": float("nan")}}},
    {"trainer": {"optimizer": {"update": True}}},
    {"trainer": {"optimizer": {"update": 3, "moments": []}}},
    {"trainer": None},
]


@pytest.mark.parametrize("change", STATES, ids=str)
def test_a_whole_state_of_another_structure_is_named(tmp_path, finished, change):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    folder = tmp_path / "run/checkpoints/step-4"
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | change))
    (folder / "manifest.json").unlink()  # it would list itself
    write_manifest(folder, step=4)
    with pytest.raises(InputError, match=f"^{folder}(/state.json)?: needed "):
        run_in(tmp_path / "run", resume=True)


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "gone"])
def test_damaged_settings_are_named(tmp_path, finished, kind):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/config.toml"
    if kind == "flipped":  # in a setting that a resumed run may not change
        path.write_text(path.read_text().replace("save_every = 2", "save_every = 3"))
    else:
        DAMAGE[kind](path)
    with pytest.raises(InputError, match=f"^{tmp_path / 'run'}"):
        run_in(tmp_path / "run", resume=True)


def test_a_counter_is_a_whole_number_and_a_coefficient_any_number():
    check_state({"steps_done": 3, "coef": 1}, {"steps_done": 0, "coef": 0.1})
    for found in (3.0, 3.5, True, "3", None):
        with pytest.raises(ValueError, match="trainer/steps_done must be a whole number from 0 to 1e.15, got"):
            check_state({"steps_done": found}, {"steps_done": 0})
    for controller in (FixedKLController(1), AdaptiveEntropyController(1, 2.0, 0.1)):  # a user may write 1 for 1.0
        check_state({key: 0.75 for key in controller.state_dict()}, controller.state_dict())


# Weights


@pytest.mark.parametrize("value", [1e30, float("nan"), float("-inf")])
@pytest.mark.parametrize("async_save", [False, True])
def test_weights_that_are_not_sane_are_named_and_not_written(tmp_path, value, async_save):
    def spoil(trainer, step):
        if step == 3:
            with torch.no_grad():
                trainer.policy.transformer.model.norm.weight[1] = value

    text = f"step 4: policy.transformer.model.norm.weight holds .*last good checkpoint is {tmp_path}/checkpoints/step-2"
    with pytest.raises(InputError, match=text):
        run_in(tmp_path, change=spoil, async_save=async_save)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-2"} and not damage(
        tmp_path / "checkpoints/step-2"
    )
    assert not (tmp_path / "model").exists()


BAD = {
    "needed 2 scores, one per completion, got 3": lambda: [1.0] * 3,
    "needed a finite number for every completion, got nan for completion 1": lambda: [1.0, float("nan")],
    "ZeroDivisionError": lambda: 1 / 0,
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_reward_names_the_step_and_the_last_good_checkpoint(tmp_path, text):
    (tmp_path / "my.py").write_text("def f(completions):\n    return act()\n")
    reward = FileReward(f"{tmp_path / 'my.py'}:f")
    reward.function.__globals__["act"] = BAD[text]

    def score(trainer, step):
        if step == 3:
            score_completions(reward, ["p", "p"], ["a", "b"], [{}, {}])

    with pytest.raises(InputError) as caught:
        run_in(tmp_path / "run", change=score)
    folder = tmp_path / "run"
    begins = f"{folder}, step 3 (last good checkpoint: {folder}/checkpoints/step-2): reward {tmp_path / 'my.py'}:f: "
    assert str(caught.value).startswith(begins) and text in str(caught.value)
    assert ending.where() == f"{folder}, step 3 (last good checkpoint: {folder}/checkpoints/step-2)"  # for other errors
    del caught
    gc.collect()
    assert ending.where() == "outside of a run"
    with pytest.raises(InputError, match="^reward "):
        score(None, 3)


# A thread that writes


def test_a_thread_writes_the_same_bytes(tmp_path, finished):
    run_in(tmp_path, async_save=True)
    for path in [path for path in finished.rglob("*") if path.suffix in (".safetensors", ".json", ".jsonl")]:
        if path.name != "timings.jsonl":
            assert (tmp_path / path.relative_to(finished)).read_bytes() == path.read_bytes(), path


def test_the_loop_goes_on_while_the_thread_writes_and_the_checkpoint_holds_the_step_of_its_name(
    tmp_path, finished, monkeypatch
):
    goes_on, save = threading.Event(), trained.save_trained

    def slow(*args):
        if threading.current_thread() is not threading.main_thread():
            assert goes_on.wait(60)
        save(*args)

    monkeypatch.setattr(trained, "save_trained", slow)
    run_in(tmp_path, async_save=True, change=lambda trainer, step: goes_on.set() if step == 2 else None)
    name = "checkpoints/step-2/policy/model.safetensors"
    assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_the_thread_checks_the_weights_that_it_writes(tmp_path):
    """The loop has gone on when the thread finds the fault, and the last good checkpoint is not the faulty one."""

    def spoil(trainer, step):
        if step == 1:
            trainer.policy.transformer.model.norm.weight.data[1] = 2e9  # the next loss is still finite

    last = f"{tmp_path}/checkpoints/step-1"
    text = f"step 2: policy.transformer.model.norm.weight holds 2e.09, .*last good checkpoint is {last}"
    with pytest.raises(InputError, match=text) as caught:
        run_in(tmp_path, save_every=1, change=spoil, async_save=True)
    assert ending.where() == f"{tmp_path}, step 3 (last good checkpoint: {last})", caught.value


def test_an_error_of_the_thread_comes_up_at_the_next_save_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save = trained.save_trained

    def full(model, folder, *args):
        save(model, folder, *args)
        if "step-4" in str(folder):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained, "save_trained", full)
    with pytest.raises(InputError, match="step-4: needed to write it, got: No space left"):
        run_in(tmp_path, async_save=True)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-2"}
    monkeypatch.undo()
    run_in(tmp_path, resume=True)
