"""An ensemble of reward models: a text that exploits the errors of a single model rarely exploits those of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minirlhf.errors import InputError, shown
from minirlhf.rewards.scoring import Reward, score_completions

# Name -> scores of the members [M, B] -> score of the ensemble [B].  Coste et al. 2023, arXiv:2310.02743: mean, worst
# case and, with a variance instead of the standard deviation, uncertainty-weighted. A standard deviation has the unit
# of the scores, so a reward model with doubled scores gives an ensemble with doubled scores.
COMBINATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda scores: scores.mean(0),
    "min": lambda scores: scores.amin(0),
    "mean_minus_std": lambda scores: scores.mean(0) - scores.std(0, correction=0),
}


class Ensemble:
    """Several rewards as one, by a name of COMBINATIONS.

    Raises: InputError for fewer than two members, an unknown name, or reward models with different tokenizers: they
        were trained apart, so their scores have no common scale.
    """

    label = "ensemble's score"
    collective = True  # each member decides for itself; see `RewardModelScorer`

    def __init__(self, members: Sequence[Reward], combination: str = "min") -> None:
        names = [getattr(member, "__name__", type(member).__name__) for member in members]
        if len(members) < 2:
            raise InputError(f"reward ensemble: needed at least two rewards, got {', '.join(names) or 'none'}")
        if combination not in COMBINATIONS:
            known = ", ".join(COMBINATIONS)
            raise InputError(f"reward ensemble: needed one of {known}, got {shown(combination)}")
        tokenizers = [member.tokenizer.backend.to_str() for member in members if hasattr(member, "tokenizer")]
        if len(set(tokenizers)) > 1:
            raise InputError(
                f"reward ensemble: needed reward models of one tokenizer, got several in {', '.join(names)}: their "
                "scores have no common scale; train the members from one policy, or add rewards with --reward_weights"
            )
        self.members, self.combine = list(members), COMBINATIONS[combination]
        self.__name__ = f"{combination} of {', '.join(names)}"

    def __call__(self, prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        scores = [score_completions(member, prompts, completions, rows) for member in self.members]
        return self.combine(torch.tensor(scores, dtype=torch.float64)).tolist()
