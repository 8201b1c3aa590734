"""The task that the flags about files describe: mixtures, files of stages, held-out rows, validation sets."""

import json
import re

import pytest

from minirlhf.algorithms import DPOConfig, PPOConfig
from minirlhf.errors import InputError
from minirlhf.jobs import JobConfig, PipelineConfig
from minirlhf.jobs.data_flags import mapping
from minirlhf.jobs.given_rows import given_task
from minirlhf.jobs.settings import sections
from minirlhf.training.settings import parse_settings, settings_to_toml

PAIRS = [{"prompt": f"pair {n}", "chosen": f"{n} yes", "rejected": "no"} for n in range(40)]
SUMS = [{"prompt": f"{n} + 1 =", "response": f"it is {n + 1}\n#### {n + 1}", "answer": str(n + 1)} for n in range(20)]
LABELLED = [{"prompt": f"label {n}", "response": "hm", "label": n % 2 == 0} for n in range(40)]
STEPS = [{"prompt": f"steps {n}", "steps": ["a. ", "b. "], "labels": [True, False]} for n in range(40)]
FILES = {"pairs": PAIRS, "sums": SUMS, "labelled": LABELLED, "steps": STEPS, "prompts": [{"prompt": "p"}] * 2}
FILES["texts"] = [{"text": f"raw text {n}"} for n in range(40)]


@pytest.fixture
def task(tmp_path, monkeypatch):
    """task(flags in one text): the task of a PPO program, or of a DPO program."""
    monkeypatch.chdir(tmp_path)
    for name, rows in FILES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(flags, section="ppo", config=PPOConfig):
        classes = sections(section, config, job=PipelineConfig, after=("sft", "reward"))
        return given_task(parse_settings(classes, flags.split(), description=""), section)

    return make


def prompts_of(rows):
    return [row["prompt"] for row in rows]


def test_without_files_there_is_no_task_and_flags_about_files_are_refused(task):
    assert task("") is None
    flags = "--encoding=x --map=a=b --as=sft --max_rows=3 --mix=concat --data_weights=1 --held_out=0.1 --validation=a=b"
    for flag in [*flags.split(), "--train_on=last", "--pairs=all", "--ignore_columns=a"]:
        with pytest.raises(InputError, match=f"^{flag.split('=')[0]}: .*; give --data FILE$"):
            task(flag)


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("pairs", {"sft", "pairs", "prompts", "unpaired"}),
        ("sums", {"sft", "prompts"}),
        ("labelled", {"unpaired", "prompts"}),
        ("steps", {"steps", "prompts"}),
        ("prompts", {"prompts"}),
        ("texts", {"sft"}),
    ],
)
def test_each_kind_of_rows_fills_the_parts_that_can_use_it(task, file, parts):
    found = task(f"--data {file}.jsonl")
    assert {part for part in ("sft", "pairs", "prompts", "unpaired", "steps") if len(getattr(found, part))} == parts


def test_single_answers_are_both_answers_of_a_pair_and_rows_with_labels(task):
    found = task("--data pairs.jsonl")
    first, second = found.unpaired[:2]
    assert [(row["response"], row["label"]) for row in (first, second)] == [("0 yes", True), ("no", False)]
    assert len(found.unpaired) == 2 * len(found.pairs) and first["prompt"] == second["prompt"]
    assert [row["label"] for row in task("--data labelled.jsonl --held_out 0").unpaired] == [True, False] * 20


def test_a_part_that_the_rows_do_not_have_is_refused_with_the_way_to_read_them_otherwise(task):
    text = r"labelled.jsonl: SFT needs rows {prompt, response}, but .* \(its rows are unpaired rows; --as reads them"
    with pytest.raises(InputError, match=f"^{text}"):
        task("--data labelled.jsonl").need("sft")


def test_files_of_stages_replace_data_for_their_stage_alone(task):
    found = task("--data pairs.jsonl --sft.data sums.jsonl --ppo.data prompts.jsonl")
    assert all("+" in prompt for prompt in prompts_of(found.sft)) and len(found.sft) + len(found.held_out_sft) == 20
    assert all("pair" in prompt for prompt in prompts_of(found.pairs))
    assert prompts_of(found.prompts) == ["p"]
    assert found.sources == {
        **dict.fromkeys(("sft", "held_out_sft"), "sums.jsonl"),
        **dict.fromkeys(("prompts", "held_out_prompts"), "prompts.jsonl"),
    }
    alone = task("--reward_model.data pairs.jsonl")
    assert len(alone.pairs) and alone.name == "pairs.jsonl"
    with pytest.raises(InputError, match="pairs.jsonl: SFT needs rows"):
        alone.need("sft")
    with pytest.raises(InputError, match="^sums.jsonl: training on pairs needs rows"):
        task("--data pairs.jsonl --reward_model.data sums.jsonl")


def test_a_stage_that_trains_on_pairs_takes_its_own_prompts_for_evaluations(task):
    found = task("--data sums.jsonl --dpo.data pairs.jsonl", "dpo", DPOConfig)
    assert all("pair" in prompt for prompt in (*prompts_of(found.pairs), *prompts_of(found.held_out_prompts)))
    assert all("+" in prompt for prompt in prompts_of(found.sft))


@pytest.mark.parametrize(
    ("flags", "shares"),
    [
        ("", (40, 20)),
        ("--mix balanced", (20, 20)),
        ("--mix weighted --data_weights 1,3", (15, 45)),
        ("--data_weights 3,1", (45, 15)),  # weights alone mean weighted
    ],
)
def test_several_files_are_mixed_by_the_strategy_and_rows_name_their_file(task, flags, shares):
    found = task(f"--data pairs.jsonl,sums.jsonl --held_out 0 {flags}")
    files = [row["file"] for row in found.sft]
    assert (files.count("pairs.jsonl"), files.count("sums.jsonl")) == shares
    assert len(found.pairs) == 40  # only one of the files has pairs
    assert list(found.sft) == list(task(f"--data pairs.jsonl,sums.jsonl --held_out 0 {flags}").sft)
    assert len(found.prompts) == (60 if not flags else sum(shares))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--data pairs.jsonl,,sums.jsonl", "--data: needed a file before and after each comma"),
        ("--data pairs.jsonl,pairs.jsonl", "--data: needed each file once"),
        (
            "--data pairs.jsonl,sums.jsonl --data_weights 1",
            "--data_weights: needed a weight for each of the 2 files, got 1",
        ),
        ("--data pairs.jsonl,sums.jsonl --data_weights 1,0", "mix: needed finite weights above 0"),
        ("--data pairs.jsonl,sums.jsonl --mix weighted", "mix: needed a weight for each of 2 sources, got 0"),
        ("--data pairs.jsonl,sums.jsonl --mix balanced --data_weights 1,1", "mix: balanced takes no weights"),
        ("--sft.data pairs.jsonl --data_weights 1", "--data_weights: needs the files to weigh"),
        ("--data pairs.jsonl --validation pairs.jsonl", "--validation: needed NAME=FILE"),
        ("--data pairs.jsonl --validation a/b=sums.jsonl", "--validation: needed NAME=FILE"),
        (
            "--data pairs.jsonl --validation a=sums.jsonl,a=pairs.jsonl",
            "--validation: needed each name once, got a twice",
        ),
        ("--data pairs.jsonl --task arithmetic", "--task arithmetic: --data replaces the embedded task"),
        ("--data pairs.jsonl --map prompt", "--map: needed known=yours"),
        ("--data pairs.jsonl --held_out 1.5", "held_out: needed a share"),
        ("--data pairs.jsonl --held_out 40", "held_out: needed fewer rows than the 40 of the file"),
        ("--data none.jsonl", "none.jsonl: "),
        ("--data pairs.jsonl --held_out none.jsonl", "none.jsonl: "),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(task, flags, reason):
    with pytest.raises(InputError, match=f"^{re.escape(reason)}"):
        task(flags)


def test_held_out_rows_are_a_share_a_number_or_a_file(task):
    assert len(task("--data pairs.jsonl --held_out 0").held_out_pairs) == 0
    assert len(task("--data pairs.jsonl --held_out 7").held_out_pairs) == 7
    assert 5 <= len(task("--data pairs.jsonl --held_out 0.3").held_out_pairs) <= 20
    found = task("--data pairs.jsonl --held_out sums.jsonl")
    assert len(found.pairs) == 40 and len(found.held_out_sft) == 20 and len(found.held_out_pairs) == 0


def test_all_rows_of_a_validation_file_are_held_out(task):
    found = task("--data pairs.jsonl --validation math=sums.jsonl,chat=pairs.jsonl").validation
    assert list(found) == ["math", "chat"] and not len(found["math"].sft)
    assert (len(found["math"].held_out_sft), len(found["chat"].held_out_pairs)) == (20, 40)
    assert found["math"].gold and not found["chat"].gold


def test_answers_that_can_be_checked_are_the_exact_measure(task):
    found = task("--data sums.jsonl")
    rows = [{"answer": "3"}, {"answer": "4"}]
    assert found.gold(["", ""], ["so 3", "5"], rows) == {"gold_reward": [1.0, 0.0]}
    assert task("--data pairs.jsonl").gold is None and task("--data pairs.jsonl,sums.jsonl").gold is None


def test_max_rows_is_of_each_file(task):
    found = task("--data pairs.jsonl,sums.jsonl --max_rows 5 --held_out 0")
    assert len(found.sft) == 10


def test_as_is_a_flag_and_a_key_of_the_file_of_settings():
    settings = parse_settings({"job": sections("ppo", PPOConfig)["job"]}, ["--as", "text"], description="")
    assert settings["job"].as_ == "text" and '\nas = "text"\n' in settings_to_toml(settings)
    assert isinstance(settings["job"], JobConfig)


def test_the_map_names_known_columns_first():
    assert mapping(("prompt=ask", "response=a=b")) == {"prompt": "ask", "response": "a=b"}


@pytest.mark.parametrize("flags, texts", [("", 4), ("--documents blank_line", 2), ("--documents file", 1)])
def test_documents_of_plain_text(task, tmp_path, flags, texts):
    (tmp_path / "play.txt").write_text("Ho!\nWho?\n\nI.\nYou?\n")
    found = task(f"--data play.txt {flags}".strip())
    rows = [*found.sft, *found.held_out_sft]
    assert len({row["response"] for row in rows}) == texts and "Ho!" in rows[0]["response"]


def test_a_mapped_or_ignored_column_may_stand_in_one_source_alone_but_not_in_none(task, tmp_path):
    rows = [{"ask": row["prompt"], **row, "score": 1} for row in PAIRS]
    rows = [{name: value for name, value in row.items() if name != "prompt"} for row in rows]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = "--data pairs.jsonl,mine.jsonl --map prompt=ask"
    assert len(task(f"{both} --ignore_columns score --held_out 0 --mix balanced").pairs) == 80
    assert len(task("--data mine.jsonl --map prompt=ask --ignore_columns score --validation a=pairs.jsonl").pairs) == 38
    assert len(task("--data pairs.jsonl --ppo.data mine.jsonl --map prompt=ask --ignore_columns score").pairs) == 38
    for wrong, needed in (
        ("--data pairs.jsonl,sums.jsonl --map prompt=ask", "pairs.jsonl, sums.jsonl: map: .* got ask; the files have"),
        ("--data pairs.jsonl,sums.jsonl --ignore_columns hue", "pairs.jsonl, sums.jsonl: ignore_columns: .* got hue;"),
        ("--data pairs.jsonl,mine.jsonl --map prompt=aks", "mine.jsonl: map: .* got aks; the file has ask"),
    ):
        with pytest.raises(InputError, match=f"^{needed}"):
            task(wrong)


def test_answers_without_text_are_no_gold(task, tmp_path):
    rows = [{"prompt": f"p {n}", "answer": " "} for n in range(20)]
    (tmp_path / "blank.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert task("--data blank.jsonl").gold is None and task("--data sums.jsonl").gold
