"""`minirlhf data show`: rows side by side, and the tokens that are learned."""

import pytest

from minirlhf.model import ModelConfig, Transformer, save_pretrained
from minirlhf.text import Tokenizer


@pytest.fixture
def model(tmp_path):
    tokenizer = Tokenizer.train(["some words"], 300)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, intermediate_size=8, max_position_embeddings=64, **shape)
    save_pretrained(Transformer(config), tmp_path / "model", tokenizer.token_ids)
    tokenizer.save(tmp_path / "model")
    return "model"


def turn(role, content):
    return {"role": role, "content": content}


def test_rows_stand_side_by_side(call, write):
    write("rows.jsonl", [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(1, 9)])
    code, out, _ = call("show", "rows.jsonl", "--start", 3, "--n", 2)
    words = [line.split() for line in out.splitlines()]
    assert code == 0 and ["line:", "prompt", "chosen", "rejected"] in words
    assert ["3:", "p3", "c3", "r3"] in words and ["4:", "p4", "c4", "r4"] in words
    assert not [line for line in words if line[:1] in (["2:"], ["5:"])]


def test_tokens_show_what_is_learned(call, write, model):
    dialogue = [turn("user", "one"), turn("assistant", "two"), turn("user", "three"), turn("assistant", "four")]
    write("rows.jsonl", [{"messages": dialogue}])
    flags = "--tokens", "--policy", model, "--template", "zephyr"
    code, out, err = call("show", "rows.jsonl", *flags)
    assert not err
    text = out.partition("tokens\n")[2]
    learned = "".join(part.partition("+]")[0] for part in text.split("[+")[1:])
    masked = "".join(part.partition("-]")[0] for part in text.split("[-")[1:])
    assert code == 0 and "two" in learned and "four" in learned
    assert "three" in masked and "three" not in learned and "one" not in learned + masked
    code, out, _ = call(
        "show", "rows.jsonl", "--tokens", "--policy", model, "--template", "zephyr", "--train_on", "last"
    )
    assert "[+two" not in out and "[+four" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--tokens",), "--tokens needs the tokenizer of a model"), (("--start", 9), "the file has 1 rows")],
)
def test_flags_that_do_not_fit_are_refused(call, write, flags, message):
    write("rows.jsonl", [{"prompt": "p", "response": "r"}])
    code, _, err = call("show", "rows.jsonl", *flags)
    assert code == 2 and message in err
