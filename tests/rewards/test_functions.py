"""Reward functions of a user's file, and sums of rewards."""

import pytest

from minirlhf.errors import InputError
from minirlhf.rewards.functions import FileReward, RewardSum, parts_of

P, C, ROWS = ["p", "q"], ["c", "dd"], [{"prompt": "p"}, {"prompt": "q"}]
FILE = """
from neighbour import SCALE
from dataclasses import dataclass

@dataclass
class Settings:
    scale: float = SCALE

def length(prompts, completions, rows):
    return [Settings().scale * len(c) for c in completions]

def late(completions):
    from neighbour import SCALE
    yield from (SCALE for _ in completions)

def broken(completions):
    return [1 / (len(c) - 1) for c in completions]

def lazy_and_broken(completions):
    yield 1 / 0

def no_key(rows):
    return [row["answer"] for row in rows]

def leaves(completions):
    raise SystemExit(0)

def many_lines(completions):
    raise RuntimeError("first\\nsecond")

def two(a, b):
    return []
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("SCALE = 2.0\n")
    path = tmp_path / "my.py"
    path.write_text(FILE)
    return path


def test_a_function_of_a_file_is_a_reward_and_can_import_its_neighbours(file):
    reward = FileReward(f"{file}:length")
    assert reward(P, C, ROWS) == [2.0, 4.0] and reward.__name__ == f"{file}:length"
    assert FileReward(f"{file}:late")(P, C, ROWS) == [2.0, 2.0]
    assert FileReward(f"{file}:length").function is reward.function  # the file is imported once


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("broken", "my.py, line 17: ZeroDivisionError: division by zero (in return [1 / (len(c) - 1) for c in compl"),
        ("lazy_and_broken", "my.py, line 20: ZeroDivisionError: division by zero (in yield 1 / 0)"),
        ("no_key", "my.py, line 23: KeyError: 'answer' (in return [row[\"answer\"] for row in rows])"),
        ("leaves", "my.py, line 26: SystemExit: 0 (in raise SystemExit(0))"),
        ("many_lines", "my.py, line 29: RuntimeError: first second (in raise Runtime"),
        ("two", "TypeError: two() takes 2 positional arguments but 3 were given; needed a function of prompts"),
    ],
)
def test_an_error_in_the_users_code_is_one_line_with_his_file_and_line(file, function, text):
    reward = FileReward(f"{file}:{function}")
    with pytest.raises(InputError) as caught:
        reward(P, C, ROWS)
    assert str(caught.value).startswith(f"reward {file}:{function}: {text}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("def f(:\n", "my.py, line 1: SyntaxError: invalid syntax"),
        (
            "x = 1\nimport nowhere\n",
            "my.py, line 2: ModuleNotFoundError: No module named 'nowhere' (in import nowhere)",
        ),
        ("exit(3)\n", "my.py, line 1: SystemExit: 3 (in exit(3))"),
        (b"\xff\xfe", "my.py, line 1: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path, content, text):
    path = tmp_path / "my.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in range(2):  # a half imported file does not stay
        with pytest.raises(InputError) as caught:
            FileReward(f"{path}:f")
        assert str(caught.value).startswith(f"reward {path}:f: ") and text[:30] in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_file_or_function_is_named_with_those_that_are_there(file, tmp_path):
    gone = tmp_path / "gone.py"
    with pytest.raises(InputError, match=f"^reward {gone}:f: needed a Python file, found no {gone}; check the path$"):
        FileReward(f"{gone}:f")
    known = "it has Settings, length, late, broken, lazy_and_broken, no_key, leaves, many_lines, two; "
    for name, hint in (
        (f"{file}:lenght", "got lenght; " + known + "the nearest is length"),
        (str(file), "got no name; "),
    ):
        with pytest.raises(InputError, match=hint):
            FileReward(name)
    with pytest.raises(InputError, match="got SCALE; "):  # a number is no function
        FileReward(f"{file}:SCALE")


def test_a_sum_weighs_its_rewards_and_leaves_out_those_that_do_not_apply():
    ones, lengths = (lambda p, c, r: [1.0, None]), (lambda completions: [len(c) for c in completions])
    total = RewardSum([ones, lengths], (1.0, 0.5))
    assert total(P, C, ROWS) == [1.5, 1.0]
    assert RewardSum([ones, ones], (1.0, 2.0))(P, C, ROWS) == [3.0, None]
    assert RewardSum([ones, lengths])(P, C, ROWS) == [2.0, 2.0]
    with pytest.raises(
        InputError, match="^RewardSum: needed a weight for each function, got 2 functions and 1 weights"
    ):
        RewardSum([ones, lengths], [1.0])
    assert parts_of(total) == [ones, lengths] and parts_of(ones) == [ones]
    with pytest.raises(InputError, match="^reward broken: needed 2 scores"):

        def broken(p, c, r):
            return [1.0]

        RewardSum([ones, broken], (1.0, 1.0))(P, C, ROWS)
