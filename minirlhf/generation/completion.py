"""How completions are sampled, and a completion."""

from __future__ import annotations

from dataclasses import dataclass

from minirlhf.errors import InputError


@dataclass(frozen=True)
class SamplingConfig:
    max_tokens: int = 64  # [tokens] longest completion, its EOS included; the end of the context may come before
    temperature: float = 1.0  # [-] divides the logits; 0 takes the likeliest token
    top_k: int = 0  # [tokens] sample among the k likeliest tokens; 0: among all
    top_p: float = 1.0  # [probability] sample among the likeliest tokens of this mass; 1: among all
    stop_ids: tuple[int, ...] = ()  # [ids] each of these tokens ends a completion and belongs to it (EOS)
    stop_strings: tuple[str, ...] = ()  # [text] a completion ends with the token that completes any of these texts
    batch_size: int = 256  # [rows] completions in progress at a time
    microbatch_tokens: int = 16_384  # [tokens] one forward over prompts or finished rows, padding included

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.batch_size < 1:
            raise InputError(
                f"SamplingConfig: max_tokens and batch_size must be at least 1, got {self.max_tokens} and "
                f"{self.batch_size}"
            )
        if (
            not (self.temperature == 0 or 1e-3 <= self.temperature < float("inf"))
            or self.top_k < 0
            or not 0 < self.top_p <= 1
        ):
            raise InputError(
                "SamplingConfig: needed temperature 0 or from 0.001 up, top_k >= 0 and 0 < top_p <= 1, got "
                f"{self.temperature}, {self.top_k} and {self.top_p}"
            )
        if "" in self.stop_strings:
            raise InputError("SamplingConfig: a stop string must not be empty: it would end every completion at once")


@dataclass(frozen=True)
class Completion:
    ids: list[int]  # the tokens sampled, the stop token included
    logps: list[float]  # nats, under the distribution that the token was drawn from
    finish: str  # "stop" (a stop token or string) or "length"
    mass_kept: float = 1.0  # mean probability mass that top-k and top-p left
    chosen: list[bool] | None = None  # for each token, whether the policy chose it; None: all of them
