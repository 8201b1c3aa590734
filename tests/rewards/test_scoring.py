"""Scores are checked before training uses them, and a reward model has the signature of a reward function."""

import re

import pytest
import torch

from minirlhf.data import encode_rows
from minirlhf.data.batches import pad_sequences
from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, RewardModel, Transformer
from minirlhf.rewards import RewardModelScorer, score_completions
from minirlhf.text import Tokenizer

TOKENIZER = Tokenizer.train(["ab"], 259)  # one token per byte
PROMPTS, TEXTS, ROWS = ["p", "q"], ["good", "bad"], [{"n": 1}, {"n": 2}]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = RewardModel(
        Transformer(ModelConfig(vocab_size=259, hidden_size=24, intermediate_size=32, max_position_embeddings=16))
    )
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


def direct_score(model, prompt, text, limit=16):
    ids = [*TOKENIZER.encode_prompts([prompt])[0], *TOKENIZER.encode(text), TOKENIZER.eos_id][-limit:]
    batch = pad_sequences([ids], [[]], 0)
    return model(batch.input_ids, batch.attention_mask).item()


def close(scores, expected):
    return scores == pytest.approx(expected, abs=1e-5)


def test_scores_are_floats_in_order():
    def reward(prompts, completions, rows):
        assert (prompts, completions, rows) == (PROMPTS, TEXTS, ROWS)
        return (row["n"] for row in rows)

    scores = score_completions(reward, PROMPTS, TEXTS, ROWS)
    assert scores == [1.0, 2.0] and all(type(score) is float for score in scores)


@pytest.mark.parametrize("scores", [[1.0], [1.0, 2.0, 3.0], []])
def test_wrong_count_is_refused(scores):
    def bonus(prompts, completions, rows):
        return scores

    text = f"reward bonus: needed 2 scores, one per completion, got {len(scores)}; "
    with pytest.raises(InputError, match=f"^{re.escape(text)}"):
        score_completions(bonus, PROMPTS, TEXTS, ROWS)


@pytest.mark.parametrize(
    ("score", "text_of_score"),
    [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf"), (None, "None"), ("1.0", "'1.0'")],
)
def test_a_score_that_is_not_a_finite_number_is_refused_by_name(score, text_of_score):
    def bonus(prompts, completions, rows):
        return [1.0, score]

    text = (
        f"reward bonus: needed a finite number for every completion, got {text_of_score} for completion 1 ('bad'); "
        "give every completion a number, even if it cannot be judged"
    )
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        score_completions(bonus, PROMPTS, TEXTS, ROWS)


@pytest.mark.parametrize("score", [1e39, -1e39, 3.5e38, 1e30, 1e20, -1e16, 10**30, torch.tensor(1e30)])
def test_a_score_whose_squares_overflow_fp32_is_refused_by_name(score):
    def bonus(prompts, completions, rows):
        return [1.0, score]

    text = r"^reward bonus: needed a number of at most 1e\+15 in size for every completion, got .* for completion 1 "
    with pytest.raises(InputError, match=text):
        score_completions(bonus, PROMPTS, TEXTS, ROWS)
    with pytest.raises(InputError, match=text):
        score_completions(bonus, PROMPTS, TEXTS, ROWS, optional=True)


@pytest.mark.parametrize("score", [1e15, -1e15, 1e-45, 0, 2**40])
def test_a_score_that_fp32_can_square_is_accepted(score):
    assert score_completions(lambda *_: [score], ["p"], ["x"], [{}]) == [score]


def test_an_error_of_a_reward_without_name_names_its_class():
    class Judge:
        def __call__(self, prompts, completions, rows):
            return []

    with pytest.raises(InputError, match="^reward Judge: needed 2 scores"):
        score_completions(Judge(), PROMPTS, TEXTS, ROWS)


def test_an_error_shows_the_beginning_of_a_long_completion():
    with pytest.raises(InputError, match=r"completion 0 \('x{39}\.\.\.' \(50 letters\)\);"):
        score_completions(lambda *_: [None], ["p"], ["x" * 50], [{}])


@pytest.mark.parametrize("score", [torch.tensor(0.5), torch.tensor(0.5).numpy()[()]], ids=["tensor", "numpy"])
def test_numbers_of_torch_and_numpy_are_accepted(score):
    assert score_completions(lambda *_: [score], ["p"], ["x"], [{}]) == [0.5]


@pytest.mark.parametrize("microbatch_tokens", [16_384, 20, 1])
def test_reward_model_scores_equal_a_direct_forward_in_order(model, microbatch_tokens):
    prompts, texts = ["p", "qq", "", "rrr", "q"], ["good", "a", "", "bad", "xyzxyz"]
    scores = RewardModelScorer(model, TOKENIZER, microbatch_tokens)(prompts, texts, [{}] * 5)
    assert close(scores, [direct_score(model, p, t) for p, t in zip(prompts, texts, strict=True)])
    assert len(set(scores)) == 5


def test_texts_longer_than_the_context_keep_their_end(model):
    prompts, texts = ["abcdefghijklmnop", "xxxdefghijklmnop", "p"], ["end", "end", "0123456789abcdefghijk"]
    with pytest.warns(UserWarning, match="a text of 24 tokens was cut to its last 16"):
        scores = RewardModelScorer(model, TOKENIZER)(prompts, texts, [{}] * 3)
    assert close(scores, [direct_score(model, p, t) for p, t in zip(prompts, texts, strict=True)])
    assert close(scores[0], scores[1])  # they differ only in the tokens that are cut off


def test_a_reward_model_works_as_a_reward_function(model):
    scores = score_completions(RewardModelScorer(model, TOKENIZER), PROMPTS, TEXTS, ROWS)
    assert close(scores, [direct_score(model, p, t) for p, t in zip(PROMPTS, TEXTS, strict=True)])
    assert RewardModelScorer(model, TOKENIZER)([], [], []) == []


def test_scoring_computes_no_gradient(model):
    RewardModelScorer(model, TOKENIZER)(PROMPTS, TEXTS, ROWS)
    assert all(p.grad is None for p in model.parameters())


def test_turns_are_read_with_the_template_of_the_reward_model(model):
    turns = [{"role": "user", "content": "ab"}]
    reader = TOKENIZER.with_template("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    scores = RewardModelScorer(model, reader)(["plain"], ["cd"], [{"prompt_turns": turns}])
    # ">" is no end token, so EOS ends the answer in its place
    ids = [*TOKENIZER.encode("<ab>"), *TOKENIZER.encode("<cd"), TOKENIZER.eos_id]
    batch = pad_sequences([ids], [[]], 0)
    assert close(scores, [model(batch.input_ids, batch.attention_mask).item()])
    strict = TOKENIZER.with_template("{{ raise_exception('no') if messages[0].content == 'ab' else 'x' }}")
    with pytest.raises(InputError, match="no"):
        RewardModelScorer(model, strict)(["plain"], ["cd"], [{"prompt_turns": turns}])


def test_a_prompt_of_text_is_a_user_turn_beside_a_template_as_in_training(model):
    reader = TOKENIZER.with_template("{% for m in messages %}<{{ m.content }}>{% endfor %}")
    plain, turns = [{"line": 1}], [{"prompt_turns": [{"role": "user", "content": "ab"}]}]
    scorer = RewardModelScorer(model, reader)
    assert scorer(["ab"], ["cd"], plain) == scorer(["ab"], ["cd"], turns)
    (row,) = encode_rows(reader, [{"prompt": "ab", "response": "cd"}], ("response",), context=16).rows
    batch = pad_sequences([[*row.prompt, *row.responses[0]]], [[]], 0)
    assert close(scorer(["ab"], ["cd"], plain), [model(batch.input_ids, batch.attention_mask).item()])
    as_text = RewardModelScorer(model, reader, wrap="plain")(["ab"], ["cd"], plain)
    assert close(as_text, [direct_score(model, "ab", "cd")]) and not close(as_text, scorer(["ab"], ["cd"], plain))
