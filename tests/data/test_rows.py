"""Rows that a caller passes from Python: lists and map-style datasets are read, all else is refused in one line."""

import numpy as np
import pytest
import torch

from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from minirlhf.data import Batches, encode_rows, read_rows
from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, copy_of
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["ab"], 259)
ROWS = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}]
SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}


class Endless(torch.utils.data.Dataset):
    """A map-style dataset whose index never raises IndexError."""

    def __getitem__(self, index):
        return ROWS[index % 2]


class Sized(Endless):
    def __len__(self):
        return 3


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from ROWS


class DataFrame:
    """As that of pandas: an index is the name of a column."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise KeyError(index)


def encode(rows):
    return encode_rows(TOKENIZER, rows, ("response",), context=9).rows


@pytest.mark.parametrize("rows", [ROWS, tuple(ROWS), {1: ROWS[0], 2: ROWS[1]}.values(), np.array(ROWS)])
def test_rows_of_any_container_with_an_order_and_a_length(rows):
    assert encode(rows) == encode(ROWS)


def test_a_dataset_is_read_by_index_up_to_its_length():
    assert encode(Sized()) == encode([ROWS[0], ROWS[1], ROWS[0]])
    assert len(Batches(Sized(), batch_size=2, steps=3, seed=0, stream="x")[0]) == 2


WRONG = {
    "endless": (Endless(), "an Endless; it has no length; write a list of its rows"),
    "stream": (Stream(), "a Stream; it has no length; write a list of its rows"),
    "generator": ((row for row in ROWS), "a generator; it can be read only once, and its length is unknown; write"),
    "map": (map(dict, ROWS), "a map; it can be read only once"),
    "loader": (torch.utils.data.DataLoader(Sized()), "a DataLoader; it makes batches of its own; give its dataset"),
    "frame": (DataFrame(), 'a DataFrame; its index is a column; write rows.to_dict("records")'),
    "none": (None, "None; put the rows into a list"),
    "number": (3, "int 3; put the rows into a list"),
    "text": ("rows.jsonl", "str 'rows.jsonl'; put the rows into a list"),
    "one row": (ROWS[0], "dict {'prompt': 'a', 'response': 'b'}; put the rows into a list"),
}
SFT = SFTTrainer(
    Policy(Transformer(ModelConfig(vocab_size=259, intermediate_size=8, **SHAPE))), TOKENIZER, SFTConfig(), updates=1
)
TAKERS = {
    "encode_rows": encode,
    "Batches": lambda rows: Batches(rows, batch_size=2, steps=1, seed=0, stream="x"),
    "evaluate": SFT.evaluate,
}


@pytest.mark.parametrize(("rows", "text"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("taker", TAKERS.values(), ids=TAKERS.keys())
def test_what_is_no_list_of_rows_is_refused_in_one_line(taker, rows, text):
    with pytest.raises(InputError) as caught:
        taker(rows)
    assert f"got {text}" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("text", "row 1: needed a dict with texts, got str 'text'"),
        (("a", "b"), "row 1: needed a dict with texts, got tuple ('a', 'b')"),
        (None, "row 1: needed a dict with texts, got None"),
        ({"prompt": "a"}, "row 1: needed text under 'response', got only prompt"),
        ({"prompt": 3, "response": "b"}, "row 1: needed text under 'prompt', got int 3"),
        ({"prompt": "a", "response": ["b"]}, "row 1: needed text under 'response', got list ['b']"),
        ({}, "row 1: needed text under 'prompt', got only an empty dict"),
        ({"prompt": "a", "response": "\ud800"}, "row 1: response: needed Unicode text, got half of a surrogate pair"),
        ({"prompt_turns": [], "response": "b"}, "row 1: needed text under 'prompt', got only prompt_turns, response"),
    ],
)
def test_a_row_of_another_form_is_named_by_its_number(row, text):
    with pytest.raises(InputError, match="^encode_rows: ") as caught:
        encode([ROWS[0], row])
    assert text in str(caught.value)


def test_the_trainers_of_given_rows_refuse_rows_that_are_not_ids():
    policy = Policy(Transformer(ModelConfig(vocab_size=259, intermediate_size=8, **SHAPE)))
    dpo = DPOTrainer(policy, copy_of(policy), TOKENIZER, DPOConfig(), 1)
    reward = RewardTrainer(RewardModel(copy_of(policy).transformer), TOKENIZER, RewardConfig(), updates=1)
    for trainer in (SFT, dpo, reward):
        for rows in (ROWS, Sized(), [[], []], [None], [{}]):
            with pytest.raises(InputError, match="needed the rows of encode_rows"):
                trainer.evaluate(rows)


PROMPTS = encode_rows(TOKENIZER, ROWS, (), context=9).rows
BATCH = Batches(encode(ROWS), batch_size=2, steps=1, seed=0, stream="x")[0]


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ([], "got no row"),
        (encode(ROWS), "got an EncodedRow"),
        (ROWS, "got a dict"),
        (iter(BATCH), "got a list_iterator"),
        (Batches(ROWS, batch_size=2, steps=1, seed=0, stream="x")[0], "got dict"),
    ],
)
def test_a_step_refuses_what_is_no_batch(batch, text):
    policy = Policy(Transformer(ModelConfig(vocab_size=259, intermediate_size=8, **SHAPE)))
    grpo = GRPOTrainer(policy, None, len, TOKENIZER, GRPOConfig(kl_coef=0))
    dpo = DPOTrainer(policy, copy_of(policy), TOKENIZER, DPOConfig(), 1)
    for trainer in (SFT, dpo, grpo):
        with pytest.raises(InputError, match="needed (a batch of Batches|the rows of encode_rows)") as caught:
            trainer.step(batch)
        assert text in str(caught.value)


def test_rows_with_too_few_answers_are_refused():
    """A list of prompts for SFT, a list of single answers for DPO."""
    policy = Policy(Transformer(ModelConfig(vocab_size=259, intermediate_size=8, **SHAPE)))
    dpo = DPOTrainer(policy, copy_of(policy), TOKENIZER, DPOConfig(), 1)
    for trainer, rows, needed in ((SFT, PROMPTS, "1, got 0"), (dpo, encode(ROWS), "2, got 1")):
        batch = Batches(rows, batch_size=2, steps=1, seed=0, stream="x")[0]
        for act in (lambda of=trainer, given=rows: of.evaluate(given), lambda of=trainer, given=batch: of.step(given)):
            with pytest.raises(InputError, match=f"needed rows with a number of answers of at least {needed}"):
                act()


@pytest.mark.parametrize("rows", [{1, 2}, {1: 2}.values()])
def test_batches_need_an_index(rows):
    with pytest.raises(InputError, match="^Batches: .* it has no index; write a list of its rows$"):
        Batches(rows, batch_size=2, steps=1, seed=0, stream="x")


@pytest.mark.parametrize("path", [3, None, ROWS])
def test_a_file_is_named_by_its_path(path):
    with pytest.raises(InputError, match="^read_rows: needed the path of a file, got "):
        read_rows(path)
