"""The work that `speed.py` gives to both sides: shapes, ids, lengths, a tokenizer, and the turns of a measurement."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable

import tokenizers

PAD, BOS, EOS, FIRST = 0, 1, 2, 3  # the first id that stands for a word is 3

# As Qwen2 with tied embeddings, fp32. V is the head of a large vocabulary alone; XS is for a test.
SHAPES = {
    "XS": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 48, "vocab": 300, "tokens": 24},
    "S": {"hidden": 256, "layers": 6, "heads": 8, "kv_heads": 2, "intermediate": 704, "vocab": 4096},
    "M": {"hidden": 768, "layers": 12, "heads": 12, "kv_heads": 4, "intermediate": 2048, "vocab": 32000},
    "V": {"hidden": 512, "vocab": 151_936, "tokens": 2048},
}
ROWS, LENGTH = 8, 256  # of a batch of SFT
PROMPT = 64  # tokens of every prompt
BATCH, NEW = 16, 128  # sampling: prompts, and tokens of a completion
PROMPTS, GROUP, ROLLOUT = 4, 8, 64  # GRPO: prompts, completions of each, and tokens of a completion; also PPO's tokens
PAIRS = 4  # of a batch of DPO
CALLS = 100  # decode steps of a turn


def ids_of(rows: int, length: int, vocab: int, seed: int) -> list[list[int]]:
    """Rows of ids that stand for words."""
    rng = random.Random(seed)
    return [[rng.randrange(FIRST, vocab) for _ in range(length)] for _ in range(rows)]


def lengths_of(rows: int, low: int, high: int, seed: int) -> list[int]:
    """Mixed lengths; one row always has the longest."""
    rng = random.Random(seed)
    lengths = [rng.randint(low, high) for _ in range(rows)]
    lengths[rng.randrange(rows)] = high
    return lengths


def sft_rows(shape: str, steps: int, mixed: bool) -> list[list[int]]:
    rows = ids_of(ROWS * steps, LENGTH, SHAPES[shape]["vocab"], seed=2)
    lengths = [n for step in range(steps) for n in lengths_of(ROWS, 32, LENGTH, seed=step)]
    return [row[:n] for row, n in zip(rows, lengths, strict=True)] if mixed else rows


def completion_lengths(mixed: bool, new: int) -> list[int]:
    """Of the completions of four prompts, in the order of the prompts."""
    return lengths_of(PROMPTS * GROUP, 8, new, seed=0) if mixed else [new] * (PROMPTS * GROUP)


def pairs(shape: str, steps: int) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected); an answer of 100 to 172 tokens ends with EOS."""
    rng, vocab, count = random.Random(3), SHAPES[shape]["vocab"], PAIRS * steps
    prompts, chosen, rejected = (ids_of(count, n, vocab, seed) for n, seed in ((PROMPT, 4), (171, 5), (171, 6)))
    cut = [[[*ids[: rng.randint(99, 171)], EOS] for ids in answers] for answers in (chosen, rejected)]
    return list(zip(prompts, *cut, strict=True))


def word_tokenizer(vocab: int) -> tokenizers.Tokenizer:
    """One word an id, so that a text has exactly the ids that were meant."""
    words = {"<|pad|>": PAD, "<|bos|>": BOS, "<|eos|>": EOS} | {f"w{i}": i for i in range(FIRST, vocab)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<|pad|>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|pad|>", "<|bos|>", "<|eos|>"])
    return backend


def text_of(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def share_of_even(texts: list[str]) -> list[float]:
    """A reward: cheap, and different for every completion."""
    return [sum(word[-1] in "02468" for word in text.split()) / max(1, len(text.split())) for text in texts]


class Turns:
    """The measured side of a pipe: waits for its turn, works, and answers with the figures of its step."""

    def __init__(self) -> None:
        self.pipe = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB

    def wait(self) -> bool:
        """False if no turn follows."""
        if not sys.stdin.readline():
            return False
        self.started = time.perf_counter(), time.process_time()
        return True

    def answer(self, tokens: int) -> None:
        """tokens: of the step, as the table counts them."""
        seconds, processor = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures = {"seconds": seconds, "processor": processor, "tokens": tokens, "peak": peak, "before": self.before}
        print(json.dumps(figures), file=self.pipe, flush=True)


def take_turns(step: Callable[[], int]) -> None:
    """step: does the work of one turn -> its tokens."""
    turns = Turns()
    while turns.wait():
        turns.answer(step())
