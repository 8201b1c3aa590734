"""Models in slices that take the place of others, in a group of one process."""

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from minirlhf.adapters.quantised import quantised_slices
from minirlhf.model import ModelConfig, Policy, Transformer, quantise_linears
from minirlhf.runtime.parallel.copies import copied, moved, placed, shared
from minirlhf.runtime.parallel.sharding import in_slices, is_sharded, local, shard
from minirlhf.runtime.parallel.strategy import Strategy, using

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"num_key_value_heads": 1, "intermediate_size": 24}
IDS = torch.tensor([[1, 5, 9, 2]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


@pytest.fixture(autouse=True)
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with using(Strategy("fsdp")):
        yield
    dist.destroy_process_group()


def policy():
    torch.manual_seed(0)
    return Policy(Transformer(ModelConfig(**SHAPE)))


MOVES = {
    "placed": lambda base: placed(Policy(base.transformer, value_head=True), CPU),
    "own": lambda base: placed(base, CPU, own=True),
    "shared": lambda base: Policy(shared(base.transformer, CPU)),
    "in 4 bits": lambda base: moved(base, quantised_slices),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_model_that_moves_keeps_its_function_and_leaves_no_memory(name):
    whole, base = policy(), shard(policy(), CPU)
    slices = [local(p) for p in in_slices(base).parameters()]
    twin = MOVES[name](base)
    expected = (quantise_linears(whole) if name == "in 4 bits" else whole)(IDS, MASK).logps
    assert is_sharded(twin)
    assert_close(twin(IDS, MASK).logps, expected)
    assert sum(x.untyped_storage().nbytes() for x in slices) == 0
    for part in (base, base.transformer.model):
        with pytest.raises(RuntimeError, match="its weights have moved"):
            part(IDS, MASK)
    with pytest.raises(RuntimeError, match="meta"):  # a program that reads the weights themselves gets no other numbers
        base.transformer.model.norm.weight.sum().item()


def test_a_copy_leaves_the_model_as_it_is():
    base = shard(policy(), CPU)
    twin = copied(base)
    assert_close(twin(IDS, MASK).logps, base(IDS, MASK).logps, rtol=0, atol=0)
    with torch.no_grad():
        next(in_slices(twin).parameters()).zero_()
    assert_close(base(IDS, MASK).logps, policy()(IDS, MASK).logps)
