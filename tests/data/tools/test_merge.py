"""`minirlhf data merge`: the plan is what is written."""

import json

import pytest

A = [{"prompt": f"a{i}", "response": "x"} for i in range(90)]
B = [{"prompt": f"b{i}", "response": "y"} for i in range(10)]


@pytest.fixture
def files(write):
    return write("a.jsonl", A), write("b.jsonl", B)


def counts_of(rows):
    return [sum(row["prompt"][0] == letter for row in rows) for letter in "ab"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), [90, 10]),
        (("--strategy", "balanced"), [10, 10]),
        (("--strategy", "weighted", "--weights", "3,1"), [75, 25]),
        (("--strategy", "weighted", "--weights", "0.5,0.5"), [50, 50]),
    ],
)
def test_the_plan_is_written(call, files, read, tmp_path, flags, expected):
    code, plan, _ = call("merge", *files, *flags, "--names", "first,second", "--dry_run")
    assert code == 0 and not list(tmp_path.glob("*manifest*")) and "dry run: nothing is written" in plan
    for name, count in zip(("first", "second"), expected, strict=True):
        assert f"{name}: gives {count} rows ({count / sum(expected):.0%} of the mixture)" in plan
    code, out, _ = call("merge", *files, *flags, "--names", "first,second", "--output", "both.jsonl")
    rows = read("both.jsonl")
    assert code == 0 and counts_of(rows) == expected
    assert {line for line in plan.splitlines() if "gives" in line} <= set(out.splitlines())
    manifest = json.loads((tmp_path / "both.jsonl.manifest.json").read_text())
    assert [source["name"] for source in manifest["sources"]] == ["first", "second"]
    assert [(A, B)[source][line - 1] for source, line in manifest["origin"]] == rows


def test_a_small_file_repeats_its_rows_evenly(call, files, read):
    call("merge", *files, "--strategy", "weighted", "--weights", "3,1", "--output", "both.jsonl")
    times = [sum(row["prompt"] == b["prompt"] for row in read("both.jsonl")) for b in B]
    assert sorted(times) == [2] * 5 + [3] * 5


def test_files_of_several_layouts_get_one_layout(call, files, write, read):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    chat = write("chat.jsonl", [{"messages": [*turns, {"role": "assistant", "content": "z"}], "id": 7}])
    code, out, _ = call("merge", files[1], chat, "--output", "both.jsonl")
    assert code == 0 and "written as sft rows" in out
    assert read("both.jsonl")[-1] == {"prompt": turns, "response": "z", "id": 7}
    code, out, _ = call("check", "both.jsonl")
    assert code == 0 and "11 kept, 0 refused" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--output", "a.jsonl"), "a.jsonl: needed a new file to write"),
        ((), "needed --output FILE"),
        (("--strategy", "weighted", "--dry_run"), "needed a weight for each of 2 sources"),
        (("--weights", "1,2", "--dry_run"), "takes no weights"),
        (("--names", "x,x", "--dry_run"), "--names: needed 2 different names"),
    ],
)
def test_flags_that_do_not_fit_are_refused(call, files, flags, message):
    code, _, err = call("merge", *files, *flags)
    assert code == 2 and message in err


def test_rows_of_two_kinds_are_refused(call, files, write):
    pairs = write("pairs.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    code, _, err = call("merge", files[0], pairs, "--dry_run")
    assert code == 2 and "needed rows of one kind, but a.jsonl has sft rows, pairs.jsonl has preference rows" in err


def test_a_mapped_column_may_stand_in_one_file_alone(call, files, write, read):
    mine = write("mine.jsonl", [{"ask": f"m{i}", "response": "z"} for i in range(5)])
    code, out, _ = call("merge", *files, mine, "--map", "prompt=ask", "--output", "all.jsonl")
    assert code == 0 and len(read("all.jsonl")) == 105 and "with --map prompt=ask too" in out
    code, out, _ = call("check", "all.jsonl", "--map", "prompt=ask", "--against", files[0])
    assert code == 0 and "105 kept" in out and ": 90 of 105" in out
    code, _, error = call("merge", *files, "--map", "prompt=ask", "--output", "none.jsonl")
    assert code == 2 and "map: needed columns of the files, got ask; the files have prompt, response" in error
