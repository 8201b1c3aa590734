"""`sums`: additions of four digits, too long for a small model's head, and a calculator.

prompt := ["calculator: "] A "+" B "="        A, B := 1000..9999

    1234+5678=<calculator>1234+5678</calculator><result>6912</result>6912

SFT shows a call after each prompt that asks for it. A bare sum, such as the line above, is nearly always answered from
the head. So the policy after SFT knows how to call and hardly ever does. The prompts of reinforcement learning are bare
sums.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from minirlhf.data.transcripts import transcript
from minirlhf.environments import Episodes, TextEnvironment
from minirlhf.environments.text_environment import CLOSE, OPEN
from minirlhf.environments.tools.calculator import calculator
from minirlhf.tasks.task import Task

ASK, ASKED = "calculator: ", 0.6  # the beginning of a prompt that asks for a call, and its share of the SFT rows
CALLS = 0.05  # share of the bare sums that SFT answers with a call


def problem(rng: random.Random, held_out: bool = False) -> dict:
    """A sum {prompt, answer}. No sum is both a training sum and a held-out sum."""
    while True:
        a, b = rng.randint(1000, 9999), rng.randint(1000, 9999)
        if ((a + 3 * b) % 10 == 0) == held_out:
            return {"prompt": f"{a}+{b}=", "answer": a + b}


def problems(n: int, name: str, held_out: bool = False) -> list[dict]:
    rng = random.Random(f"sums {name}")
    return [problem(rng, held_out) for _ in range(n)]


def sft_rows(n: int, seed: int, tool: bool = True) -> list[dict]:
    """n rows, with right answers.   tool: some are transcripts with a call, see the top; False: no row has a call."""
    rng, rows = random.Random(f"sums sft {seed}"), []
    for _ in range(n):
        row, asks, calls = problem(rng), rng.random() < ASKED, rng.random() < CALLS
        answer, turns = str(row["answer"]), [("policy", str(row["answer"]))]
        if tool and (asks or calls):
            call = f"<calculator>{row['prompt'].removesuffix('=')}</calculator>"
            turns = [("policy", call), ("environment", f"{OPEN}{answer}{CLOSE}"), *turns]
        rows.append({**row, "prompt": ASK * (tool and asks) + row["prompt"], **transcript(turns)})
    return rows


def right(answer: str, row: dict) -> float:
    """1 for the right number and no other text, else 0."""
    return float(answer.strip() == str(row["answer"]))


def reward(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    """`right`, for the text after the last answer of a tool."""
    return [right(text.rpartition(CLOSE)[2], row) for text, row in zip(completions, rows, strict=True)]


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measure of each answer: gold_reward, 0 or 1."""
    return {"gold_reward": reward(prompts, completions, rows)}


def episodes(tokenizer: Any) -> Episodes:
    environment = partial(TextEnvironment, [calculator], reward=right, tokenizer=tokenizer)
    return Episodes(environment, tokenizer, max_turns=4, max_tool_tokens=32)


def sums_task(seed: int, *, sft: int = 64_000, prompts: int = 20_000, tool: bool = True) -> Task:
    asked = problems(1000, "held out", held_out=True)
    known = [{**row, **transcript([("policy", str(row["answer"]))])} for row in asked]
    parts = sft_rows(sft, seed, tool), (), problems(prompts, f"prompts {seed}"), known, (), asked
    return Task("sums", *parts, reward=reward, gold=gold, environment=episodes if tool else None)
