"""Every token loss that a trainer gives to `fused_linear_loss` looks at each token by itself.

`fused_linear_loss` calls a token loss on one chunk of tokens at a time and does not check this at run time.
"""

import pytest
import tiny
import torch

from minirlhf.algorithms.grpo import ALGORITHMS
from minirlhf.algorithms.sft import LOSSES
from minirlhf.losses import fused

BATCH = tiny.batches(4, 1)[0]


@pytest.fixture
def calls(monkeypatch):
    """[(token_loss, logps, inputs)] of every chunk."""
    calls, original = [], fused._loss_and_slope

    def recorded(token_loss, logps, inputs, *options):
        calls.append((token_loss, logps.clone(), inputs))
        return original(token_loss, logps, inputs, *options)

    monkeypatch.setattr(fused, "_loss_and_slope", recorded)
    return calls


def assert_each_token_by_itself(calls):
    token_loss, logps, inputs = max(calls, key=lambda call: len(call[1]))
    assert len(logps) > 10
    logps = logps - 0.3 * torch.rand(len(logps), generator=torch.Generator().manual_seed(0), dtype=logps.dtype)
    slopes = torch.autograd.functional.jacobian(lambda x: token_loss(x, **inputs), logps)
    assert slopes.diagonal().any() and torch.equal(slopes, slopes.diagonal().diag())


def test_a_loss_that_mixes_tokens_would_be_noticed():
    with pytest.raises(AssertionError):
        assert_each_token_by_itself([(lambda logps: -logps + logps.mean(), -torch.arange(12.0), {})])


@pytest.mark.parametrize("loss", LOSSES)
def test_of_sft(calls, loss):
    tiny.sft(loss=loss).step(BATCH)
    assert_each_token_by_itself(calls)


@pytest.mark.parametrize("kl_estimator", [None, "k2"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_of_grpo(calls, algorithm, kl_estimator):
    grpo(algorithm=algorithm, kl_estimator=kl_estimator).step(BATCH)
    if algorithm in ("gspo", "gspo_token", "gmpo", "vespo"):
        assert not calls  # a surrogate of whole sequences
    else:
        assert_each_token_by_itself(calls)


@pytest.mark.parametrize("settings", [{"entropy_coef": 0.1}, {"entropy_coef": 0.1, "entropy_target": 2.0}])
def test_a_loss_with_an_entropy_term_is_not_fused(calls, settings):
    grpo(**settings).step(BATCH)
    assert not calls


def grpo(algorithm="grpo", **settings):
    rewards = {"bnpo": tiny.has_e, "gdpo": [tiny.likes_e, tiny.short]}.get(algorithm, tiny.likes_e)
    options = {"reward_weights": (1.0, 0.5) if algorithm == "gdpo" else (1.0,), "rewards": rewards, "resample": 0}
    options |= {"algorithm": algorithm, "sampler_cap": 1.1, "batch_size": 4, "minibatch_size": 4}
    options["microbatch_tokens"] = 240  # raft trains on the tokens of a quarter of the completions
    return tiny.grpo(**options, **settings)
