"""`arithmetic`: additions and subtractions with checkable answers.

prompt := A ("+" | "-") B "="        response := the number        A, B := two digits, 07 for 7

Every operand has two digits, so the distance between the units digits never changes, and a small model can reuse
its knowledge for all sums. (Without the leading zero, SFT needs more than twice as many steps, and RL stalls at 0.6.)
"""

from __future__ import annotations

import random
import re

LARGEST = 99  # operands are 0..99: 20,000 problems


def problem(index: int) -> dict:
    """Problem `index` of 20,000: {prompt, answer}. Their order is a fixed shuffle: any range is a random sample."""
    side = LARGEST + 1
    index = index * 7919 % (2 * side * side)  # 7919 and 20,000 have no common factor, so this is a permutation
    a, b, minus = index // 2 // side, index // 2 % side, index % 2
    return {"prompt": f"{a:02d} {'-' if minus else '+'} {b:02d} =", "answer": a - b if minus else a + b}


def training_prompts() -> list[dict]:
    return [problem(i) for i in range(1000, 2 * (LARGEST + 1) ** 2)]


def held_out_prompts() -> list[dict]:
    """1,000 problems that no training row has."""
    return [problem(i) for i in range(1000)]


def sft_rows(n: int, seed: int) -> list[dict]:
    """n rows {prompt, response, answer}; every response is right."""
    rng, problems = random.Random(f"arithmetic sft {seed}"), training_prompts()
    rows = [rng.choice(problems) for _ in range(n)]
    return [{**row, "response": str(row["answer"])} for row in rows]


def preference_rows(n: int, seed: int, *, flipped: float = 0.05, held_out: bool = False) -> list[dict]:
    """n rows {prompt, chosen, rejected, answer}: the right number and a near miss.

    flipped: probability that chosen and rejected are swapped.
    """
    rng = random.Random(f"arithmetic pairs {seed} {held_out}")
    problems = held_out_prompts() if held_out else training_prompts()
    rows = []
    for _ in range(n):
        row = rng.choice(problems)
        texts = str(row["answer"]), str(row["answer"] + rng.choice([-10, -2, -1, 1, 2, 10]))
        chosen, rejected = texts[::-1] if rng.random() < flipped else texts
        rows.append({**row, "chosen": chosen, "rejected": rejected})
    return rows


def reward(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    """1 if the completion is the right number and no other text, else 0."""
    answers = [re.fullmatch(r"-?[0-9]{1,4}", text.strip()) for text in completions]
    return [
        float(match is not None and int(match[0]) == row["answer"]) for match, row in zip(answers, rows, strict=True)
    ]


def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
    """The exact measure of each completion: gold_reward, 0 or 1. Numbers have no grammar, so no `grammatical`."""
    return {"gold_reward": reward(prompts, completions, rows)}
