"""`minirlhf train sft --policy OWNER/NAME --data hub:OWNER/NAME`: the run records the commits."""

import json
import sys
import tomllib

import pytest

from minirlhf.cli.main import main
from minirlhf.model import ModelConfig, Transformer, save_pretrained
from minirlhf.text import Tokenizer

from ..hub_server import COMMIT


@pytest.fixture
def hub_with_a_model(hub_server, tmp_path):
    tokenizer = Tokenizer.train(["some words"], 300)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, intermediate_size=8, max_position_embeddings=32, **shape)
    save_pretrained(Transformer(config), tmp_path / "made", tokenizer.token_ids)
    tokenizer.save(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    rows = "".join(json.dumps({"prompt": f"p{i}", "response": "r"}) + "\n" for i in range(40))
    hub_server.repos |= {"models/maker/tiny": files, "datasets/maker/forty": {"train.jsonl": rows.encode()}}


def test_a_run_records_the_commits_and_resumes(hub_with_a_model, monkeypatch, capsys, tmp_path):
    words = "train sft --policy maker/tiny --data hub:maker/forty --sft.steps 1 --sft.batch_size 2 --device cpu"
    for more in ("--output mine", "--output mine --resume"):
        monkeypatch.setattr(sys, "argv", ["minirlhf", *words.split(), *more.split()])
        main()
    written = tomllib.loads((tmp_path / "mine/sft/config.toml").read_text())
    assert written["policy"] == f"maker/tiny@{COMMIT}" and written["data"] == f"hub:maker/forty@{COMMIT}"
    assert (tmp_path / "mine/sft/model/model.safetensors").exists()


def test_an_unknown_model_is_one_line(hub_server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["minirlhf", "train", "sft", "--policy", "maker/none", "--data", "hub:maker/rows"])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: maker/none: no such folder here") and err.count("\n") == 1
