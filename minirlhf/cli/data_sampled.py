"""`minirlhf data pairs --policy DIR --reward REWARD`: two samples of a model, judged by a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minirlhf.data.encoding import encode_rows
from minirlhf.data.formats import Dataset
from minirlhf.data.tools.pairs import judged
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.jobs.models import resolve_model
from minirlhf.pretrained import load_policy, load_reward_model
from minirlhf.rewards.functions import FileReward
from minirlhf.rewards.scoring import Reward, RewardModelScorer, score_completions
from minirlhf.runtime.device import resolve_precision, session
from minirlhf.text.tokenizer import Tokenizer

AT_ONCE = 64  # prompts that are sampled at once


def sampled_pairs(
    dataset: Dataset, policy: str, reward: str, max_tokens: int, temperature: float, seed: int, device: str
) -> tuple[list[dict], int, list[str]]:
    """-> (preference rows, prompts whose two samples are equally good, prompts that cannot be encoded)."""
    folder = resolve_model(policy)
    tokenizer = Tokenizer.load(folder)
    with session(device=device, precision="auto", seed=seed) as on:
        model = load_policy(folder, dtype=resolve_precision("auto", on)).eval().to(on)
        check_vocabulary(model.transformer.config, tokenizer, folder, tell=print)
        judge = reward_named(reward, on)
        encoded = encode_rows(
            tokenizer,
            dataset.rows,
            (),
            context=model.transformer.config.max_position_embeddings,
            vocabulary=model.transformer.config.vocab_size,
            max_refused=1.0,
            source=dataset.path,
            unit=dataset.unit,
        )
        sampling = SamplingConfig(max_tokens=max_tokens, temperature=temperature, stop_ids=tokenizer.eos_ids)
        found, equal = [], 0
        for start in range(0, len(encoded.rows), AT_ONCE):
            rows = encoded.rows[start : start + AT_ONCE]
            keys = [(0, start + i, k) for i in range(len(rows)) for k in range(2)]
            prompts = [row.prompt for row in rows for _ in range(2)]
            completions = generate(
                model.transformer, prompts, sampling, seed=seed, stream="pairs", keys=keys, tokenizer=tokenizer
            )
            texts = tokenizer.decode_completions([completion.ids for completion in completions])
            pairs = judged_pairs([row.source for row in rows], texts, judge)
            equal += pairs.count(None)
            found += [pair for pair in pairs if pair]
    return found, equal, encoded.refused


def judged_pairs(rows: Sequence[dict], texts: Sequence[str], judge: Reward) -> list[dict | None]:
    """A pair for each row; its two samples stand side by side in `texts`. None: no sample is better."""
    twice = [row for row in rows for _ in range(2)]
    scores = score_completions(judge, [row["prompt"] for row in twice], list(texts), twice)
    return [judged(row, texts[2 * i : 2 * i + 2], scores[2 * i : 2 * i + 2]) for i, row in enumerate(rows)]


def reward_named(name: str, device: object) -> Reward:
    """A reward model's folder, or FILE.py:FUNCTION."""
    if name.endswith(".py") or ".py:" in name:
        return FileReward(name)
    folder = resolve_model(name)
    if not Path(folder).is_dir():
        raise InputError(f"--reward {name}: needed a reward model's folder or FILE.py:FUNCTION, found neither")
    return RewardModelScorer(load_reward_model(folder).eval().to(device), Tokenizer.load(folder))
