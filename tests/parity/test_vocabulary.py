"""Vocabularies in transformers: with an added token, and of a checkpoint that pads with its end token."""

import json

import pytest
import torch
import transformers
from torch.testing import assert_close

from minirlhf.model import ModelConfig, RewardModel, Transformer, resize_embeddings, save_pretrained
from minirlhf.text import Tokenizer

pytestmark = pytest.mark.parity

TEXTS = ["the kettle is good. it is bad.", "the lamp is very good. we like it."] * 8


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_with_an_added_token_gives_the_same_logits_and_ids_in_transformers(tmp_path, tied):
    torch.manual_seed(0)
    old = Tokenizer.train(TEXTS, 300)
    tokenizer = old.with_special_tokens(["<think>"]).with_template("{{ '<think>' + messages[0].content }}")
    model = Transformer(ModelConfig(vocab_size=old.vocab_size, tie_word_embeddings=tied))
    save_pretrained(resize_embeddings(model, tokenizer.vocab_size), tmp_path, tokenizer.token_ids)
    tokenizer.save(tmp_path)
    other_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    new = old.vocab_size
    assert other_tokenizer.convert_tokens_to_ids("<think>") == new and len(other_tokenizer) == tokenizer.vocab_size
    assert other_tokenizer("<think>", add_special_tokens=False)["input_ids"] == [new]
    turns = [{"role": "user", "content": "the lamp"}]
    ids = tokenizer.encode_chat(turns)[0]
    assert ids == other_tokenizer.apply_chat_template(turns, return_dict=False) == [new, *old.encode("the lamp")]
    assert other_tokenizer.decode(ids, skip_special_tokens=True) == "the lamp"
    other, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert_close(model(torch.tensor([ids])), other(torch.tensor([ids])).logits, atol=1e-5, rtol=1e-5)


def test_transformers_reads_a_score_at_the_end_token_although_the_checkpoint_padded_with_it(tmp_path):
    """transformers reads a score at the last id that is not config.json's padding, so the end token must not pad."""
    Tokenizer.train(TEXTS, 300).with_special_tokens(["<unk>"]).save(tmp_path)
    names = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}
    names["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer_json = (tmp_path / "tokenizer.json").read_text().replace("<|pad|>", "<|x|>")
    (tmp_path / "tokenizer.json").write_text(tokenizer_json)
    tokenizer = Tokenizer.load(tmp_path)
    torch.manual_seed(0)
    model = RewardModel(Transformer(ModelConfig(vocab_size=tokenizer.vocab_size)))
    torch.nn.init.normal_(model.score.weight)
    save_pretrained(model, tmp_path / "ours", tokenizer.token_ids)
    tokenizer.save(tmp_path / "ours")

    other_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    texts = ["the lamp is good.", "it is bad.", "we"]
    full_texts = [text + "<|eos|>" for text in texts]
    batch = other_tokenizer(full_texts, padding=True, padding_side="right", return_tensors="pt")
    batch.pop("token_type_ids", None)
    rows = [tokenizer.encode_prompts([text])[0] + [tokenizer.eos_id] for text in texts]
    assert [ids[mask.bool()].tolist() for ids, mask in zip(*batch.values(), strict=True)] == rows
    with torch.no_grad():
        ours = [model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool)).squeeze() for row in rows]
        assert_close(other(**batch).logits.squeeze(-1), torch.stack(ours), atol=1e-5, rtol=1e-5)
