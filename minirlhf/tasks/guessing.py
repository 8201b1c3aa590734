"""`guessing`: a number from 1 to 15, found by "higher" and "lower".

    I think of a number from 1 to 15. Guess it; I say higher or lower.
    4
    higher
    12
    lower
    9

Each turn costs 1. The best player halves the numbers that remain: he finds one number in 1 turn, two numbers in 2, four
in 3 and eight in 4, so (1 + 2*2 + 4*3 + 8*4) / 15 = 49 / 15 = 3.267 turns on average. The player of the SFT rows takes
any number that remains: 4.079 turns on average.
"""

from __future__ import annotations

import random
from fractions import Fraction
from functools import cache
from typing import Any

from minirlhf.data.batches import TURNS
from minirlhf.data.transcripts import transcript
from minirlhf.environments import Episodes, Observation
from minirlhf.environments.episodes import REWARD
from minirlhf.tasks.task import Task

LARGEST = 15
PROMPT = f"I think of a number from 1 to {LARGEST}. Guess it; I say higher or lower.\n"
END = "\n"  # of a turn, a stop string
MOST_TURNS = 12


class Guessing:
    """One game. Each turn is a reward of -1; the right guess ends the game."""

    stop_strings = (END,)

    def reset(self, row: dict) -> str | list[dict]:
        self.number = row["number"]
        return row.get(TURNS) or row["prompt"]

    def step(self, action: str) -> Observation:
        guess = number_in(action)
        return Observation(answer(guess, self.number) + END, reward=-1.0, done=guess == self.number)


def number_in(action: str) -> int | None:
    """The guess of a turn; None if it is no number of the game."""
    text = action.strip()
    return next((number for number in range(1, LARGEST + 1) if text == str(number)), None)


def answer(guess: int | None, number: int) -> str:
    if guess is None:
        return f"a number from 1 to {LARGEST}"
    return "right" if guess == number else "higher" if guess < number else "lower"


def rows(times: int) -> list[dict]:
    """Each number `times` times."""
    return [{"prompt": PROMPT, "number": number} for _ in range(times) for number in range(1, LARGEST + 1)]


def sft_rows(n: int, seed: int) -> list[dict]:
    """n games of a player who takes any number that remains."""
    rng = random.Random(f"guessing sft {seed}")
    return [{"prompt": PROMPT, **transcript(game(rng))} for _ in range(n)]


def game(rng: random.Random) -> list[tuple[str, str]]:
    number, low, high, turns = rng.randint(1, LARGEST), 1, LARGEST, []
    while True:
        guess = rng.randint(low, high)
        turns.append(("policy", f"{guess}{END}"))
        if guess == number:
            return turns
        turns.append(("environment", answer(guess, number) + END))
        low, high = (guess + 1, high) if guess < number else (low, guess - 1)


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measure of each episode: gold_reward, minus the number of turns."""
    return {"gold_reward": [row[REWARD] for row in rows]}


@cache
def best_total(n: int) -> int:
    """The turns of the best player for n numbers in a row, summed over the numbers."""
    return n + min((best_total(k) + best_total(n - 1 - k) for k in range(n)), default=0)


OPTIMUM = Fraction(best_total(LARGEST), LARGEST)  # 49/15 turns


def episodes(tokenizer: Any) -> Episodes:
    return Episodes(Guessing, tokenizer, max_turns=MOST_TURNS)


def guessing_task(seed: int, *, sft: int = 40_000) -> Task:
    games, asked = sft_rows(sft + 500, seed), rows(68)
    return Task("guessing", games[:sft], (), asked, games[sft:], (), asked, gold=gold, environment=episodes)
