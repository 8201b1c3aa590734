"""`--resume step-N`: the run goes on from an older checkpoint, and nothing is lost."""

import json
import shutil

import pytest
import tiny

from minirlhf.errors import InputError
from minirlhf.manifest import write_manifest
from minirlhf.training.going_back import check_name, check_step, go_back


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_went_back_trains_the_same_steps_again_and_the_later_files_are_kept(tmp_path):
    options = {"save_every": 1, "keep": 99}
    tiny.go_on("sft", tmp_path, **options)
    before, names = files(tmp_path), sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert "step-2" in names and len(names) > 3
    check_step(tmp_path, "step-2", "last")
    said = go_back(tmp_path, "step-2")
    later = len(names) - 2
    assert said.startswith(
        f"{tmp_path}: goes back to step-2; {later} later lines of metrics, {later} later checkpoints"
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]
    left = files(tmp_path / "left-001")
    assert {left[path] for path in left} <= set(before.values()) and not (tmp_path / "model").exists()
    tiny.go_on("sft", tmp_path, resume=True, **options)
    after = files(tmp_path)
    for path in before:
        if path.name in ("metrics.jsonl", "samples.jsonl", "model.safetensors"):
            assert after[path] == before[path]
    assert go_back(tmp_path, "step-3").endswith("left-002")


def test_a_checkpoint_that_is_not_there_or_not_complete_is_refused_with_the_ones_that_are(tmp_path):
    tiny.go_on("sft", tmp_path, save_every=1, keep=99)
    next((tmp_path / "checkpoints" / "step-1").rglob("*.safetensors")).unlink()
    before = files(tmp_path)
    for name in ("step-1", "step-99"):
        text = f"^--resume {name}: needed a complete checkpoint of {tmp_path}, which has step-2, step-3, "
        with pytest.raises(InputError, match=text):
            check_step(tmp_path, name, "last")
    with pytest.raises(InputError, match="which has none"):
        check_step(tmp_path / "nothing", "step-1", "last")
    assert files(tmp_path) == before


def test_the_best_model_of_an_older_checkpoint_may_be_gone(tmp_path):
    tiny.go_on("sft", tmp_path, save_every=1, keep=99)
    path = tmp_path / "checkpoints/step-3/state.json"
    state = json.loads(path.read_text())
    for best, refused in ((2, False), (1, True), (3, False)):
        state["best"] |= {"step": best}
        path.write_text(json.dumps(state) + "\n")
        (path.parent / "manifest.json").unlink()
        write_manifest(path.parent)
        shutil.rmtree(tmp_path / "checkpoints/step-1", ignore_errors=True)
        check_step(tmp_path, "step-3", "last")
        if refused:
            with pytest.raises(
                InputError, match="^--resume step-3: --run.final best needs step-1, the best checkpoint"
            ):
                check_step(tmp_path, "step-3", "best")
        else:
            check_step(tmp_path, "step-3", "best")


@pytest.mark.parametrize("name", ["step", "step-", "step-x", "4", "../step-1", "step-1/..", "yes"])
def test_other_words_are_refused(name):
    check_name("step-4")
    with pytest.raises(InputError, match="^--resume: needed no value, true, false, previous or step-N, got "):
        check_name(name)
