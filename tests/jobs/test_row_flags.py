"""The flags about rows reach every reader of rows: evaluations, early stopping, validation, reward models of steps."""

from types import SimpleNamespace

import pytest

from minirlhf.jobs import PipelineConfig, early_stop
from minirlhf.jobs.data_flags import DataFlags, encoding_options, with_data_flags
from minirlhf.jobs.programs import ProcessRewardJobConfig
from minirlhf.jobs.steps import encoded_steps
from minirlhf.jobs.validation import encoded
from minirlhf.tasks import Task
from minirlhf.text import Tokenizer

ZEPHYR = Tokenizer.train(["ab"], 259).with_template("zephyr")
SHAPE = SimpleNamespace(max_position_embeddings=40)


def flags(cls=PipelineConfig, **values):
    return with_data_flags(cls)(**values)


@pytest.mark.parametrize("train_on", ["all", "all_turns", "last"])
def test_held_out_prompts_are_never_learned_because_the_policy_answers_them(train_on):
    options = encoding_options(DataFlags(train_on=train_on), "sft", held_out=True)
    assert options["train_on"] == train_on.removesuffix("_turns").replace("all", "all_turns")
    assert encoding_options(DataFlags(train_on=train_on), "sft")["train_on"] == train_on
    assert encoding_options(DataFlags(train_on=train_on), "pairs")["train_on"] == "last"


@pytest.mark.parametrize("wrap", ["turns", "plain"])
def test_early_stopping_reads_prompts_as_training_does(monkeypatch, wrap):
    seen = []

    def evaluate(policy, tokenizer, rows, *args, **options):
        seen.extend(rows)
        return SimpleNamespace(known=dict)

    monkeypatch.setattr(early_stop, "evaluate_policy", evaluate)
    task = Task("mine", [], [], [{"prompt": "ab"}, {"prompt": "a" * 30}], [], [], [])
    job = SimpleNamespace(tokenizer=ZEPHYR, task=task, common=flags(wrap=wrap, max_prompt_length=29))
    policy = SimpleNamespace(transformer=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=60)))
    assert early_stop.solved(job, policy) == {}
    (row,) = seen  # the other prompt is too long
    turns = [{"role": "user", "content": "ab"}]
    expected = ZEPHYR.encode_turns(turns, ())[0] if wrap == "turns" else ZEPHYR.encode_prompts(["ab"])[0]
    assert row.prompt == expected


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_a_validation_set_of_steps_is_read_as_the_held_out_rows(kind):
    rows = [{"prompt": "a", "steps": ["b", "c" * n], "labels": [True, False]} for n in (1, 9)]
    task = Task("mine", [], [], [], [], [], [], steps=rows, held_out_steps=rows)
    common = flags(ProcessRewardJobConfig, kind=kind, wrap="plain", max_length=9, max_refused=1.0)
    job = SimpleNamespace(tokenizer=ZEPHYR, task=task, common=common)
    training, held_out = encoded_steps(job, 40)
    assert training == held_out == encoded(job, "steps", SHAPE) and len(training) == 1
    assert training[0].source["labels"] == ([True, False] if kind == "process" else [False])
