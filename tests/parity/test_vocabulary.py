"""A vocabulary that has grown, in transformers: the same logits, and the new token is one id."""

import pytest
import torch
import transformers
from torch.testing import assert_close

from minirlhf.model import ModelConfig, Transformer, resize_embeddings, save_pretrained
from minirlhf.text import Tokenizer

pytestmark = pytest.mark.parity

TEXTS = ["the kettle is good. it is bad.", "the lamp is very good. we like it."] * 8


@pytest.mark.parametrize("tied", [True, False])
def test_a_grown_folder_gives_the_same_logits_and_ids_there(tmp_path, tied):
    torch.manual_seed(0)
    old = Tokenizer.train(TEXTS, 300)
    tokenizer = old.with_special_tokens(["<think>"]).with_template("{{ '<think>' + messages[0].content }}")
    model = Transformer(ModelConfig(vocab_size=old.vocab_size, tie_word_embeddings=tied))
    save_pretrained(resize_embeddings(model, tokenizer.vocab_size), tmp_path, tokenizer.token_ids)
    tokenizer.save(tmp_path)
    there = transformers.AutoTokenizer.from_pretrained(tmp_path)
    new = old.vocab_size
    assert there.convert_tokens_to_ids("<think>") == new and len(there) == tokenizer.vocab_size
    assert there("<think>", add_special_tokens=False)["input_ids"] == [new]
    turns = [{"role": "user", "content": "the lamp"}]
    ids = tokenizer.encode_chat(turns)[0]
    assert ids == there.apply_chat_template(turns, return_dict=False) == [new, *old.encode("the lamp")]
    assert there.decode(ids, skip_special_tokens=True) == "the lamp"
    other, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert_close(model(torch.tensor([ids])), other(torch.tensor([ids])).logits, atol=1e-5, rtol=1e-5)
