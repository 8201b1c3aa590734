"""Run: the loop stays in the script, and the folder stays complete after stops, crashes and resumes."""

import json
import math
import os
import signal

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.algorithms import SFTConfig
from minirlhf.errors import InputError
from minirlhf.model import Policy
from minirlhf.runtime import keyed_uniforms
from minirlhf.training import Run, RunConfig, finished_model
from minirlhf.training.same_settings import check_same_settings
from minirlhf.training.settings import settings_to_toml


class Counter:
    """A trainer that sums its batches in its state and counts their rows in a model's weight."""

    headline, best = ("loss",), ("eval/goodness", "max")

    def __init__(self):
        self.models = {"policy": Policy(tiny.transformer(dtype=torch.float32))}
        self.weight, self.total, self.samples = self.models["policy"].transformer.model.norm.weight, 0, []

    def step(self, batch):
        self.total += sum(batch)
        with torch.no_grad():
            self.weight += len(batch)
        self.samples = [{"text": str(batch)}]
        return {"loss": 1.0 / self.total, "grad_norm": 1.0}

    def state_dict(self):
        return {"total": self.total, "tensor": torch.tensor([float(self.total)])}

    def load_state_dict(self, state):
        assert state["tensor"].tolist() == [state["total"]]
        self.total = state["total"]


BATCHES = [[k, k + 1] for k in range(1, 7)]  # six steps


def start(folder, trainer=None, *, batches=BATCHES, settings=None, evaluate=None, on_metrics=None, **config):
    trainer = trainer or Counter()
    config = RunConfig(output=str(folder), **{"eval_every": 0, "save_every": 0, **config})
    return Run(config, trainer, batches, settings=settings, evaluate=evaluate, on_metrics=on_metrics), trainer


def go(folder, trainer=None, after=lambda k: None, **options):
    run, trainer = start(folder, trainer, **options)
    for batch in run:
        metrics = trainer.step(batch)
        after(run.step)
        run.record(metrics)
    return run, trainer


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The loop


def test_the_loop_gets_every_batch_and_the_folder_is_complete(tmp_path):
    run, trainer = start(tmp_path / "run")
    seen = []
    for batch in run:
        seen.append(batch)
        run.record(trainer.step(batch))
    assert seen == BATCHES and run.step == 6
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "timings.jsonl",
        "samples.jsonl",
        "log.txt",
        "checkpoints",
        "model",
    }
    assert [line["step"] for line in lines(run.folder)] == list(range(6))
    assert lines(run.folder)[1] == {"step": 1, "loss": 1 / 8, "grad_norm": 1.0}
    assert lines(run.folder, "samples.jsonl")[0] == {"step": 0, "text": "[1, 2]"}
    assert checkpoints(run.folder) == ["step-6"] and finished_model(run.folder) == run.folder / "model"


def test_a_steps_noise_is_a_function_of_seed_and_step(tmp_path):
    noise = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        noise[name] = []
        torch.manual_seed(len(noise))  # another state of the generator
        go(tmp_path / name, after=lambda k, name=name: noise[name].append(torch.rand(()).item()), seed=seed)
    assert noise["a"] == noise["b"] and len({*noise["a"], *noise["c"]}) == 12


def test_a_steps_noise_is_a_fixed_number_and_no_hash_of_python(tmp_path):
    # splitmix64 is arithmetic, so these numbers hold in every version of Python
    noise = []
    go(tmp_path / "run", after=lambda k: noise.append(torch.initial_seed()), seed=7)
    keys = [keyed_uniforms(7, "dropout", step, 0).item() for step in range(6)]
    assert noise == [int(key * 2**53) for key in keys] and noise[0] == 3673605186640744


def test_forgetting_record_is_an_error_at_once(tmp_path):
    run, trainer = start(tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"each step must end with run.record\(trainer.step\(batch\)\)"):
        for batch in run:
            trainer.step(batch)
    assert trainer.total == 3 and finished_model(run.folder) is None


def test_weights_that_are_spoiled_after_the_last_step_are_no_finished_model(tmp_path):
    run, trainer = start(tmp_path, save_every=6)
    with pytest.raises(InputError, match="policy.transformer.model.norm.weight holds nan, needed finite weights"):
        for batch in run:
            run.record(trainer.step(batch))
            if run.step == 6:
                trainer.weight.data[0] = math.nan
    assert checkpoints(tmp_path) == ["step-6"] and not (tmp_path / "model").exists()


def test_leaving_the_loop_early_leaves_no_finished_model(tmp_path):
    run, trainer = start(tmp_path / "run", save_every=1)
    for batch in run:
        run.record(trainer.step(batch))
        break
    assert checkpoints(run.folder) == ["step-1"] and finished_model(run.folder) is None


def test_on_metrics_gets_what_is_written_evaluation_included(tmp_path):
    seen = []
    go(
        tmp_path,
        eval_every=3,
        evaluate=lambda: {"goodness": 7.0},
        on_metrics=lambda k, m: seen.append({"step": k, **m}),
    )
    assert seen == lines(tmp_path) and [k for k, m in enumerate(seen) if "eval/goodness" in m] == [2, 5]


# Evaluations and checkpoints


def test_the_last_step_is_evaluated_whatever_eval_every_says(tmp_path):
    for every, expected in ((0, [5]), (4, [3, 5]), (2, [1, 3, 5])):
        go(tmp_path / str(every), eval_every=every, evaluate=lambda: {"goodness": 0.0})
        assert [m["step"] for m in lines(tmp_path / str(every)) if "eval/goodness" in m] == expected


def test_none_means_ten_times_in_a_run(tmp_path):
    saved = []
    run, trainer = start(tmp_path, batches=[[1]] * 35, save_every=None, eval_every=None, evaluate=lambda: {"x": 0.0})
    run.save = lambda: saved.append(run.step)
    for batch in run:
        run.record(trainer.step(batch))
    every_fourth = [4, 8, 12, 16, 20, 24, 28, 32]
    assert saved == [*every_fourth, 35] and [m["step"] + 1 for m in lines(tmp_path) if "eval/x" in m] == saved


@pytest.mark.parametrize(
    ("direction", "values", "keep", "expected"),
    [
        ("max", [1, 9, 2, 3, 4, 5], 2, ["step-2", "step-5", "step-6"]),  # the best and the last two
        ("max", [1, 9, 2, 3, 4, 5], 1, ["step-2", "step-6"]),
        ("max", [1, 2, 3, 4, 5, 9], 2, ["step-5", "step-6"]),
        ("max", [3, 3, 3, 3, 3, 3], 1, ["step-1", "step-6"]),  # an equal evaluation is not better
        ("min", [5, 1, 2, 3, 4, 5], 1, ["step-2", "step-6"]),
    ],
)
def test_the_last_checkpoints_and_the_best_are_kept(tmp_path, direction, values, keep, expected):
    trainer, left = Counter(), iter(values)
    trainer.best = ("eval/goodness", direction)
    go(tmp_path, trainer, eval_every=1, save_every=1, keep=keep, evaluate=lambda: {"goodness": float(next(left))})
    assert checkpoints(tmp_path) == expected


def test_the_best_evaluation_is_saved_although_no_checkpoint_is_due(tmp_path):
    left = iter([1.0, 9.0, 2.0])
    go(tmp_path, eval_every=2, save_every=0, keep=3, evaluate=lambda: {"goodness": next(left)})
    assert checkpoints(tmp_path) == ["step-2", "step-4", "step-6"]


def test_the_best_evaluation_before_a_resume_stays_the_best(tmp_path):
    values = {2: 9.0, 4: 1.0, 6: 2.0}
    run, trainer = start(tmp_path, eval_every=2, save_every=1, keep=1, evaluate=lambda: {"goodness": values[run.step]})
    with pytest.raises(RuntimeError, match="power cut"):
        for batch in run:
            if run.step == 3:
                raise RuntimeError("power cut")
            run.record(trainer.step(batch))
    run, trainer = start(
        tmp_path, resume=True, eval_every=2, save_every=1, keep=1, evaluate=lambda: {"goodness": values[run.step]}
    )
    for batch in run:
        run.record(trainer.step(batch))
    assert checkpoints(tmp_path) == ["step-2", "step-6"]


def test_a_checkpoint_holds_the_weights_the_state_and_the_tokenizer(tmp_path):
    trainer = Counter()
    run = Run(RunConfig(output=str(tmp_path), save_every=3), trainer, BATCHES, tokenizer=tiny.tokenizer())
    for batch in run:
        run.record(trainer.step(batch))
    for folder in (tmp_path / "checkpoints" / "step-6" / "policy", tmp_path / "model"):
        files = {path.name for path in folder.iterdir()} - {"manifest.json"}
        ours = {"config.json", "generation_config.json", "model.safetensors"}
        assert files == ours | {"tokenizer.json", "tokenizer_config.json"}


class TextFiles:
    """Files of one number: the weight that Counter trains."""

    def has_adapter(self, model):
        return True

    def save_trained(self, model, folder, tokenizer=None, base=None):
        folder.mkdir(exist_ok=True)
        (folder / "weight.txt").write_text(f"{model.transformer.model.norm.weight[0].item()} on {base}")

    def load_trained(self, model, folder):
        weight = float((folder / "weight.txt").read_text().split()[0])
        torch.nn.init.constant_(model.transformer.model.norm.weight, weight)

    def save_final(self, model, folder, tokenizer=None, base=None):
        (folder / "final.txt").write_text("final")


def test_files_saves_and_loads_the_models(tmp_path):
    def start_with_text(**options):
        trainer = Counter()
        config = RunConfig(output=str(tmp_path), save_every=3, base="below", **options)
        return Run(config, trainer, BATCHES, files=TextFiles()), trainer

    run, trainer = start_with_text()
    for batch in run:
        run.record(trainer.step(batch))
        if run.step == 3:
            break
    run, trainer = start_with_text(resume=True)  # two rows a step add 2 to the weight, which begins at 1
    assert run.step == 3 and list(trainer.weight) == [7] * 16
    for batch in run:
        run.record(trainer.step(batch))
    found = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.txt") if p.name != "log.txt"}
    assert found == {
        "checkpoints/step-3/policy/weight.txt": "7.0 on below",
        "checkpoints/step-6/policy/weight.txt": "13.0 on below",
        "adapter/weight.txt": "13.0 on below",
        "model/final.txt": "final",
    }


# Resume


def interrupted(folder, at=4, **options):
    def stop(k):
        if k == at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        go(folder, after=stop, save_every=3, **options)


def test_a_resumed_run_continues_from_its_last_checkpoint(tmp_path):
    whole, whole_trainer = go(tmp_path / "whole", save_every=3)
    interrupted(tmp_path / "cut")
    assert [m["step"] for m in lines(tmp_path / "cut")] == [0, 1, 2, 3]
    run, trainer = start(tmp_path / "cut", resume=True, save_every=3)
    assert (run.step, trainer.total) == (3, 3 + 5 + 7) and [m["step"] for m in lines(run.folder)] == [0, 1, 2]
    assert list(trainer.weight) == [7] * 16
    seen = []
    for batch in run:
        seen.append(batch)
        run.record(trainer.step(batch))
    assert seen == BATCHES[3:] and trainer.total == whole_trainer.total
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_run_cut_before_its_first_checkpoint_begins_again(tmp_path):
    interrupted(tmp_path, at=1)
    assert not (tmp_path / "checkpoints").exists()
    run, trainer = go(tmp_path, resume=True, save_every=3)
    assert [m["step"] for m in lines(tmp_path)] == list(range(6)) and trainer.total == 48


def test_a_half_written_checkpoint_is_named_and_skipped_on_request(tmp_path):
    interrupted(tmp_path, at=4)
    newest = tmp_path / "checkpoints" / "step-3"
    older = tmp_path / "checkpoints" / "step-2"
    os.rename(newest, older)
    newest.mkdir()
    (newest / "state.json").write_text('{"step": 3, "be')
    before = everything(tmp_path)
    assert f"{newest}: damaged: manifest.json is missing; `--resume previous`" in refusal(
        start, tmp_path, resume=True, save_every=3
    )
    assert everything(tmp_path) == before
    run, _ = start(tmp_path, resume="previous", save_every=3)
    assert run.step == 3 and not newest.exists() and (tmp_path / "left-001" / "step-3" / "state.json").exists()


def test_a_half_deleted_checkpoint_is_removed(tmp_path):
    interrupted(tmp_path, at=4)
    half = tmp_path / "checkpoints" / ".step-1.77.old.tmp" / "policy"  # discard() renames a checkpoint like this first
    half.mkdir(parents=True)
    go(tmp_path, resume=True, save_every=3)
    assert checkpoints(tmp_path) == ["step-3", "step-6"] and not half.parent.exists()


def test_a_folder_named_like_a_checkpoint_is_neither_read_nor_deleted(tmp_path):
    interrupted(tmp_path, at=4)
    for name in ("step-1", "step-5-copy"):  # incomplete and older than the newest; another name
        (tmp_path / "checkpoints" / name).mkdir()
    go(tmp_path, resume=True, save_every=3)
    assert {"step-1", "step-5-copy"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}


def test_a_broken_checkpoint_is_named(tmp_path):
    interrupted(tmp_path, at=4)
    weights = tmp_path / "checkpoints" / "step-3" / "policy" / "model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    before = everything(tmp_path)
    text = refusal(start, tmp_path, resume=True, save_every=3)
    assert f"{weights.parents[1]}: damaged: the checksum of policy/model.safetensors differs" in text
    assert everything(tmp_path) == before


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    go(tmp_path)
    before = everything(tmp_path)
    _, trainer = go(tmp_path, resume=True)
    after = everything(tmp_path)
    assert trainer.total == 48 and after.keys() == before.keys()
    assert {path.name for path in after if after[path] != before[path]} <= {"log.txt"}


def test_a_restart_by_torchrun_resumes_without_the_flag(tmp_path, monkeypatch):
    interrupted(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run, trainer = go(tmp_path, save_every=3)
    assert trainer.total == 48 and [m["step"] for m in lines(tmp_path)] == list(range(6))


# Refusals: nothing is overwritten


def test_a_folder_with_a_run_asks_for_resume(tmp_path):
    interrupted(tmp_path)
    before = everything(tmp_path)
    text = refusal(start, tmp_path)
    assert text == f"{tmp_path}: holds a run already; give --resume or choose another --output"
    assert everything(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    text = refusal(start, tmp_path, resume=resume)
    assert text == f"{tmp_path}: holds files that are not a run's; choose another --output"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_that_differ_from_the_run_are_refused_with_the_first_difference(tmp_path):
    interrupted(tmp_path, settings={"sft": SFTConfig(lr=0.25)})
    before = everything(tmp_path)
    text = refusal(start, tmp_path, resume=True, save_every=3, settings={"sft": SFTConfig(lr=0.5)})
    assert text == (
        f"{tmp_path}: holds another run: it began with 'lr = 0.25', but the settings now say 'lr = 0.5'; resume with "
        "its own settings or choose another --output"
    )
    assert everything(tmp_path) == before


def test_a_missing_setting_is_a_difference(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[a]\nx = 1\n")
    assert "began with 'x = 1', but the settings now say 'y = 2'" in refusal(
        check_same_settings, path, "[a]\nx = 1\ny = 2\n"
    )


def test_device_threads_and_output_may_change_on_resume(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('resume = false\noutput = "a"\nstop_after = "sft"\ndevice = "cpu"\nthreads = 1\nseed = 3\n')
    check_same_settings(path, 'resume = true\ndevice = "auto"\nseed = 3\n')
    assert "seed" in refusal(check_same_settings, path, 'resume = true\ndevice = "auto"\nseed = 4\n')


def test_a_setting_whose_name_begins_like_output_may_not_change(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("output_bias = false\n")
    assert "output_bias" in refusal(check_same_settings, path, "output_bias = true\n")


def test_config_toml_holds_the_settings(tmp_path):
    settings = {"sft": SFTConfig(lr=0.25)}
    go(tmp_path, settings=settings)
    assert (tmp_path / "config.toml").read_text() == settings_to_toml(settings)


@pytest.mark.parametrize("settings", [{"eval_every": -1}, {"save_every": -1}, {"keep": 0}])
def test_counts_out_of_range_are_refused(settings):
    ((name, value),) = settings.items()
    assert f"RunConfig: {name} must be at least {value + 1}, got {value}" in refusal(RunConfig, **settings)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("save_every", "last"), [(2, "checkpoints/step-2"), (0, "none")])
def test_a_non_finite_loss_or_gradient_names_the_step_and_the_last_good_checkpoint(
    tmp_path, name, value, save_every, last
):
    run, trainer = start(tmp_path, save_every=save_every)

    def train():
        for batch in run:
            metrics = trainer.step(batch)
            run.record(metrics | {name: value} if run.step == 3 else metrics)

    text = refusal(train)
    assert text.startswith(f"{tmp_path}: step 3: {name} is {value}, needed a finite number; ")
    assert f"the last good checkpoint is {last if last == 'none' else tmp_path / last};" in text
    assert [m["step"] for m in lines(tmp_path)] == [0, 1, 2] and finished_model(tmp_path) is None


def test_a_diverging_trainer_is_stopped_with_its_weights_intact(tmp_path):
    trainer = tiny.sft(torch.float32, updates=6)
    run = Run(RunConfig(output=str(tmp_path)), trainer, tiny.batches(8, 6))
    kept = {}
    with pytest.raises(InputError, match="step 2: loss is nan"):
        for batch in run:
            if run.step == 2:
                trainer.policy.transformer.model.norm.weight.data[0] = math.nan
                kept = tiny.weights(trainer)
            run.record(trainer.step(batch))
    assert_close(tiny.weights(trainer), kept, rtol=0, atol=0, equal_nan=True)


# A clean stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint_and_it_resumes(tmp_path, number):
    go(tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run, trainer = start(tmp_path / "cut")
    with pytest.raises(SystemExit) as caught:
        for batch in run:
            if run.step == 2:
                os.kill(os.getpid(), number)
            run.record(trainer.step(batch))
    assert caught.value.code == 128 + number and run.step == 3
    assert checkpoints(run.folder) == ["step-3"] and finished_model(run.folder) is None
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert "stopped at step 3 with a checkpoint; continue with --resume" in (run.folder / "log.txt").read_text()
    go(run.folder, resume=True)
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (run.folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("numbers", "seconds", "error"),
    [
        ("SIGINT SIGINT", 3, KeyboardInterrupt),
        ("SIGTERM SIGINT SIGINT", 3, KeyboardInterrupt),
        ("SIGINT SIGINT", 0.5, SystemExit),  # an echo: torchrun hands on the Ctrl-C that the terminal sent
        ("SIGUSR1 SIGTERM SIGTERM", 30, SystemExit),
        ("SIGINT SIGTERM", 30, SystemExit),
        ("SIGTERM SIGINT", 30, SystemExit),
    ],
)
def test_only_a_second_ctrl_c_ends_the_run_without_a_checkpoint(tmp_path, monkeypatch, numbers, seconds, error):
    run, trainer = start(tmp_path)
    clock = [100.0]
    monkeypatch.setattr("minirlhf.training.run.time.monotonic", lambda: clock[0])
    with pytest.raises(error) as caught:
        for batch in run:
            for name in numbers.split():
                os.kill(os.getpid(), getattr(signal, name))
                clock[0] += seconds
            run.record(trainer.step(batch))
    assert (tmp_path / "checkpoints").exists() == (error is SystemExit)
    assert error is KeyboardInterrupt or caught.value.code == 128 + getattr(signal, numbers.split()[0])


def test_a_stop_after_the_last_step_still_resumes_to_a_finished_model(tmp_path):
    run, trainer = start(tmp_path)
    with pytest.raises(SystemExit):
        for batch in run:
            if run.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            run.record(trainer.step(batch))
    go(tmp_path, resume=True)
    assert finished_model(tmp_path) and [m["step"] for m in lines(tmp_path)] == list(range(6))


def test_the_loop_works_in_a_thread_although_signals_cannot_be_caught(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        pool.submit(go, tmp_path).result()
    assert finished_model(tmp_path)


# With a real trainer


def test_an_sft_run_resumes_bit_for_bit_after_a_stop(tmp_path):
    tiny.go_on("sft", tmp_path / "whole")
    with pytest.raises(SystemExit):
        tiny.go_on("sft", tmp_path / "cut", after_step=lambda k: k == 4 and os.kill(os.getpid(), signal.SIGTERM))
    tiny.go_on("sft", tmp_path / "cut", resume=True)
    for name in ("metrics.jsonl", "model/model.safetensors", "checkpoints/step-8/state.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    evaluated = [m for m in lines(tmp_path / "cut") if "eval/loss" in m]
    assert [m["step"] for m in evaluated] == [1, 3, 5, 7] and evaluated[-1]["eval/loss"] < evaluated[0]["eval/loss"]


# A cell of a notebook that runs twice


def test_overwrite_deletes_the_earlier_run_and_begins_anew(tmp_path):
    go(tmp_path / "run", save_every=2, overwrite=True)
    first = everything(tmp_path / "run")
    (tmp_path / "run" / ".model.1.tmp").mkdir()
    run, _ = go(tmp_path / "run", save_every=2, overwrite=True, batches=BATCHES[:4])
    assert (run.step, len(lines(tmp_path / "run"))) == (4, 4) and len(first) > 5
    assert checkpoints(tmp_path / "run") == ["step-2", "step-4"]
    go(tmp_path / "run", save_every=2, resume=True, batches=BATCHES[:4])  # resume ignores how the run began


@pytest.mark.parametrize("name", ["notes.txt", "model.bak", ".git", "checkpoints"])
def test_overwrite_deletes_nothing_but_a_run(tmp_path, name):
    folder = tmp_path / "run"
    go(folder, save_every=2)
    if name == "checkpoints":  # a link that leads elsewhere
        (folder / name).rename(tmp_path / "elsewhere")
        (folder / name).symlink_to(tmp_path / "elsewhere")
    elif name == ".git":
        (folder / name).mkdir()
    else:
        (folder / name).write_text("mine")
    before = everything(tmp_path)
    text = refusal(start, folder, overwrite=True)
    assert text == (
        f"{folder}: overwrite deletes a run's own files only, found {name}; move them, or choose another output"
    )
    assert everything(tmp_path) == before


def test_overwrite_wants_a_run(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("weights of mine")
    text = refusal(start, tmp_path, overwrite=True)
    assert text.startswith(f"{tmp_path}: overwrite deletes a run's own files only, found model/model.safetensors; ")
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert refusal(start, tmp_path, overwrite=True, resume=True).endswith("got both; leave one out")


@pytest.mark.parametrize(
    "name", ["model/notes.txt", "checkpoints/mine", "checkpoints/step-6/a.bin", "model/config.json"]
)
def test_overwrite_deletes_nothing_that_the_run_did_not_write_into_its_folders(tmp_path, name):
    folder = tmp_path / "run"
    go(folder, save_every=2)
    (folder / name).write_text("mine")
    before = everything(tmp_path)
    assert f"found {name}; move them" in refusal(start, folder, overwrite=True)
    assert everything(tmp_path) == before


def test_overwrite_leaves_the_files_of_another_program(tmp_path):
    for name in ("config.toml", "log.txt", "metrics.jsonl"):
        (tmp_path / name).write_text("lr = 1\n")
    text = refusal(start, tmp_path, overwrite=True)
    assert text == f"{tmp_path}: overwrite needs the folder of a run, found no config.toml or log.txt of a run in it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "log.txt", "metrics.jsonl"]


def test_an_overwrite_that_was_cut_short_can_be_repeated(tmp_path, monkeypatch):
    go(tmp_path / "run", save_every=2)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(OSError("no power")))
        start(tmp_path / "run", overwrite=True)
    assert go(tmp_path / "run", overwrite=True)[0].step == len(BATCHES)


def test_an_elastic_restart_resumes_although_the_run_began_with_overwrite(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(step):
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        go(tmp_path / "run", save_every=1, overwrite=True, after=stop)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    run, _ = start(tmp_path / "run", save_every=1, overwrite=True)
    assert run.step == 3
