"""A GPU's rules, tried without a GPU: on the meta device an operation of two devices raises, and so does a host read.

Not tried here: `fused_linear_loss` and a forward with `wanted` count their tokens on the host, once a micro-batch.
"""

import contextlib

import pytest
import torch

from minirlhf.generation.decoder import Decoder
from minirlhf.generation.slot_cache import SlotCache
from minirlhf.losses import (
    bradley_terry_loss,
    dpo_sigmoid_loss,
    gae,
    group_advantages,
    kl_shaped_rewards,
    masked_mean,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    ratio_diagnostics,
    sum_logps,
)
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, ValueModel
from minirlhf.model.cache import KVCache
from minirlhf.model.config import FULL, SLIDING

META, B, T = torch.device("meta"), 3, 12
SHAPE = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
KINDS = {
    "llama": {},
    "gpt2": {
        "norm": "layer",
        "positions": "learned",
        "gated_mlp": False,
        "hidden_act": "gelu_tanh",
        "mlp_bias": True,
        "fused_projections": True,
    },
    "gemma": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "embedding_scale": True},
    "window": {"layer_types": (SLIDING, FULL), "sliding_window": 4, "rope_local_theta": 100.0},
    "fused": {"fused_projections": True},
    "bias and norms": {"attention_bias": True, "qk_norm": "head", "tie_word_embeddings": False},
}


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """torch knows no autocast of the meta device."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: contextlib.nullcontext())


def transformer(**kind):
    return Transformer(ModelConfig(**SHAPE | kind)).to(META)


def batch():
    return torch.zeros(B, T, dtype=torch.int64, device=META), torch.ones(B, T, dtype=torch.bool, device=META)


def test_a_host_read_and_a_mix_of_devices_raise_here():
    with pytest.raises(RuntimeError):
        torch.ones(1, device=META).item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META).nonzero()
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META) + torch.ones(3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_ppo_update(kind):
    policy, (ids, mask) = Policy(transformer(**KINDS[kind]), value_head=True).to(META), batch()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    with torch.no_grad():
        old = policy(ids, mask)
    rewards = kl_shaped_rewards(old.logps[:, 0], logps=old.logps, ref_logps=old.logps, mask=mask, kl_coef=0.1)
    advantages, returns = gae(rewards, values=old.values, mask=mask, gamma=1.0, lam=0.95)
    advantages = masked_whiten(advantages, mask)
    now = policy(ids, mask, temperature=0.7)
    losses = ppo_policy_loss(now.logps, old_logps=old.logps, advantages=advantages)
    losses = losses + ppo_value_loss(now.values, old_values=old.values, returns=returns) - 0.01 * now.entropy
    masked_mean(losses, mask).backward()
    ratio_diagnostics(now.logps, old_logps=old.logps, advantages=advantages)
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    assert all(p.grad is not None and p.grad.device == META for p in policy.parameters())


def test_losses_of_pairs_and_groups():
    reward, value = RewardModel(transformer()).to(META), ValueModel(transformer()).to(META)
    policy, (ids, mask) = Policy(transformer()), batch()
    scores = reward(ids, mask)
    bradley_terry_loss(chosen_scores=scores, rejected_scores=scores).mean().backward()
    value(ids, mask).sum().backward()
    totals = sum_logps(policy(ids, mask, entropy=False).logps, mask)
    dpo_sigmoid_loss(totals, totals.detach(), beta=0.1).mean().backward()
    group_advantages(torch.zeros(6, device=META), 3)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_prefill_and_decoding(kind):
    model, (ids, mask) = transformer(**KINDS[kind]), batch()
    cache = KVCache(model.config, B, T + 8, META)
    logits = model(ids, mask, cache)
    assert logits.device == META
    assert model(ids[:, :1], mask[:, :1], cache).shape == (B, 1, 40)
    slots = SlotCache(model.config, B, T + 8, META)
    slots.adopt(range(B), cache)
    slots.width += 1
    step = Decoder(model, torch.float32)
    assert step(ids[:, 0], torch.full((B,), T + 1, device=META), slots).shape == (B, 40)
