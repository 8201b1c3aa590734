"""A growing vocabulary: old tokens keep their weights and logits, new tokens start at the mean and learn."""

import re

import pytest
import torch
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import (
    LoRAConfig,
    ModelConfig,
    Policy,
    ProcessRewardModel,
    RewardModel,
    Transformer,
    ValueModel,
    apply_lora,
    copy_of,
    load_pretrained,
    merge_lora,
    reference_of,
    resize_embeddings,
    save_pretrained,
)

each_head = pytest.mark.parametrize("tied", [True, False])


@each_head
def test_a_new_row_is_the_mean_and_old_rows_stay(tied):
    model = Transformer(ModelConfig(vocab_size=2, hidden_size=4, num_attention_heads=2, tie_word_embeddings=tied))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.tensor([[1.0, 2, 3, 4], [3.0, -2, 5, 0]]))
        if not tied:
            model.lm_head.weight.copy_(torch.tensor([[0.0, 0, 0, 8], [1.0, 0, 0, 0]]))
    assert resize_embeddings(model, 4) is model
    mean = [2.0, 0, 4, 2]
    assert model.model.embed_tokens.weight.tolist() == [[1.0, 2, 3, 4], [3.0, -2, 5, 0], mean, mean]
    if not tied:
        mean = [0.5, 0, 0, 4]
        assert model.lm_head.weight.tolist() == [[0.0, 0, 0, 8], [1.0, 0, 0, 0], mean, mean]
    assert (model.head_weight is model.model.embed_tokens.weight) == tied


@each_head
def test_old_logits_stay_bit_for_bit_and_the_new_token_is_never_likelier_than_uniform(make, ids, mask, tied):
    model = make(tie_word_embeddings=tied)
    before = model(ids, mask)
    after = resize_embeddings(model, 39)(ids, mask)
    assert after.shape == (4, 9, 39) and torch.equal(after[..., :37], before)
    assert_close(after[..., 37:], before.mean(-1, keepdim=True).expand(-1, -1, 2))
    assert after.softmax(-1)[..., 37:].max() <= 1 / 39
    assert model(torch.full((1, 3), 38)).isfinite().all()


@pytest.mark.parametrize("model_class", [Policy, ValueModel, RewardModel, ProcessRewardModel])
def test_every_model_class_grows_and_keeps_its_outputs_for_old_tokens(make, loud, ids, mask, model_class):
    model = loud(model_class(make()) if model_class is not Policy else Policy(make(), value_head=True))
    before = model(ids, mask)
    after = resize_embeddings(model, 38)(ids, mask)
    if model_class is Policy:
        assert torch.equal(after.values, before.values)
        assert ((after.logps <= before.logps) & (after.logps > before.logps - 0.1)).all()  # the new token took some
    else:
        assert torch.equal(after, before)


def test_every_module_that_holds_the_config_gets_the_new_size(make):
    policy = resize_embeddings(Policy(make(tie_word_embeddings=False)), 40)
    configs = {m.config for m in policy.modules() if isinstance(getattr(m, "config", None), ModelConfig)}
    assert [config.vocab_size for config in configs] == [40]
    assert policy.transformer.model.embed_tokens.num_embeddings == policy.transformer.lm_head.out_features == 40
    reference = copy_of(policy)
    assert torch.equal(reference.transformer.head_weight, policy.transformer.head_weight)
    assert generate(policy.transformer, [[39, 3]], SamplingConfig(max_tokens=3))[0].ids


def test_type_and_requires_grad_stay(make):
    model = make(tie_word_embeddings=False).bfloat16()
    model.lm_head.weight.requires_grad_(False)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = torch.tensor(
            [256.0] + [1.0] * 36
        )  # mean 292 / 37; summed in bf16, 256 + 1 would be 256
    resize_embeddings(model, 38)
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    assert embedding.dtype == head.dtype == torch.bfloat16
    assert embedding[37, 0] == torch.tensor(292 / 37).bfloat16()
    assert embedding.requires_grad and embedding.is_leaf and not head.requires_grad


def test_training_moves_the_new_row(make):
    policy = resize_embeddings(Policy(make()), 38)
    before = policy.transformer.head_weight[37].detach().clone()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    ids, mask = torch.tensor([[1, 2, 37]]), torch.ones(1, 3, dtype=torch.bool)
    start = policy(ids, mask).logps[0, 2].item()
    for _ in range(3):
        optimizer.zero_grad()
        (-policy(ids, mask).logps[0, 2]).backward()
        optimizer.step()
    assert not torch.equal(policy.transformer.head_weight[37], before)
    assert policy(ids, mask).logps[0, 2] > start + 0.5


@each_head
def test_a_grown_model_is_saved_and_comes_back(tmp_path, make, tied):
    model = resize_embeddings(make(tie_word_embeddings=tied), 41)
    save_pretrained(model, tmp_path)
    loaded = load_pretrained(tmp_path)
    ids = torch.tensor([[1, 40, 3]])
    assert loaded.config == model.config and torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("first", [True, False], ids=["grown first", "adapter first"])
def test_an_adapter_and_a_new_token_may_come_in_either_order(make, ids, mask, first):
    policy, plain = Policy(make()), resize_embeddings(Policy(make()), 38)
    if first:
        resize_embeddings(policy, 38)
    apply_lora(policy, LoRAConfig(r=2))
    if not first:
        resize_embeddings(policy, 38)
    assert not policy.transformer.head_weight.requires_grad  # the base is frozen, its new row too
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if name.endswith(".B"):
                p.fill_(0.1)
    ids = ids.clone()
    ids[:, 2] = 37
    changed = policy(ids, mask).logps
    assert torch.equal(reference_of(policy)(ids, mask).logps, plain(ids, mask).logps)
    assert not torch.equal(changed, plain(ids, mask).logps)
    assert_close(merge_lora(policy)(ids, mask).logps, changed)


def test_the_same_size_changes_nothing_and_a_smaller_one_is_refused(make, ids):
    model = make()
    before = model(ids)
    assert torch.equal(resize_embeddings(model, 37)(ids), before)
    with pytest.raises(
        InputError, match=f"^{re.escape('resize_embeddings: size must be at least 37, the number of rows now, got 36')}"
    ):
        resize_embeddings(model, 36)
    assert model.config.vocab_size == 37


@pytest.mark.parametrize("model_class", [ValueModel, RewardModel, ProcessRewardModel])
def test_models_on_the_same_trunk_grow_together(make, ids, tmp_path, model_class):
    transformer = make()
    other = model_class(transformer)
    resize_embeddings(Policy(transformer), 40)
    assert other.config.vocab_size == transformer.config.vocab_size == 40
    save_pretrained(other, tmp_path)
    assert torch.equal(load_pretrained(tmp_path)(ids, ids >= 0), other(ids, ids >= 0))
