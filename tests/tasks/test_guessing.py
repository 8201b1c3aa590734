"""The game of higher and lower: its rules, its best player, and the player of the SFT rows."""

from fractions import Fraction

from minirlhf.environments import Observation
from minirlhf.tasks import guessing


def test_the_rules():
    game = guessing.Guessing()
    assert game.reset({"prompt": guessing.PROMPT, "number": 9}) == guessing.PROMPT
    assert game.step("4\n") == Observation("higher\n", -1.0)
    assert game.step(" 12") == Observation("lower\n", -1.0)
    for nonsense in ("", "sixteen", "16", "0", "-9", "9 or 10", "09", "٩", "9" * 5000):
        assert game.step(nonsense) == Observation("a number from 1 to 15\n", -1.0)
    assert game.step("9\n") == Observation("right\n", -1.0, done=True)


def test_the_best_player_worked_by_hand():
    # three numbers: the middle in 1 turn, the others in 2: 5. Seven: 1 + 2*2 + 4*3 = 17. Fifteen: 17 + 8*4 = 49.
    assert [guessing.best_total(n) for n in (0, 1, 2, 3, 7)] == [0, 1, 3, 5, 17]
    assert Fraction(49, 15) == guessing.OPTIMUM


def test_the_player_of_the_rows_takes_any_number_that_remains():
    games = guessing.sft_rows(20_000, 0)
    turns = sum(sum(part["by"] == "policy" for part in row["response_parts"]) for row in games) / len(games)
    # As in a random binary search tree of n = 15 nodes: 2 (1 + 1/n) H_n - 3 = 4.079, with a standard deviation of 1.5.
    assert abs(turns - 4.079) < 0.05
    for row in games[:200]:
        game = guessing.Guessing()
        game.reset({"prompt": row["prompt"], "number": int(row["response_parts"][-1]["text"])})
        for said, heard in zip(row["response_parts"][::2], [*row["response_parts"][1::2], None], strict=True):
            observation = game.step(said["text"])
            assert observation.done if heard is None else observation.text == heard["text"]
