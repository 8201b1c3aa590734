"""Evaluations and samples of every trainer: rows that fill the context, and no rows at all."""

import math

import pytest
import tiny
import torch

from minirlhf.data.batches import Draw
from minirlhf.data.encoding import EncodedRow

CONTEXT = 64  # of the models in tiny.py
OFFLINE = {
    "sft": tiny.sft,
    "sft_experts": lambda: tiny.sft(shape=tiny.EXPERTS),
    "reward": tiny.reward,
    "dpo": tiny.dpo,
    "aot": lambda: tiny.dpo(loss="aot"),
    "orpo": lambda: tiny.dpo(loss="orpo"),
    "kto": tiny.unpaired,
    "apo_zero": lambda: tiny.unpaired(loss="apo_zero"),
    "bco": lambda: tiny.unpaired(loss="bco"),
    "gkd": tiny.distillation,
    "process_reward": tiny.process_reward,
}
SAMPLES = {
    "gkd": lambda: tiny.distillation(on_policy=1.0, max_tokens=48),
    "minillm": lambda: tiny.distillation(algorithm="minillm", beta=1.0, on_policy=1.0, max_tokens=48),
    "ppo": lambda: tiny.ppo(max_tokens=48),
    "grpo": lambda: tiny.grpo(max_tokens=48),
    "online_dpo": lambda: tiny.online_dpo(max_tokens=48),
    "xpo": lambda: tiny.online_dpo(algorithm="xpo", max_tokens=48),
    "nash_md": lambda: tiny.online_dpo(algorithm="nash_md", max_tokens=48),
}


def filling_rows(n=8):
    """Rows that fill the context: long prompts with short responses, and short prompts with long responses."""
    rows = []
    for i in range(n):
        room = (1, 10, 40, 2, 60, 5)[i % 6]
        text = [3 + (i + k) % 26 for k in range(2 * CONTEXT)]
        prompt, (one, other) = [1, *text[: CONTEXT - room - 1]], (text[9 : 9 + room], text[14 : 14 + room])
        source = {"prompt": "x", "desirable": i % 2 == 0, "labels": [True], "label_columns": [room - 1]}
        rows.append(EncodedRow(source, prompt, (one, other)))
        assert len(prompt) + len(one) == CONTEXT
    return rows


@pytest.mark.parametrize("name", OFFLINE)
def test_an_evaluation_on_no_rows_gives_no_numbers(name):
    trainer = OFFLINE[name]()
    assert trainer.evaluate([]) == {} and trainer.samples == []


@pytest.mark.parametrize("name", OFFLINE)
def test_rows_that_fill_the_context_are_trained_on_and_evaluated(name):
    trainer, rows = OFFLINE[name](), filling_rows()
    metrics = trainer.evaluate(rows)
    assert metrics and all(map(math.isfinite, metrics.values()))
    assert math.isfinite(trainer.step([Draw(row, i, 0) for i, row in enumerate(rows)])["loss"])


@pytest.mark.parametrize("name", SAMPLES)
def test_sampling_in_training_gives_each_prompt_the_room_that_it_leaves(name):
    trainer, rows = SAMPLES[name](), filling_rows()
    seen = []
    model = trainer.models["policy"].transformer.model
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    metrics = trainer.step([Draw(row, i, 0) for i, row in enumerate(rows)])
    assert math.isfinite(metrics["loss"]) and max(seen) == CONTEXT


def test_samples_of_sft_have_the_room_of_their_own_prompt():
    trainer = tiny.sft(torch.float32)
    trainer.tokenizer.eos_ids = ()  # so no completion ends before its room is full
    lengths, decode = [], trainer.tokenizer.decode_completions
    trainer.tokenizer.decode_completions = lambda ids: lengths.append([*map(len, ids)]) or decode(ids)
    trainer.evaluate(filling_rows())
    assert lengths == [[1, 10, 40, 2]] * 2 and len(trainer.samples) == 4  # completions, then references


def test_a_prompt_that_leaves_no_room_is_no_sample():
    rows = [EncodedRow({"prompt": "x"}, [1] + [4] * n, ([],)) for n in (63, 3)]
    trainer = tiny.sft()
    with pytest.warns(UserWarning, match="^1 of 2 prompts leave no room in the context of 64: left out$"):
        assert trainer.evaluate(rows) == {} and len(trainer.samples) == 1


@pytest.mark.parametrize("responses", [([], []), ([4], [])])
def test_rows_without_response_tokens_have_no_mean(responses):
    rows = [EncodedRow({"prompt": "x"}, [1, 4], (response,)) for response in responses]
    for make in (tiny.sft, tiny.distillation):
        metrics = make().evaluate(rows)
        assert set(metrics) == ({"loss"} if any(responses) else set())
        assert all(map(math.isfinite, metrics.values()))


def test_a_process_reward_evaluation_without_labels_gives_no_numbers():
    row = EncodedRow({"prompt": "x", "labels": [], "label_columns": []}, [1, 4], ([5],))
    assert tiny.process_reward().evaluate([row]) == {}


TRAINERS = {"sft_experts": OFFLINE["sft_experts"], "online_dpo": tiny.online_dpo, "ppo": tiny.ppo, **OFFLINE}
TRAINERS |= {
    "xpo": lambda: tiny.online_dpo(algorithm="xpo"),
    "nash_md": lambda: tiny.online_dpo(algorithm="nash_md", microbatch_tokens=400),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_padding_holds_the_padding_id_of_the_tokenizer(name):
    trainer, padding = TRAINERS[name](), []
    trainer.tokenizer.pad_id = 17

    def look(module, inputs, named):
        ids, mask = (*inputs, *named.values())[:2]
        padding.extend(ids[~mask].tolist())

    for part in ("policy", "ref_policy", "model"):
        if model := getattr(trainer, part, None):
            model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.step(tiny.batches(8)[0])
    assert set(padding) == {17}
