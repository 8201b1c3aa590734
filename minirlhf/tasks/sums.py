"""`sums`: additions of four digits, too long for a small model's head, and a calculator.

prompt := A "+" B "="        A, B := 1000..9999

    1234+5678=<calculator>1234+5678</calculator><result>6912</result>6912

A row of SFT has the answer alone, or with a small probability a call. So the model after SFT knows how a call is
written, and hardly ever calls. Reinforcement learning on right answers finds the call.
"""

from __future__ import annotations

import random
from functools import partial

from minirlhf.data.transcripts import transcript
from minirlhf.environments.text_environment import CLOSE, OPEN, TextEnvironment
from minirlhf.environments.tools.calculator import calculator
from minirlhf.tasks.task import Task

ASK, ASKED = "calculator: ", 0.4  # the beginning of a prompt that asks for a call, and its share of the SFT rows
CALL = f"<{calculator.__name__}>"


def problem(rng: random.Random, held_out: bool = False) -> dict:
    """A sum {prompt, answer}. No sum is both a training sum and a held-out sum."""
    while True:
        a, b = rng.randint(1000, 9999), rng.randint(1000, 9999)
        if ((a + 3 * b) % 10 == 0) == held_out:
            return {"prompt": f"{a}+{b}=", "answer": a + b}


def problems(n: int, name: str, held_out: bool = False) -> list[dict]:
    rng = random.Random(f"sums {name}")
    return [problem(rng, held_out) for _ in range(n)]


def sft_rows(n: int, seed: int, calls: float) -> list[dict]:
    """n transcripts; each has a call with the probability `calls`. Every answer is right."""
    rng, rows = random.Random(f"sums sft {seed}"), []
    for _ in range(n):
        row = problem(rng)
        answer, sum_ = str(row["answer"]), row["prompt"].removesuffix("=")
        turns = [("policy", answer)]
        asked = rng.random() < ASKED
        if asked:
            row = {**row, "prompt": f"{ASK}{row['prompt']}"}
        if asked or rng.random() < calls:
            call, result = f"{CALL}{sum_}</{calculator.__name__}>", f"{OPEN}{answer}{CLOSE}"
            turns = [("policy", call), ("environment", result), *turns]
        rows.append({**row, **transcript(turns)})
    return rows


def right(answer: str, row: dict) -> float:
    """1 for the right number and no other text, else 0."""
    return float(answer.strip() == str(row["answer"]))


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measure of each episode: gold_reward, 0 or 1, of the text after the last result of a tool."""
    answers = [text.rpartition(CLOSE)[2] for text in completions]
    return {"gold_reward": [right(answer, row) for answer, row in zip(answers, rows, strict=True)]}


def sums_task(seed: int, *, sft: int = 50_000, calls: float = 0.1) -> Task:
    """calls: share of the SFT rows that show a call; 0 for a policy without a tool."""
    held_out = problems(1000, "held out", held_out=True)
    answers = [{**row, "response": str(row["answer"])} for row in held_out]
    prompts = problems(20_000, f"prompts {seed}")
    return Task("sums", sft_rows(sft, seed, calls), (), prompts, answers, (), held_out, gold=gold)


environment = partial(TextEnvironment, [calculator], reward=right)
