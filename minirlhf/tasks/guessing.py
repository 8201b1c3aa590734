"""`guessing`: a number from 1 to 15, found by "higher" and "lower".

    number 1 to 15:
    4
    higher
    12
    lower
    9

Each turn costs 1. The best player halves the numbers that remain. He needs 1 turn for one number, 2 for two, 3 for four
and 4 for eight numbers: (1 + 2*2 + 3*4 + 4*8) / 15 = 49 / 15 = 3.27 turns on average. The player of the SFT rows takes
any number that remains: 4.08 turns.
"""

from __future__ import annotations

import random
from fractions import Fraction
from functools import cache

from minirlhf.data.transcripts import transcript
from minirlhf.environments.environment import Observation
from minirlhf.tasks.task import Task

LARGEST = 15
PROMPT = f"number 1 to {LARGEST}:\n"
END = "\n"  # of a turn, a stop string


class Guessing:
    """One game. A guess that is wrong, or no number, is a reward of -1; the right guess ends the game."""

    stop_strings = (END,)

    def reset(self, row: dict) -> str:
        self.number = row["number"]
        return row["prompt"]

    def step(self, action: str) -> Observation:
        guess = number_in(action)
        if guess == self.number:
            return Observation(done=True)
        return Observation(answer(guess, self.number) + END, reward=-1.0)


def number_in(action: str) -> int | None:
    """The guess of a turn; None if it is no number of the game."""
    text = action.strip()
    return int(text) if text.isascii() and text.isdigit() and 1 <= int(text[:4]) <= LARGEST and len(text) < 4 else None


def answer(guess: int | None, number: int) -> str:
    if guess is None:
        return f"a number from 1 to {LARGEST}"
    return "higher" if guess < number else "lower"


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


def turns_of(completion: str) -> int:
    """The policy's turns in the text of an episode."""
    lines = completion.split(END)
    return sum(not line.startswith(("higher", "lower", "a number")) for line in lines if line)


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """gold_reward: minus the number of turns. A number that was not found counts as one turn more."""
    lasts = [number_in(text.rstrip(END).rpartition(END)[2]) for text in completions]
    found = [last == row["number"] for last, row in zip(lasts, rows, strict=True)]
    return {"gold_reward": [-float(turns_of(t) + (not f)) for t, f in zip(completions, found, strict=True)]}


@cache
def best_total(n: int) -> int:
    """The turns of the best player for n numbers in a row, summed over the numbers."""
    return n + min((best_total(k) + best_total(n - 1 - k) for k in range(n)), default=0)


OPTIMUM = Fraction(best_total(LARGEST), LARGEST)  # 49/15 turns


def guessing_task(seed: int, *, sft: int = 20_000) -> Task:
    games = sft_rows(sft + 500, seed)
    return Task("guessing", games[:sft], (), rows(200), games[sft:], (), rows(68), gold=gold)
