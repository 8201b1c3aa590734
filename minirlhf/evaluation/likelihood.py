"""How well a model predicts given texts: perplexity, and bits per byte.

Perplexity counts tokens, so it compares models of one tokenizer alone. Bits per byte compare any models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from minirlhf.data.batches import microbatches, pad_sequences
from minirlhf.errors import InputError
from minirlhf.losses.logprobs import linear_token_logps
from minirlhf.model.policy import Policy


@dataclass(frozen=True)
class Likelihood:
    nll: float = 0.0  # nats, minus the log-prob of all counted tokens
    tokens: int = 0
    size: int = 0  # [bytes] of the text in UTF-8

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(self.nll + other.nll, self.tokens + other.tokens, self.size + other.size)

    def measures(self) -> dict[str, float | None]:
        """perplexity = exp(nll / tokens); bits_per_byte = nll / (log 2 * bytes). None without tokens or bytes."""
        mean = self.nll / self.tokens if self.tokens else None
        return {
            "perplexity": None if mean is None else math.exp(min(mean, 700.0)),  # a larger number is infinite
            "bits_per_byte": self.nll / math.log(2) / self.size if self.size else None,
        }


def rolling_windows(n: int, length: int, overlap: int = 1) -> Iterator[tuple[int, int, int]]:
    """Windows (start, first, stop) that count each of the tokens 1 to n - 1 of a text once.

    A model reads the tokens start to stop - 2 of a window, at most `length`, and predicts the tokens first to stop - 1.
    Token 0 is BOS or a prompt's first token and is never predicted. Each window but the first reads at least `overlap`
    tokens before its first prediction; the last window begins early, so that it is full. This is the rolling
    log-likelihood of lm-evaluation-harness, where `overlap` is 1.

    Raises: InputError unless 1 <= overlap <= length.
    """
    if not 1 <= overlap <= length:
        raise InputError(f"overlap: needed 1 to {length}, the context of the model, got {overlap}")
    first, stop = 1, min(n, length + 1)
    while first < n:
        yield max(0, stop - length - 1), first, stop
        first, stop = stop, min(n, stop + length - overlap + 1)


@torch.no_grad()
def likelihoods(
    policy: Policy,
    rows: Sequence[tuple[Sequence[int], Sequence[bool]]],
    *,
    overlap: int = 1,
    microbatch_tokens: int = 16_384,
) -> list[tuple[float, int]]:
    """(nll in nats, tokens) of the counted tokens of each row: ids, and which of them are counted.

    The first token cannot be counted: it is BOS or the beginning of a prompt. A row longer than the context is read in
    `rolling_windows`; windows without a counted token are skipped.
    Raises: InputError if a first token is counted, or a log-prob is not finite.
    """
    if not all(len(ids) and not counted[0] for ids, counted in rows):
        raise InputError("likelihoods: needed a token before each text, such as BOS, got none")
    context = policy.transformer.config.max_position_embeddings
    windows = [
        (row, *window)
        for row, (ids, counted) in enumerate(rows)
        for window in rolling_windows(len(ids), context, overlap)
        if any(counted[window[1] : window[2]])
    ]
    nlls = [0.0] * len(rows)
    for group in microbatches([stop - start for _, start, _, stop in windows], microbatch_tokens):
        chosen = [windows[i] for i in group]
        ids = [rows[row][0][start:stop] for row, start, _, stop in chosen]
        batch = pad_sequences(ids, [[] for _ in ids], 0, policy.transformer.device)
        masks = [[False] * (first - start) + list(rows[row][1][first:stop]) for row, start, first, stop in chosen]
        width = batch.input_ids.shape[1]
        counted = torch.tensor([mask + [False] * (width - len(mask)) for mask in masks], device=batch.input_ids.device)
        sums = torch.where(counted, window_logps(policy, *batch[:2]), 0).double().sum(-1)
        if not bool(sums.isfinite().all()):
            raise InputError("likelihoods: log-probs are not finite; the weights are broken or the precision too low")
        for (row, *_), logp in zip(chosen, sums.tolist(), strict=True):
            nlls[row] -= logp
    return [(nll, sum(counted)) for nll, (_, counted) in zip(nlls, rows, strict=True)]


def window_logps(policy: Policy, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """`policy(input_ids, attention_mask).logps`, [B, T], where T may be one more than the context.

    The last token is predicted but not read.
    """
    transformer = policy.transformer
    hidden = transformer.model(input_ids[:, :-1], attention_mask[:, :-1])
    hidden = F.pad(hidden, (0, 0, 0, 1))  # a column that no log-prob reads
    cap = transformer.config.final_logit_softcapping
    return linear_token_logps(hidden, transformer.head_weight, input_ids, softcap=cap)
