"""SFT of a mixture of experts: the router loss in the gradient and in the metrics."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.losses import token_logps

LAYERS = {**tiny.EXPERTS, "num_hidden_layers": 2, "num_experts_per_tok": 2}


@pytest.fixture
def batch():
    return tiny.batches(8)[0]


def formula(trainer, batch, groups):
    """(mean nll, router loss) from unpadded rows. Each group has its own router loss, weighted by its tokens."""
    transformer, nll, routed = trainer.models["policy"].transformer, [], []
    logits = []
    hooks = [block.mlp.gate.register_forward_hook(lambda *x: logits.append(x[2])) for block in transformer.model.layers]
    for draw in batch:
        ids = torch.tensor([draw.row.prompt + draw.row.responses[0]])
        nll.append(-token_logps(transformer(ids), ids)[0, len(draw.row.prompt) :])
        routed.append(torch.cat(logits))  # of both layers, [2 T, E]
        logits.clear()
    for hook in hooks:
        hook.remove()
    balance, tokens = 0, sum(map(len, routed))
    for group in groups:
        probs = torch.cat([routed[i] for i in group]).softmax(-1)
        used = torch.nn.functional.one_hot(probs.topk(2).indices, 4).sum(1).double()
        balance += len(probs) / tokens * 4 * (used.mean(0) * probs.mean(0)).sum()
    return torch.cat(nll).mean(), balance


@pytest.mark.parametrize(
    ("microbatch_tokens", "groups"), [(10_000, [range(8)]), (1, [[i] for i in range(8)])], ids=["one", "eight"]
)
def test_the_gradient_is_the_gradient_of_the_formula(batch, microbatch_tokens, groups):
    trainer = tiny.sft(shape=LAYERS, router_loss_coef=0.7, microbatch_tokens=microbatch_tokens)
    nll, balance = formula(trainer, batch, groups)
    expected = torch.autograd.grad(nll + 0.7 * balance, list(trainer.optimizer.parameters.values()))
    found, metrics = tiny.gradients(trainer, batch)
    assert_close(found, dict(zip(trainer.optimizer.parameters, expected, strict=True)), rtol=1e-7, atol=1e-9)
    assert metrics["router_loss"] == pytest.approx(balance.item())
    assert metrics["loss"] == pytest.approx((nll + 0.7 * balance).item())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_a_setting_the_weight_comes_from_the_models_config(batch, checkpointing):
    from_model, from_setting, zero = (
        tiny.sft(shape=LAYERS | {"router_aux_loss_coef": in_model}, router_loss_coef=setting)
        for in_model, setting in ((0.3, None), (0.0, 0.3), (0.3, 0.0))
    )
    from_model.models["policy"].transformer.model.gradient_checkpointing = checkpointing
    (first, log), (second, other), (third, plain) = (
        tiny.gradients(trainer, batch) for trainer in (from_model, from_setting, zero)
    )
    assert_close(first, second, rtol=1e-9, atol=1e-12)
    assert log == pytest.approx(other)
    assert log["loss"] == pytest.approx(plain["loss"] + 0.3 * log["router_loss"])
    gate = "policy.transformer.model.layers.0.mlp.gate.weight"
    assert not torch.allclose(first[gate], third[gate])


def test_the_router_loss_falls_if_its_weight_is_not_0():
    falls = []
    for coef in (0.0, 1.0):
        trainer = tiny.sft(torch.float32, 20, shape=LAYERS, router_loss_coef=coef, microbatch_tokens=10_000)
        log = tiny.train(trainer, tiny.batches(8, 20, n=8))
        falls.append(log[0]["router_loss"] - log[-1]["router_loss"])
        assert log[-1]["loss"] < log[0]["loss"]
    assert falls[1] > falls[0] + 0.02 and falls[1] > 0.02


def test_a_dense_policy_has_no_router_loss_and_refuses_a_weight_for_it(batch):
    assert "router_loss" not in tiny.sft(router_loss_coef=0.0).step(batch)
    text = "^SFTTrainer: router_loss_coef needs a mixture of experts, got 0.1 and a dense policy; leave it out$"
    with pytest.raises(InputError, match=text):
        tiny.sft(router_loss_coef=0.1)
    with pytest.raises(InputError, match="^SFTConfig: router_loss_coef must be at least 0, got -0.1$"):
        tiny.sft(router_loss_coef=-0.1)
