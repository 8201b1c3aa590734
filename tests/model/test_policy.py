"""Outputs of policy, value model and reward model stand at the right column and do not depend on padding."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.losses import token_entropy, token_logps
from minirlhf.model import Policy, RewardModel, ValueModel, copy_of
from minirlhf.model.policy import check_policy

ON_CPU_IN_BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture
def policy(make, loud):
    return loud(Policy(make(), value_head=True), seed=1)


@pytest.fixture
def reward_model(make, loud):
    return loud(RewardModel(make()), seed=1)


def test_column_t_speaks_about_token_t(policy, ids, mask):
    logits = policy.transformer(ids)
    out = policy(ids, mask)
    for row, t in ((0, 1), (0, 8), (1, 3), (3, 6)):  # token t is chosen from the logits of position t - 1
        logps = logits[row, t - 1].log_softmax(-1)
        assert_close(out.logps[row, t], logps[ids[row, t]])
        assert_close(out.entropy[row, t], -(logps.exp() * logps).sum())
    for x in out:
        assert not x[:, 0].any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logps_and_entropy_are_those_of_the_logits(make, ids, mask, temperature, tied):
    policy = Policy(make(tie_word_embeddings=tied))
    out, logits = policy(ids, mask, temperature=temperature), policy.transformer(ids, mask)
    assert_close(out.logps, torch.where(mask, token_logps(logits, ids, temperature), 0))
    assert_close(out.entropy, torch.where(mask, token_entropy(logits, temperature), 0))
    assert out.values is None


def test_tokens_that_are_not_wanted_are_0_and_the_others_as_they_were(policy, ids, mask):
    wanted = mask.clone()
    wanted[:, :3] = False
    every, some = policy(ids, mask), policy(ids, mask, wanted=wanted, entropy=False)
    assert_close(some.logps, torch.where(wanted, every.logps, 0))
    assert some.entropy is None
    assert_close(some.values, torch.where(wanted, every.values, 0))
    assert_close(policy.read_values(ids, mask, wanted), some.values.detach())


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_logits(make, ids, mask, tied):
    policy = Policy(make(tie_word_embeddings=tied)).double()
    parameters = list(policy.parameters())
    out, logits = policy(ids, mask), policy.transformer(ids, mask)
    weight = torch.randn(ids.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * mask
    chunked = torch.autograd.grad(((out.logps + 0.1 * out.entropy) * weight).sum(), parameters)
    plain = torch.autograd.grad(((token_logps(logits, ids) + 0.1 * token_entropy(logits)) * weight).sum(), parameters)
    assert_close(chunked, plain)


def test_values_are_read_from_the_hidden_state_before_the_token(policy, ids, mask):
    hidden = policy.transformer.model(ids)
    values = (hidden @ policy.value_head.weight.T + policy.value_head.bias).squeeze(-1)
    out = policy(ids, mask).values
    assert_close(out[:, 1:][mask[:, 1:]], values[:, :-1][mask[:, 1:]])
    assert not out[:, 0].any() and not out[~mask].any()


def test_a_value_is_made_before_its_token_is_chosen(policy, ids, mask):
    other = ids.clone()
    other[0, 4] = (ids[0, 4] + 1) % 37
    changed = policy(ids, mask).values[0] != policy(other, mask).values[0]
    assert changed.tolist() == [False] * 5 + [True] * 4


def test_values_start_at_0(make, ids, mask):
    assert not Policy(make(), value_head=True)(ids, mask).values.any()


def test_read_values_are_the_values_without_gradient(policy, ids, mask):
    values = policy.read_values(ids, mask)
    assert_close(values, policy(ids, mask).values)
    assert not values.requires_grad


def test_a_value_model_is_a_value_head_on_a_trunk_of_its_own(policy, make, ids, mask):
    critic = ValueModel(make())
    critic.model.load_state_dict(policy.transformer.model.state_dict())
    critic.value_head.load_state_dict(policy.value_head.state_dict())
    assert_close(critic(ids, mask), policy(ids, mask).values)


def test_junk_in_padding_changes_no_output_loss_or_gradient(policy, ids, mask, junk):
    outputs, gradients = [], []
    for x in (ids, junk):
        out = policy(x, mask)
        policy.zero_grad()
        sum(part.square().sum() for part in out).backward()
        outputs.append([part.detach() for part in out])
        gradients.append([p.grad.clone() for p in policy.parameters()])
    for first, second in zip(outputs[0] + gradients[0], outputs[1] + gradients[1], strict=True):
        assert torch.equal(first, second)
    assert not any(part[~mask].any() for part in outputs[1])


def test_reward_is_read_at_the_last_real_token(reward_model, ids, mask):
    hidden = reward_model.model(ids)
    for row, last in enumerate((8, 3, 0, 6)):
        assert_close(reward_model(ids, mask)[row], hidden[row, last] @ reward_model.score.weight[0])


def test_reward_and_its_gradient_do_not_depend_on_padding(reward_model, ids, mask, junk):
    scores = reward_model(ids, mask)
    assert torch.equal(scores, reward_model(junk, mask))
    for row, n in enumerate(mask.sum(-1)):
        assert_close(scores[row], reward_model(ids[row : row + 1, :n], mask[row : row + 1, :n])[0])
    gradients = [
        torch.autograd.grad(reward_model(x, mask).square().sum(), reward_model.parameters()) for x in (ids, junk)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_copy_shares_no_storage_and_is_frozen(make, ids, mask, tied):
    policy = Policy(make(tie_word_embeddings=tied), value_head=True)
    reference = copy_of(policy)
    assert torch.equal(reference(ids, mask).logps, policy(ids, mask).logps)
    assert reference.value_head is None and not reference.training
    assert not any(p.requires_grad for p in reference.parameters())
    ours = {p.data_ptr() for p in policy.parameters()}
    assert not ours & {p.data_ptr() for p in reference.parameters()}
    with torch.no_grad():
        policy.transformer.head_weight.zero_()
    assert reference.transformer.head_weight.any() and policy.transformer.head_weight.requires_grad


def test_copy_of_a_float64_policy_is_exact(make, loud):
    policy = loud(Policy(make().double()))
    copied = copy_of(policy).state_dict()
    assert all(torch.equal(copied[name], weight) for name, weight in policy.state_dict().items())


def test_autocast_stays_close_and_leaves_the_heads_at_full_precision(policy, reward_model, ids, mask):
    plain, plain_scores = policy(ids, mask), reward_model(ids, mask)
    with torch.autocast(**ON_CPU_IN_BF16):
        out, scores = policy(ids, mask), reward_model(ids, mask)
        values = policy.read_values(ids, mask)
    assert_close(out.logps, plain.logps, atol=0.15, rtol=0.05)
    assert_close(out.values, plain.values, atol=0.1, rtol=0.05)
    assert_close(scores, plain_scores, atol=0.1, rtol=0.05)
    assert not torch.equal(out.logps, plain.logps)  # autocast was on
    for x in (out.logps, out.entropy, out.values, values, scores):
        assert x.dtype == torch.float32
    for x in (out.values[mask], scores):  # values and scores have more digits than bf16 can hold
        assert (x.bfloat16().float() != x).sum() > len(x) / 2


def test_float64_stays_float64(make, loud, ids, mask):
    policy = Policy(make().double(), value_head=True)
    out = policy(ids, mask)
    scores, values = RewardModel(make().double())(ids, mask), ValueModel(make().double())(ids, mask)
    assert {x.dtype for x in (*out, scores, values)} == {torch.float64}
    assert_close(out.logps.float(), Policy(make())(ids, mask).logps, atol=1e-4, rtol=1e-4)


def test_check_policy_refuses_a_value_head_and_a_reference_with_trained_weights(make):
    policy = Policy(make())
    check_policy("Trainer", policy)
    check_policy("Trainer", policy, copy_of(policy))
    with pytest.raises(InputError, match="Trainer: needed a policy without value head"):
        check_policy("Trainer", Policy(make(), value_head=True))
    with pytest.raises(InputError, match="Trainer: the reference must be a frozen copy"):
        check_policy("Trainer", policy, policy)
