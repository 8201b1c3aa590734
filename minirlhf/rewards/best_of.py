"""Best of n: sample n completions of a prompt and keep the completion with the highest score.

N prompts, n completions of each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, shown
from minirlhf.generation.engine import SamplingConfig, generate
from minirlhf.model.policy import Policy
from minirlhf.rewards.scoring import Reward, score_completions
from minirlhf.text.tokenizer import Tokenizer

REASON = (
    "log n - (n-1)/n bounds the KL of the best of n: the best of n is at most n times as likely as a single sample, "
    "and its rank among n is distributed as the largest of n uniform numbers. The bound is exact if no two samples of "
    "a prompt have equal scores (Beirami et al. 2024); duplicates and ties make the KL smaller."
)


def kl_bound(n: int) -> float:
    """An upper bound on KL(best of n || policy) of each prompt, nats: log n - (n - 1) / n.

    Without ties, the best of n has the density n F(s)^(n-1) relative to a single sample, F(s) the share of samples with
    a lower score. Its KL is E[log n + (n-1) log F] = log n - (n-1)/n, because F(s) of the best is distributed as the
    largest of n uniform numbers. Stiennon et al. 2020 use the value; Beirami et al. 2024, arXiv:2401.01879, Theorem 1,
    prove that it is an upper bound where scores can tie or completions can repeat.
    """
    if n < 1:
        raise InputError(f"best of n: n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_each(scores: Tensor, measure: Tensor | None = None) -> Tensor:
    """The expected measure of the best of k samples, for each k from 1 to n, from n samples of each prompt.

    Sorted by score, the sample of rank i (1 is the lowest) is the best of C(i-1, k-1) of the C(n, k) subsets of size k.
    So sum over i of C(i-1, k-1) / C(n, k) m_i is the mean over all subsets: unbiased for every k <= n, and no sample is
    wasted. Nakano et al. 2021, arXiv:2112.09332, Appendix I.

    Args:
        scores:  [N, n], which decide the best sample; of equal scores the first sample is the best.
        measure: [N, n], what is measured on the best sample, such as a gold reward; None: the score itself.
    A score may be nan: a sample without a score is the best of no subset with a scored sample.
    Returns: [n], float64; entry k - 1 is the mean over the N prompts of the best of k.
    Raises: InputError if a measure is nan.
    """
    n, measure = scores.shape[1], scores if measure is None else measure
    if missing := int(measure.isnan().sum()):
        needed = f"needed a score for each completion, got none for {missing} of {measure.numel()}"
        raise InputError(f"best of n: {needed}; give every completion a number")
    order = _ranked(scores).flip(1).argsort(dim=1, stable=True)  # flipped: of equal scores the first sample comes last
    sorted_measure = measure.flip(1).gather(1, order).double()
    below = torch.arange(n, dtype=torch.float64)  # i - 1: the number of samples with a lower score
    log_shares = _log_comb(below, below[:, None]) - _log_comb(torch.full_like(below, n), below + 1)[:, None]
    return log_shares.exp() @ sorted_measure.mean(0)


def _ranked(scores: Tensor) -> Tensor:
    """The scores with -inf for nan: torch takes nan for the largest number."""
    return scores.nan_to_num(nan=-math.inf)


def _log_comb(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k); -inf for k > n."""
    found = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)
    return found.masked_fill(k > n, -math.inf)


@dataclass(frozen=True)
class Samples:
    """n completions of each prompt, with their scores."""

    rows: list[EncodedRow]  # N prompts
    texts: list[list[str]]  # [N][n]
    scores: Tensor  # [N, n], float64; nan for a completion that the reward does not apply to

    @property
    def best(self) -> list[str]:
        """The text with the highest score of each prompt; of equal scores the first.

        Raises: InputError if no completion of a prompt has a score.
        """
        for row, scores in zip(self.rows, self.scores, strict=True):
            if scores.isnan().all():
                needed = f"needed a score for a completion of {shown(row.source['prompt'], 40)}"
                raise InputError(f"best of n: {needed}, got none of {len(scores)}; give every prompt a score")
        return [own[i] for own, i in zip(self.texts, _ranked(self.scores).argmax(1).tolist(), strict=True)]

    def rows_for_sft(self) -> list[dict]:
        """Rows {prompt, response, ...} of the best texts: SFT on them is RAFT (Dong et al. 2023, arXiv:2304.06767)."""
        return [{**row.source, "response": text} for row, text in zip(self.rows, self.best, strict=True)]

    def measured(self, measure: Sequence[float]) -> Tensor:
        """[N, n]: one number for each text, in the order of `flat`."""
        return torch.tensor(measure, dtype=torch.float64).view_as(self.scores)

    @property
    def flat(self) -> tuple[list[str], list[str], list[dict]]:
        """The arguments of a reward function: (prompts, completions, rows), n times N each."""
        sources = [row.source for row in self.rows for _ in range(self.scores.shape[1])]
        return [source["prompt"] for source in sources], [text for own in self.texts for text in own], sources


@dataclass(frozen=True)
class BestOfN:
    """Policy, reward function, n -> a sampler: `BestOfN(policy, reward, 16, tokenizer, sampling)(rows)`.

    A completion depends on the seed, the row's index and its own number, so the first n of 2 n samples are the n.
    Raises: InputError if n < 1, or if the temperature is 0: n equal completions have no best.
    """

    policy: Policy
    reward: Reward
    n: int
    tokenizer: Tokenizer
    sampling: SamplingConfig
    seed: int = 0

    def __post_init__(self) -> None:
        kl_bound(self.n)
        if self.n > 1 and not self.sampling.temperature:
            raise InputError(f"BestOfN: needed a temperature above 0, got 0: all {self.n} completions would be equal")

    @torch.no_grad()
    def __call__(self, rows: Sequence[EncodedRow]) -> Samples:
        rows = list(rows)
        completions = generate(
            self.policy.transformer,
            [row.prompt for row in rows for _ in range(self.n)],
            self.sampling,
            seed=self.seed,
            stream="best of n",
            keys=[(0, index, sample) for index in range(len(rows)) for sample in range(self.n)],
            tokenizer=self.tokenizer,
        )
        texts = self.tokenizer.decode_completions([completion.ids for completion in completions])
        sources = [row.source for row in rows for _ in range(self.n)]
        asked = [source["prompt"] for source in sources], texts, sources
        scores = score_completions(self.reward, *asked, optional=True)
        groups = [texts[i : i + self.n] for i in range(0, len(texts), self.n)]
        return Samples(rows, groups, torch.tensor(scores, dtype=torch.float64).view(-1, self.n))
