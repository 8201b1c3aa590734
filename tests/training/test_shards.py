"""Checkpoints in shards: any number of ranks can read the shards of any other number of ranks."""

import json
import random
from types import SimpleNamespace
from unittest import mock

import pytest
import tiny
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from minirlhf.algorithms import SFTConfig, SFTTrainer
from minirlhf.errors import InputError
from minirlhf.manifest import is_complete, write_manifest
from minirlhf.model import Policy
from minirlhf.pretrained import load_policy, trained
from minirlhf.runtime.parallel.sharding import shard
from minirlhf.runtime.parallel.strategy import Strategy, using
from minirlhf.training import loading, saving
from minirlhf.training.checkpoint import save_state, written_whole
from minirlhf.training.host_copies import HostCopies
from minirlhf.training.shards import collected, stored_tensors, write_shard

TENSORS = {
    "matrix": torch.arange(35.0).reshape(7, 5),
    "vector": torch.arange(3, dtype=torch.bfloat16),
    "number": torch.tensor(4.0),
    "empty": torch.zeros(0, 2),
}


def chunk(rows, rank, world):
    """The rows of a rank, as torch.chunk cuts them."""
    size = -(-rows // world)
    return min(rank * size, rows), min((rank + 1) * size, rows)


def slices_of(rank, world, tensors=TENSORS):
    slices = {}
    for name, tensor in tensors.items():
        rows = tensor.shape[0] if tensor.dim() else 1
        first, last = chunk(rows, rank, world) if tensor.dim() else (0, 1)
        if (first < last or rows == 0) and (rank == 0 or tensor.dim() and rows):
            part = tensor[first:last].clone() if tensor.dim() else tensor
            slices[name] = (first, last), list(tensor.shape), part
    return slices


def written(folder, world, tensors=TENSORS):
    """A folder that `world` ranks wrote. They end in a random order."""
    folder.mkdir()
    for rank in random.Random(world).sample(range(world), world):
        write_shard(folder, rank, world, slices_of(rank, world, tensors))
    write_manifest(folder, step=3, tensors=collected(folder, world, seconds=1))
    return folder


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_any_rows_are_read_from_any_number_of_shards(tmp_path, world):
    folder = written(tmp_path / "x", world)
    stored = stored_tensors(folder)
    for first in range(8):
        for last in range(first, 8):
            assert_close(stored["matrix"].rows(first, last), TENSORS["matrix"][first:last], rtol=0, atol=0)
    for name, tensor in TENSORS.items():
        assert_close(stored[name].whole(), tensor, rtol=0, atol=0)
    assert not list(folder.glob("*.receipt"))


def test_the_manifest_lists_names_shapes_dtypes_slices_files_sizes_checksums_and_the_step(tmp_path):
    manifest = json.loads((written(tmp_path / "x", 2) / "manifest.json").read_text())
    first, second = "shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"
    assert manifest["step"] == 3 and manifest["files"].keys() == {first, second}
    assert manifest["files"][first].keys() == {"size", "sha256"}
    slices = [[0, 4, first], [4, 7, second]]
    assert manifest["tensors"]["matrix"] == {"shape": [7, 5], "dtype": "float32", "slices": slices}


def test_a_rank_that_does_not_come_and_a_rank_that_cannot_write_are_named(tmp_path):
    write_shard(tmp_path, 0, 2, slices_of(0, 2))
    with pytest.raises(InputError, match="needed the shard of rank 1: waited 0.05 s"):
        collected(tmp_path, 2, seconds=0.05)
    (tmp_path / "shard-00001-of-00002.safetensors").mkdir()  # nothing can be written here
    with pytest.raises(InputError, match="rank 1 cannot write its shard"):
        write_shard(tmp_path, 1, 2, slices_of(1, 2))
    write_shard(tmp_path, 0, 2, slices_of(0, 2))
    with pytest.raises(InputError, match="rank 1 could not write its shard"):
        collected(tmp_path, 2, seconds=1)


@pytest.mark.parametrize("error", [InputError("x holds nan"), RuntimeError("x holds nan")])
def test_rows_that_a_rank_finds_bad_are_in_no_checkpoint(tmp_path, error):
    """An error of any kind: rank 0 must not take the receipt for a shard without tensors."""
    write_shard(tmp_path, 0, 2, slices_of(0, 2))
    with pytest.raises(type(error), match="x holds nan"):
        write_shard(tmp_path, 1, 2, slices_of(1, 2), mock.Mock(side_effect=error))
    with pytest.raises(InputError, match="rank 1 could not write its shard .*x holds nan"):
        collected(tmp_path, 2, seconds=1)


@pytest.mark.parametrize(
    "slices", [[], [[0, 4, "a"]], [[0, 4, "a"], [5, 7, "b"]], [[0, 4, "a"], [3, 7, "b"]], [[1]], 3]
)
def test_slices_with_a_gap_or_an_overlap_are_refused(tmp_path, slices):
    (tmp_path / "a").write_text("")
    write_manifest(tmp_path, tensors={"x": {"shape": [7], "dtype": "float32", "slices": slices}})
    with pytest.raises(InputError, match=r"(needed all 7 rows of x|needed a manifest that lists slices)"):
        stored_tensors(tmp_path)


def test_a_tensor_of_another_shape_belongs_to_another_model(tmp_path):
    stored = stored_tensors(written(tmp_path / "x", 2))
    with pytest.raises(InputError, match=r"matrix has the shape \[7, 5\].*needs \[7, 6\].*another model"):
        stored["matrix"].like(torch.zeros(7, 6))


# A run of one process in slices


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def run_in(folder, mesh=None, seed=0, layers=1):
    """As a `Run` whose policy is in slices if there is a mesh."""
    policy = Policy(tiny.transformer(seed, dtype=torch.float32, layers=layers))
    if mesh is not None:
        fully_shard(policy, mesh=mesh)
    trainer = SFTTrainer(policy, tiny.tokenizer(), SFTConfig(batch_size=8, lr=3e-2), 4)
    names = {"folder": folder, "files": trained, "tokenizer": tiny.tokenizer(), "batches": range(4)}
    names |= {"copies": None, "checkpoints": list}
    return SimpleNamespace(trainer=trainer, config=SimpleNamespace(base=None), step=1, **names)


def update(run):
    """One update by AdamW; the gradient of a weight is the weight itself."""
    optimizer = run.trainer.optimizer
    for p in optimizer.parameters.values():
        p.grad = p.detach().clone()
    optimizer.adamw.step()
    optimizer.update += 1


def numbers(run):
    """The weights and the moments of the optimizer, whole."""
    state = run.trainer.optimizer.state_dict()["moments"]
    tensors = dict(run.trainer.policy.state_dict())
    tensors |= {f"{name}/{key}": x for name, each in state.items() for key, x in each.items()}
    return {name: (x.full_tensor() if hasattr(x, "full_tensor") else x).clone() for name, x in tensors.items()}


@pytest.mark.parametrize("copied", [False, True])
def test_a_checkpoint_of_weights_in_slices_is_read_into_slices_and_into_whole_weights(tmp_path, mesh, copied):
    run, folder = run_in(tmp_path, mesh), tmp_path / "step-1"
    update(run)
    before = numbers(run)
    state = {"step": 1, "done": False, "best": {}, "trainer": run.trainer.state_dict()}
    run.copies = HostCopies() if copied else None
    write = saving._prepared_shards(run, folder, state)
    if copied:  # the training goes on while a thread writes
        update(run)
    write()
    assert is_complete(folder) and [path.name for path in tmp_path.iterdir()] == ["step-1"]
    for again in (run_in(tmp_path, mesh, seed=1), run_in(tmp_path, seed=1)):
        loaded = loading.load_checkpoint(again, folder)
        assert (loaded["step"], loaded["done"]) == (1, False)
        assert_close(numbers(again), before, rtol=0, atol=0)
        assert again.trainer.optimizer.update == 1


@pytest.mark.parametrize("adapters", [False, True])
def test_an_update_of_slices_in_a_group_of_one_process_is_that_of_whole_weights(tmp_path, mesh, adapters):
    found = []
    for in_slices in (False, True):
        policy = Policy(tiny.transformer(dtype=torch.float32))
        with using(Strategy("fsdp" if in_slices else "ddp")):
            policy = shard(policy, torch.device("cpu")) if in_slices else policy
        policy = tiny.adapted(policy) if adapters else policy
        trainer = SFTTrainer(policy, tiny.tokenizer(), SFTConfig(batch_size=8, lr=3e-2, max_grad_norm=0.1), 4)
        metrics = trainer.step(tiny.batches(8)[0])
        found.append((metrics, numbers(SimpleNamespace(trainer=trainer))))
    assert found[0][0]["grad_norm"] > 0.1 and found[1][0] == pytest.approx(found[0][0])
    assert_close(found[1][1], found[0][1])


def test_bad_weights_in_slices_are_named_and_leave_nothing(tmp_path, mesh):
    run = run_in(tmp_path, mesh)
    write = saving._prepared_shards(run, tmp_path / "step-1", {"step": 1, "trainer": run.trainer.state_dict()})
    with torch.no_grad():
        next(run.trainer.policy.parameters()).to_local()[0, 0] = float("nan")
    with pytest.raises(InputError, match="step 1: policy.transformer.model.embed_tokens.weight holds nan"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_whole_checkpoint_is_read_into_slices(tmp_path, mesh):
    run, folder = run_in(tmp_path), tmp_path / "step-1"
    update(run)
    with written_whole(folder, {"step": 1}) as aside:
        trained.save_trained(run.trainer.policy, aside / "policy", run.tokenizer)
        save_state(aside, {"step": 1, "done": False, "best": {}, "trainer": run.trainer.state_dict()})
    again = run_in(tmp_path, mesh, seed=1)
    loading.load_checkpoint(again, folder)
    assert_close(numbers(again), numbers(run), rtol=0, atol=0)


def test_shards_of_a_model_with_other_weights_are_refused(tmp_path, mesh):
    one, two = (run_in(tmp_path, mesh, layers=layers) for layers in (1, 2))
    for number, (run, other, where) in enumerate([(one, two, "the checkpoint"), (two, one, "this model")]):
        state, folder = {"step": 1, "trainer": {}}, tmp_path / f"step-{number}"
        saving._prepared_shards(run, folder, state)()
        with pytest.raises(InputError, match=f"layers.1.* of policy is not in {where}; it is .* another model"):
            loading.load_models(other, folder)


def test_the_finished_model_of_weights_in_slices_is_whole(tmp_path, mesh):
    run = run_in(tmp_path, mesh)
    saving.save_final(run, tmp_path / "adapter", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no adapter was trained
    whole = {name: x.full_tensor() for name, x in run.trainer.policy.state_dict().items()}
    assert_close(load_policy(tmp_path / "model").state_dict(), whole, rtol=0, atol=0)


def test_weights_that_are_whole_on_every_process_have_no_shards(tmp_path, mesh):
    run = run_in(tmp_path)
    state = {"trainer": run.trainer.state_dict()}
    assert saving._prepared_shards(run, tmp_path, state) is None


def test_a_model_with_some_weights_in_slices_is_in_slices(mesh):
    parts = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not saving.is_sharded(parts)
    fully_shard(parts[0], mesh=mesh)
    assert saving.is_sharded(parts)
