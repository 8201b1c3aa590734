"""A disk that is full ends a run with one line; nothing is lost, and the run goes on afterwards."""

import os
import resource
import shutil
import sys

import pytest
import tiny
import torch

from minirlhf.errors import InputError, exits_cleanly, writes
from minirlhf.training import Run, RunConfig
from minirlhf.training.checkpoint import write_whole, written_whole


def train(folder, **config):
    config = RunConfig(output=str(folder), **{"eval_every": 0, "save_every": 1} | config)
    run = Run(config, tiny.sft(torch.float32, 4), tiny.batches(8, 4), tokenizer=tiny.tokenizer())
    for batch in run:
        run.record(run.trainer.step(batch))


def with_file_limit(size, act):
    """Another process does `act` while no file may have more than `size` bytes -> (exit code, stderr)."""
    output, child_output = os.pipe()
    if not (pid := os.fork()):
        sys.stderr, code = os.fdopen(child_output, "w"), 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # Python ignores the signal SIGXFSZ
            exits_cleanly(act)()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(child_output)
    with os.fdopen(output, "rb") as file:
        text = file.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def files(folder):
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name not in ("config.toml", "log.txt", "timings.jsonl")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return files(folder)


CASES = {  # bytes of the largest file -> what cannot be written
    100: "config.toml",
    250: "metrics.jsonl",
    20_000: "checkpoints/step-1",
}


@pytest.mark.parametrize("size", CASES)
def test_a_run_without_room_names_the_file_and_goes_on_afterwards(tmp_path, whole, size):
    options = {"save_every": 0} if size == 250 else {}
    code, text = with_file_limit(size, lambda: train(tmp_path / "run", **options))
    assert code == 2
    error = text[text.index("error: ") :]
    assert error == (
        f"error: {tmp_path / 'run' / CASES[size]}: needed to write it, got: File too large; make room or give rights, "
        "then go on\n"
    )
    assert not list(tmp_path.rglob(".*"))
    train(tmp_path / "run", resume=True, **options)
    found = files(tmp_path / "run")
    assert found == {name: whole[name] for name in whole if name in found}
    assert {"metrics.jsonl", "model/model.safetensors", "checkpoints/step-4/state.json"} <= found.keys()


@pytest.mark.parametrize("async_save", [False, True])
def test_the_last_good_checkpoint_stays(tmp_path, async_save):
    train(tmp_path / "run", save_every=2)
    before = files(tmp_path / "run/checkpoints/step-2")
    shutil.rmtree(tmp_path / "run/model")
    shutil.rmtree(tmp_path / "run/checkpoints/step-4")
    go_on = {"save_every": 2, "resume": True, "async_save": async_save}
    code, text = with_file_limit(20_000, lambda: train(tmp_path / "run", **go_on))
    assert code == 2 and "checkpoints/step-4: needed to write it" in text
    assert files(tmp_path / "run/checkpoints/step-2") == before
    train(tmp_path / "run", **go_on)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for act in (
        lambda: write_whole(tmp_path / "file" / "a.json", "{}"),
        lambda: written_whole(tmp_path / "file" / "model").__enter__(),
        lambda: train(tmp_path / "file" / "run"),
    ):
        with pytest.raises(InputError, match=f"^{tmp_path}/file/.*(Not a directory|File exists)"):
            act()
    with pytest.raises(InputError, match=f"^{tmp_path}/file: needed a folder, got a file; choose another folder"):
        train(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_errors_stay_errors_of_the_program(tmp_path):
    with pytest.raises(RuntimeError), writes(tmp_path):
        raise RuntimeError("a bug (os error 28)")
    with pytest.raises(BrokenPipeError), writes(tmp_path):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_full_disk_under_the_output_is_one_line(tmp_path):
    def act():
        with (tmp_path / "out.txt").open("w") as file:
            print("x" * 1000, file=file, flush=True)

    code, text = with_file_limit(100, act)
    assert code == 2 and text.startswith("error: output: needed to write it, got: File too large; make room")
