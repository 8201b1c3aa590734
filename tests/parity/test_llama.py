"""Folders of Llama go from minirlhf to transformers and back: the same logits, scores, ids and greedy tokens."""

import json

import pytest
import torch
import transformers
from torch.testing import assert_close

from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import (
    ModelConfig,
    RewardModel,
    Transformer,
    ValueModel,
    load_pretrained,
    load_reward_model,
    save_pretrained,
)
from minirlhf.text import Tokenizer

pytestmark = pytest.mark.parity

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
SETTINGS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "all heads": {"num_key_value_heads": 4},
    "one key-value head": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 12},
    "rope_theta": {"rope_theta": 500.0},
    "rms_norm_eps": {"rms_norm_eps": 0.1},
}
each_setting = pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
TEXTS = ["the kettle is good. it is bad.", "the lamp is very good. we like it."] * 8


def loud(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator)
    return model.eval()


def by_minirlhf(seed=0, **changes):
    """A random Llama made by minirlhf."""
    torch.manual_seed(seed)
    return loud(Transformer(ModelConfig(**SHAPE | changes)), seed)


def by_transformers(model_class, **changes):
    """A random Llama made by transformers. Its version 5 keeps rope_theta in rope_parameters."""
    if theta := changes.pop("rope_theta", None):
        changes["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    torch.manual_seed(0)
    return loud(model_class(transformers.LlamaConfig(**SHAPE | {"pad_token_id": 0} | changes)))


@pytest.fixture
def ids():
    return torch.randint(3, 61, (3, 40), generator=torch.Generator().manual_seed(1))


def same(first, second):
    assert_close(first, second, atol=1e-5 * second.abs().max().item(), rtol=1e-5)


@each_setting
def test_our_folder_gives_the_same_logits_in_transformers(tmp_path, ids, changes):
    model = by_minirlhf(**changes)
    save_pretrained(model, tmp_path)
    other, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        same(model(ids), other(ids).logits)


@pytest.mark.parametrize("pad_id", [0, 60])
def test_our_reward_model_gives_the_same_scores_in_transformers_with_padding(tmp_path, ids, pad_id):
    model = loud(RewardModel(by_minirlhf()), seed=2)
    save_pretrained(model, tmp_path)
    mask = torch.arange(40) < torch.tensor([[40], [17], [1]])
    ids = torch.where(mask, ids.clamp(max=59), pad_id)
    other, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, pad_token_id=pad_id, output_loading_info=True
    )
    assert isinstance(other, transformers.LlamaForSequenceClassification) and not report["missing_keys"]
    with torch.no_grad():
        same(model(ids, mask), other(ids, attention_mask=mask.long()).logits.squeeze(-1))


@each_setting
def test_a_folder_of_transformers_gives_the_same_logits(tmp_path, ids, changes):
    other = by_transformers(transformers.LlamaForCausalLM, **{"tie_word_embeddings": True} | changes)
    other.save_pretrained(tmp_path)
    with torch.no_grad():
        same(load_pretrained(tmp_path)(ids), other(ids).logits)


def test_a_reward_model_of_transformers_gives_the_same_scores(tmp_path, ids):
    other = by_transformers(transformers.LlamaForSequenceClassification, num_labels=1)
    other.save_pretrained(tmp_path)
    mask = torch.arange(40) < torch.tensor([[40], [17], [1]])
    ids = torch.where(mask, ids, 0)
    with torch.no_grad():
        same(load_reward_model(tmp_path)(ids, mask), other(ids, attention_mask=mask.long()).logits.squeeze(-1))


def test_a_model_comes_back_unchanged_from_transformers(tmp_path):
    model = by_minirlhf(tie_word_embeddings=False)
    save_pretrained(model, tmp_path / "a")
    transformers.LlamaForCausalLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    back = load_pretrained(tmp_path / "b")
    assert back.config == model.config
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in back.state_dict().items())


@each_setting
def test_greedy_continuations_agree(tmp_path, ids, changes):
    model = by_minirlhf(**changes)
    save_pretrained(model, tmp_path)
    other = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    prompts = [ids[0, :5].tolist(), ids[1, :29].tolist(), ids[2, :1].tolist()]
    completions = generate(model, prompts, SamplingConfig(max_tokens=32, temperature=0))
    for prompt, completion in zip(prompts, completions, strict=True):
        written = other.generate(
            torch.tensor([prompt]), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert completion.ids == written[0, len(prompt) :].tolist()


@pytest.mark.parametrize("with_model", [False, True])
def test_our_tokenizer_gives_the_same_ids_in_transformers(tmp_path, with_model):
    tokenizer = Tokenizer.train(TEXTS, 300)
    tokenizer.save(tmp_path)
    if with_model:  # as in a finished run: model_type must not make transformers choose another tokenizer
        save_pretrained(by_minirlhf(vocab_size=tokenizer.vocab_size), tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (other.pad_token_id, other.bos_token_id, other.eos_token_id) == (0, 1, 2)
    for text in (*TEXTS[:2], "", " two  spaces\n\n", "na\u00efve \u4f60\u597d \U0001f600", "12345 x1", "x<|eos|>"):
        ids = tokenizer.encode(text)
        assert other(text, add_special_tokens=False)["input_ids"] == ids
        assert [other(text)["input_ids"]] == tokenizer.encode_prompts([text])  # special tokens in text stay text
        assert other.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_transformers_knows_every_setting_of_our_config_json(tmp_path):
    save_pretrained(by_minirlhf(), tmp_path)
    known = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert set(json.loads((tmp_path / "config.json").read_text())) - set(known) <= {
        "torch_dtype",
        "rope_theta",
        "rope_scaling",
    }  # names of version 4; version 5 reads them too


@pytest.mark.parametrize("family", [{}, {"model_type": "qwen3", "qk_norm": "head"}], ids=["llama", "qwen3"])
def test_a_value_model_loads_in_transformers_whose_score_at_a_token_is_the_value_of_the_next(tmp_path, ids, family):
    model = loud(ValueModel(by_minirlhf(**family)), seed=2)
    save_pretrained(model, tmp_path)
    other = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    back = load_pretrained(tmp_path)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        values = model(ids, mask)
        assert_close(other(ids).logits[:, :-1, 0], values[:, 1:])
        assert isinstance(back, ValueModel) and torch.equal(back(ids, mask), values)
