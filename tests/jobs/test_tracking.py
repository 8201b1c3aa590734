"""--tracker: each step goes to the trackers, counted from 1; a tracker that fails is named once and ends no run."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from minirlhf.errors import InputError
from minirlhf.jobs.tracking import Tracking, check_trackers
from minirlhf.seeing import trackers

MY = """
seen = []
def log(step, metrics):
    seen.append((step, metrics))
    metrics.clear()
def fails(step, metrics):
    if step == 2:
        raise SystemExit("no network\\n at all")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.toml").write_text("seed = 3\n[ppo]\nlr = 0.5\n")
    (tmp_path / "my.py").write_text(MY)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """The calls of packages that are not installed."""
    made = []

    def note(name):
        def call(*words, **options):
            made.append((name, *words, *options.values()))
            return SimpleNamespace(log=note(f"{name}.log"), finish=note(f"{name}.finish"))

        return call

    names = {
        "wandb": ("init",),
        "trackio": ("init", "log", "finish"),
        "mlflow": ("set_experiment", "start_run", "end_run", "log_params", "log_metrics"),
    }
    for package, functions in names.items():
        module = ModuleType(package)
        for function in functions:
            setattr(module, function, note(f"{package}.{function}"))
        monkeypatch.setitem(sys.modules, package, module)
    return made


def test_a_function_gets_each_step_and_cannot_change_the_metrics(folder):
    metrics = {"loss": 1.0}
    track = Tracking([f"{folder}/my.py:log"], folder, steps=2)
    track(0, metrics)
    track(1, metrics)
    seen = sys.modules[str((folder / "my.py").resolve())].seen
    assert [step for step, _ in seen] == [1, 2] and metrics == {"loss": 1.0}


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(folder, capsys):
    good, bad = f"{folder}/my.py:log", f"{folder}/my.py:fails"
    track = Tracking([bad, "tensorboard", good], folder, steps=9)
    for step in range(4):
        track(step, {"loss": 1.0})
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith(f"--tracker {bad}: gets no more numbers of {folder.name}: InputError: tracker ")
    assert "no network at all" in err[0]
    assert list(track.trackers) == ["tensorboard", good]
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_a_tracker_that_does_not_open_ends_no_run(folder, capsys):
    (folder / "tensorboard").write_text("no folder")
    track = Tracking(["tensorboard"], folder, steps=1)
    track(0, {"loss": 1.0})
    assert "--tracker tensorboard: gets no more numbers" in capsys.readouterr().err and track.trackers == {}


def test_packages_get_a_run_its_settings_its_numbers_and_its_end(folder, calls):
    track = Tracking(["wandb", "trackio", "mlflow"], folder, steps=2)
    for step in range(2):
        track(step, {"loss": step / 2, "own": "text"} if step else {"loss": 0.0})
    title, settings = "/".join(folder.parts[-2:]), {"seed": 3, "ppo.lr": 0.5}
    assert calls == [
        ("wandb.init", "minirlhf", title, settings, str(folder), folder.parent.name, True),
        ("trackio.init", "minirlhf", title, settings),
        ("mlflow.set_experiment", "minirlhf"),
        ("mlflow.end_run",),
        ("mlflow.start_run", title),
        ("mlflow.log_params", {"seed": "3", "ppo.lr": "0.5"}),
        ("wandb.init.log", {"loss": 0.0}, 1),
        ("trackio.log", {"loss": 0.0}, 1),
        ("mlflow.log_metrics", {"loss": 0.0}, 1),
        ("wandb.init.log", {"loss": 0.5, "own": "text"}, 2),
        ("wandb.init.finish",),
        ("trackio.log", {"loss": 0.5, "own": "text"}, 2),
        ("trackio.finish",),
        ("mlflow.log_metrics", {"loss": 0.5}, 2),
        ("mlflow.end_run",),
    ]


def test_mlflow_gets_at_most_100_settings_in_a_call(folder, calls):
    settings = {f"ppo.s{k}": k for k in range(120)}
    (folder / "config.toml").write_text("[ppo]\n" + "".join(f"s{k} = {k}\n" for k in range(120)))
    Tracking(["mlflow"], folder, steps=2)(0, {"loss": 0.0})
    parts = [call[1] for call in calls if call[0] == "mlflow.log_params"]
    assert [len(part) for part in parts] == [100, 20]
    assert parts[0] | parts[1] == {name: str(value) for name, value in settings.items()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tensorbord",
            "needed tensorboard, wandb, trackio, mlflow or FILE.py:FUNCTION, got 'tensorbord'; the nearest is",
        ),
        ("wandb", "--tracker wandb: needed the package wandb, which is not installed; pip install wandb"),
        ("none.py:log", "tracker none.py:log: .*needed a Python file, found no none.py; check the path"),
        (
            "my.py:logg",
            "tracker my.py:logg: needed a function of my.py, got logg; it has log, fails; the nearest is log",
        ),
    ],
)
def test_a_tracker_that_cannot_be_is_refused_before_the_job(folder, monkeypatch, name, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        check_trackers(["tensorboard", name])
