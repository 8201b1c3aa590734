"""A bit of a checkpoint that flips is named when the run resumes. No run goes on in silence with other numbers."""

import json
import random
import shutil

import pytest
import tiny

from minirlhf.errors import InputError

RUNS = {"whole": ("ppo", "run"), "slices": ("sft", "slices")}  # kind and folder of runs of two processes


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same_meaning(path, data):
    """True if the bit was one of the white space of the manifest."""
    try:
        return path.name == "manifest.json" and json.loads(data) == json.loads(path.read_bytes())
    except ValueError:
        return False


def check_flips(whole, run, kind, number):
    """Resume the run after each of `number` flips, half of them in the small files."""
    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    checkpoint = run / "checkpoints" / "step-8"
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    rng, seen = random.Random(0), set()
    while len(seen) < number:
        sizes = [path.stat().st_size for path in files]
        (path,) = rng.choices(files, sizes if len(seen) % 2 else None)
        bit = rng.randrange(8 * path.stat().st_size)
        data = path.read_bytes()
        if (path, bit) in seen or same_meaning(path, flipped(data, bit)):
            continue
        seen.add((path, bit))
        path.write_bytes(flipped(data, bit))
        with pytest.raises(InputError, match=f"^{checkpoint}: damaged: ") as caught:
            tiny.go_on(kind, run, resume=True)
        assert str(path.relative_to(checkpoint)) in str(caught.value), (path, bit)
        path.write_bytes(data)
    tiny.go_on(kind, run, resume=True)  # the last byte is right again
    assert (run / "model").exists()


@pytest.mark.parametrize("name", RUNS)
def test_a_flipped_bit_is_named(two_processes, tmp_path, name):
    kind, folder = RUNS[name]
    check_flips(two_processes / folder, tmp_path / "run", kind, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_each_of_152_flipped_bits_is_named(two_processes, tmp_path, name):
    kind, folder = RUNS[name]
    check_flips(two_processes / folder, tmp_path / "run", kind, 152)
