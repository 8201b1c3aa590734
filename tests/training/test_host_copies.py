"""Copies for the thread that writes: they hold the values of one instant, in the memory of the copies before."""

import tiny
import torch
from torch.testing import assert_close

from minirlhf.training.host_copies import HostCopies


def test_copies_keep_their_values_and_the_next_copies_take_their_memory():
    copies, x = HostCopies(), torch.arange(6.0).reshape(2, 3)
    first = copies.of_tensors({"x": x.T, "n": torch.tensor(3)})
    x.mul_(2)
    assert_close(first["x"], torch.arange(6.0).reshape(2, 3).T, rtol=0, atol=0)
    second = copies.of_tensors({"x": x.T, "n": torch.tensor(4)})
    assert second["x"].data_ptr() == first["x"].data_ptr() and second["n"] == 4
    assert_close(second["x"], x.T, rtol=0, atol=0)
    assert copies.of_tensors({"x": x.double()})["x"].dtype == torch.float64  # another type, other memory


def test_a_copied_model_is_the_model_of_its_instant_and_shared_weights_stay_shared():
    policy = tiny.ppo(torch.float32).policy
    before = {name: p.clone() for name, p in policy.state_dict().items()}
    models = HostCopies().of_models({"policy": policy, "twin": tiny.Policy(policy.transformer)})
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1)
    assert_close(dict(models["policy"].state_dict()), before, rtol=0, atol=0)
    assert models["twin"].transformer.head_weight is models["policy"].transformer.model.embed_tokens.weight
    assert all(p.requires_grad for p in models["policy"].parameters())


def test_the_frozen_weights_under_adapters_are_not_copied():
    trainer = tiny.ppo_adapters(four_bits=True)
    models = HostCopies().of_models(trainer.models)
    for name, model in trainer.models.items():
        theirs = dict(models[name].named_parameters())
        for key, p in model.named_parameters():
            assert (theirs[key] is p) == (not p.requires_grad), key
