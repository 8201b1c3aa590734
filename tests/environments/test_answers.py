"""The texts of an environment between the policy's turns: as each template writes them, around ids that stay."""

import pytest
import torch
from games import model_of, rows

from minirlhf.data.encoding import EncodedRow
from minirlhf.environments import Episodes, Observation
from minirlhf.environments.answers import Answers
from minirlhf.generation import SamplingConfig
from minirlhf.text import LAYOUTS, Tokenizer
from minirlhf.text.checkpoint_tokenizer import template

WORDS = Tokenizer.train(["the kettle is good. think of numbers: 4 + 5 = 9, user, assistant, higher, lower"] * 8, 330)
FIRST = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Guess a number."}]
QWEN = (  # as in Qwen3: an earlier answer loses its reasoning
    "{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and not loop.last %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    class All:
        def __contains__(self, source):
            return True

    monkeypatch.setattr(template, "BUILT_IN", All())


def with_layout(name):
    if name is None:
        return WORDS
    tokens = LAYOUTS[name].needs if name in LAYOUTS else ("<|im_start|>", "<|im_end|>")
    return WORDS.with_special_tokens(tokens).with_template(name)


def decoded(tokenizer, ids):
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize("name", [*LAYOUTS, None])
def test_prompt_turn_and_answer_are_the_text_of_the_template(name, ended):
    """Also if max_tokens has cut the turn: then the end of the turn is forced."""
    tokenizer = with_layout(name)
    answers = Answers(tokenizer, FIRST, None, 100)
    prompt, (turn,) = tokenizer.encode_turns(FIRST, ["my number is 4"])
    assert answers.prompt() == prompt
    if not ended and turn[-1] in tokenizer.eos_ids:
        turn = turn[:-1]
    action = tokenizer.decode_completions([turn])[0]
    found = decoded(tokenizer, [*prompt, *turn, *answers.after(turn, action, "lower", "user")])
    turns = [*FIRST, {"role": "assistant", "content": "my number is 4"}, {"role": "user", "content": "lower"}]
    expected = tokenizer.apply_chat_template(turns, True)
    if name in ("plain", None):  # EOS ends a turn although the layout does not write it; the layout ends with lines
        expected = expected if not ended else expected.replace("is 4", "is 4" + tokenizer.special["eos"])
        expected = expected if name else "".join(map(tokenizer.backend.id_to_token, tokenizer.prefix)) + expected
    assert found == expected


def test_a_stop_string_within_the_end_of_a_turn_is_not_repeated():
    answers = Answers(WORDS, FIRST, None, 100)
    for action, rest in (("4\n\n", "User:"), ("4\n", "\nUser:"), ("4", "\n\nUser:"), ("4\n\nUser:", "\nlower")):
        found = decoded(WORDS, answers.after(WORDS.encode(action), action, "lower", "user"))
        assert found.startswith(rest) and found.endswith("lower\n\nAssistant:\n")


def test_a_template_that_changes_its_history_does_not_change_the_dialogue():
    tokenizer = with_layout(QWEN)
    answers = Answers(tokenizer, FIRST, None, 100)
    turn = [*tokenizer.encode("<think>of 4</think>4"), tokenizer.parts.answer_end.token]
    ids = [*answers.prompt(), *turn, *answers.after(turn, "<think>of 4</think>4", "lower", "user")]
    assert decoded(tokenizer, ids).endswith(
        "assistant\n<think>of 4</think>4<|im_end|>\n<|im_start|>user\nlower<|im_end|>\n<|im_start|>assistant\n"
    )
    turns = [*FIRST, {"role": "assistant", "content": "<think>of 4</think>4"}, {"role": "user", "content": "lower"}]
    assert "of 4" not in tokenizer.apply_chat_template(turns, True)


@pytest.mark.parametrize("text", ["Zebras graze", "Zebras graze more", "<think>", ""])
def test_no_text_is_taken_for_the_trial_answer(text):
    tokenizer = with_layout("chatml")
    first = [{"role": "user", "content": f"{text} and so on"}]
    turn = [*tokenizer.encode("yes"), tokenizer.parts.answer_end.token]
    found = decoded(tokenizer, Answers(tokenizer, first, None, 100).after(turn, "yes", text, "user"))
    assert found == f"\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_a_tool_gets_a_turn_of_its_own_where_the_template_has_one():
    chatml, mistral = with_layout("chatml"), with_layout("mistral")
    for tokenizer, expected in ((chatml, "<|im_start|>tool\n9<|im_end|>"), (mistral, "[INST] 9[/INST]")):
        turn = [*tokenizer.encode("4 + 5"), tokenizer.parts.answer_end.token]
        found = decoded(tokenizer, Answers(tokenizer, FIRST, None, 100).after(turn, "4 + 5", "9", "tool"))
        assert expected in found


@pytest.mark.parametrize("most", [1, 12, 40])
def test_a_text_that_was_cut_is_closed(most):
    """Else the policy would read an answer without an end, and its next turn would stand inside the answer."""
    answers = Answers(WORDS, "text", None, most)
    long = "<result>" + "kettle is good " * 99 + "</result>"
    found = answers.cut(long, "</result>")
    assert found.endswith(" [...]</result>") and found.count("</result>") == 1
    assert found.startswith("<result>" if most > 12 else "")
    assert len(WORDS.encode(found)) <= max(most, len(WORDS.encode(" [...]</result>")))
    whole = "<result>9</result>"
    assert answers.cut(whole, "</result>") == (whole if len(WORDS.encode(whole)) <= most else " [...]</result>")


class Guess:
    """A dialogue by turns."""

    def reset(self, row):
        self.left = 3
        return [{"role": "user", "content": f"Guess {row['prompt']}"}]

    def step(self, action):
        self.left -= 1
        return Observation("lower", 0.0, self.left == 0)


@pytest.mark.parametrize("name", ["chatml", "gemma", QWEN, None])
def test_a_dialogue_by_a_template_holds_the_ids_that_were_drawn(name):
    tokenizer = with_layout(name)
    model, other = model_of(vocab_size=tokenizer.vocab_size, max_position_embeddings=256, scale=6.0), 0
    data = [EncodedRow(row.source, [], ()) for row in rows(6)]
    sampling = SamplingConfig(max_tokens=10, stop_ids=tokenizer.eos_ids)
    options = {"seed": 0, "stream": "rollout", "keys": [(0, i, 0) for i in range(6)]}
    episodes = Episodes(Guess, tokenizer).play(model, data, sampling, **options)
    plain = Episodes(Guess, tokenizer).play(model, data, sampling, plain=True, **options)
    assert [(e.ids, e.chosen, e.rewards) for e in episodes] == [(e.ids, e.chosen, e.rewards) for e in plain]
    for episode in episodes:
        assert len(episode.rewards) == 3 and len(episode.turns) == 5 + 1
        answers = Answers(tokenizer, [{"role": "user", "content": "Guess"}], None, 99)
        for turn, reply in zip(episode.turns[0:4:2], episode.turns[1:4:2], strict=True):
            ids = episode.ids[turn.start : turn.stop]
            assert tokenizer.decode_completions([ids]) == [turn.text]
            other += tokenizer.encode(turn.text) != [token for token in ids if token not in tokenizer.eos_ids]
            assert episode.ids[reply.start : reply.stop] == answers.after(ids, turn.text, "lower", "user")
            assert not any(episode.chosen[reply.start : reply.stop])
    assert other > 5  # encoded again, most turns would have other ids


def test_a_forced_end_token_ends_no_turn_and_a_stop_string_in_an_answer_ends_nothing():
    class Stops(Guess):
        def reset(self, row):
            self.left = 2
            return row["prompt"]

        def step(self, action):
            self.left -= 1
            return Observation("lower STOP", 0.0, self.left == 0)

    model = model_of(vocab_size=WORDS.vocab_size, max_position_embeddings=128)
    sampling = SamplingConfig(max_tokens=12, stop_ids=WORDS.eos_ids, stop_strings=("STOP", "lower"))
    options = {"seed": 0, "stream": "rollout", "keys": [(0, i, 0) for i in range(8)]}
    for episode in Episodes(Stops, WORDS).play(model, rows(8), sampling, **options):
        last = episode.turns[2]
        assert last.by == "policy" and last.stop - last.start > 1
        ids = torch.tensor(episode.ids[last.start : last.stop])
        assert "STOP" not in last.text and (len(ids) == 12 or int(ids[-1]) in WORDS.eos_ids)
