"""Four models on one base: each trains its own adapter and sees no other."""

import pytest
import torch

from minirlhf.adapters import LoRAConfig, count_parameters, quantise_linears
from minirlhf.adapters.shared_base import ADAPTERS, FourModels, put_three_adapters


@pytest.mark.parametrize("in_4_bits", [False, True])
def test_four_models_hold_one_base_and_train_what_is_their_own(make, in_4_bits):
    base = quantise_linears(make()) if in_4_bits else make()
    models = FourModels.of(put_three_adapters(base, LoRAConfig(r=2)))
    of = {name: getattr(models, name) for name in (*ADAPTERS, "reference")}
    pointers = {
        name: {t.data_ptr() for t in (*model.parameters(), *model.buffers()) if not t.requires_grad}
        for name, model in of.items()
    }
    shared = set.intersection(*pointers.values())
    assert shared == pointers["reference"]  # every frozen tensor of the reference is in all four
    trained = {name: {n for n, p in model.named_parameters() if p.requires_grad} for name, model in of.items()}
    assert trained["reference"] == set()
    for name in ADAPTERS:
        own = {n for n in trained[name] if f".adapters.{name}." in n}
        assert own and trained[name] - own <= {"value_head.weight", "value_head.bias", "score.weight"}
    assert torch.equal(models.reference.transformer.model.embed_tokens.weight, base.model.embed_tokens.weight)
    base_line, *lines = models.sizes().splitlines()
    assert base_line == f"one base of {count_parameters(models.reference)[1]:,} numbers, and on it"
    assert [line.split() for line in lines] == [[name, f"{count_parameters(of[name])[0]:,}"] for name in ADAPTERS]
