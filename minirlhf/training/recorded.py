"""Rollouts in files. A `Recorder` writes each rollout of a trainer, a `Replay` reads them again instead of sampling.

A trainer calls its `sampler` as it calls `collect`. With a `Replay` the same trainer makes, bit for bit, the same
updates: each tensor has its exact dtype, and no model and no reward function is called.

    FOLDER/step-3/rollout.0-of-1/rollout.safetensors   the tensors of a `Rollout`, of process 0 of 1
    FOLDER/step-3/rollout.0-of-1/rollout.json          its texts, and the models and settings that it comes from
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlhf.errors import InputError, shown
from minirlhf.losses import weighted_scores
from minirlhf.manifest import check_files
from minirlhf.rewards.scoring import score_completions
from minirlhf.rollout.collect import collect
from minirlhf.rollout.rollout import Rollout
from minirlhf.runtime.distributed import rank, world_size
from minirlhf.runtime.randomness import splitmix64
from minirlhf.training.checkpoint import written_whole

TENSORS, TEXTS = "rollout.safetensors", "rollout.json"
OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number -> its bits
# The hashes of so many numbers are in memory at a time. 2^16 hashes fit into a CPU's caches: ten times as fast.
AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 24}
PLAYED = "an environment gives its rewards while it is played"  # so nothing can compute them from the texts
CHOSEN = "dynamic sampling has chosen prompts by the recorded scores"  # so new scores would choose others
SPEED = ("batch_size", "microbatch_tokens")  # settings of sampling that change no completion


class Recorder:
    """The `sampler` of a trainer that also writes each rollout below `folder`. A repeated step is written again."""

    def __init__(self, folder: Path, trainer: Any) -> None:
        self.folder, self.trainer = Path(folder), trainer

    def __call__(self, *parts: Any, stream: str = "rollout", **options: Any) -> Rollout:
        origin = origin_of(self.trainer, *parts, stream=stream, **options)
        rollout = collect(*parts, stream=stream, **options)
        fields = {name: value for name, value in vars(rollout).items() if value is not None}
        tensors = {name: x.cpu().contiguous() for name, x in fields.items() if isinstance(x, Tensor)}
        texts = {name: value for name, value in fields.items() if name not in tensors}
        with written_whole(place(self.folder, self.trainer.steps_done + 1, stream)) as path:
            save_file(tensors, path / TENSORS)
            content = json.dumps({"origin": origin, **texts}, ensure_ascii=False, indent=1)
            (path / TEXTS).write_text(f"{content}\n", encoding="utf-8")
        return rollout


class Replay:
    """The `sampler` of a trainer that reads the rollouts which a `Recorder` wrote.

    rescore: call the reward functions on the recorded texts. Texts, log-probs and values stay as recorded, so from the
        second step on the policy is not the policy that wrote the texts; the ratios of the loss account for it.
    Raises: InputError for a rollout that is missing or damaged, or that another model, vocabulary or setting made.
    """

    def __init__(self, folder: Path, trainer: Any, rescore: bool = False) -> None:
        self.folder, self.trainer, self.rescore = Path(folder), trainer, rescore

    def __call__(self, policy: Any, ref_policy: Any, value_model: Any, rewards: Any, *parts: Any, **options: Any):
        stream, step = options.setdefault("stream", "rollout"), self.trainer.steps_done + 1
        if self.rescore and stream.startswith("spare"):
            raise InputError(f"replay: {CHOSEN}; set resample to 0")
        path = place(self.folder, step, stream)
        if not path.is_dir():
            raise InputError(f"{path}: needed the rollout of step {step}, found none; {self._known(step)}")
        rollout, origin = read_rollout(path)
        origin_now = origin_of(self.trainer, policy, ref_policy, value_model, rewards, *parts, **options)
        self._check(path, origin, origin_now)
        device = policy.transformer.device
        fields = {name: x.to(device) for name, x in vars(rollout).items() if isinstance(x, Tensor)}
        rollout = replace(rollout, **fields)
        return self._scored_again(rollout, rewards, parts[1], options) if self.rescore else rollout

    def _check(self, path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
        """Raise InputError that names the first difference between the recorded and the replayed run."""
        before, after = dict(flat(then)), dict(flat(json.loads(json.dumps(now))))
        for name in dict.fromkeys([*before, *after]):
            if before.get(name) == after.get(name) or (self.rescore and name.startswith("settings.")):
                continue
            if name == "weights" and self.rescore and self.trainer.steps_done:
                continue
            if name in REASONS:
                raise InputError(f"{path}: {REASONS[name]}")
            raise InputError(
                f"{path}: recorded with {name} {shown(before.get(name))}, replayed with {shown(after.get(name))}; use "
                "the settings of the recorded run"
            )

    def _scored_again(self, rollout: Rollout, rewards: Any, batch: Sequence[Any], options: dict[str, Any]) -> Rollout:
        if options.get("environment"):
            raise InputError(f"replay: {PLAYED}; replay with recorded scores")
        functions, weights = [rewards] if callable(rewards) else list(rewards), options.get("weights")
        rows = [draw.row.source for draw in batch for _ in range(options.get("group_size", 1))]
        asked = [row["prompt"] for row in rows], rollout.completions, rows
        columns = [score_completions(f, *asked, optional=weights is not None) for f in functions]
        by_function = torch.tensor(columns).T.to(rollout.scores.device, rollout.logps.dtype)
        scores = weighted_scores(by_function, by_function.new_tensor(weights or [1.0] * len(functions)))
        return replace(rollout, scores=scores, scores_by_function=by_function)

    def _known(self, step: int) -> str:
        names = [path.name for path in self.folder.glob(f"step-{step}/*.*-of-*")]
        counts = {int(name.rpartition("-")[2]) for name in names}
        if counts and counts != {world_size()}:
            return f"it was recorded by {max(counts)} processes and is replayed by {world_size()}"
        known = recorded_steps(self.folder)
        return f"recorded are the steps {known[0]} to {known[-1]}" if known else f"{self.folder} holds no rollouts"


# difference -> the reason that the rollout cannot be used
REASONS = {
    "tokenizer": "recorded with another tokenizer, so its ids are other texts; use the tokenizer of the recorded run",
    "weights": "the policy's weights are not those that wrote this rollout; begin with the same model and settings, or "
    "give --replay_scores new for a run that need not repeat the recorded run",
    "reference": "the reference's weights are not those of the recorded run; begin with the same model",
    "prompts": "recorded for other prompts; use the rows, the seed and the batch_size of the recorded run",
}


def origin_of(
    trainer: Any,
    policy: Any,
    ref_policy: Any,
    value_model: Any,
    rewards: Any,
    tokenizer: Any,
    batch: Sequence[Any],
    sampling: Any,
    *,
    seed: int,
    stream: str,
    group_size: int = 1,
    weights: Any = None,
    environment: Any = None,
) -> dict[str, Any]:
    """The models and settings behind a rollout, as JSON values. All arguments but the first are those of `collect`."""
    device = policy.transformer.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return {
        "tokenizer": _digest(tokenizer.backend.to_str().encode()),
        "model": asdict(policy.transformer.config),
        "sampling": {name: value for name, value in asdict(sampling).items() if name not in SPEED},
        "precision": str(autocast or policy.transformer.dtype),
        "seed": seed,
        "group_size": group_size,
        "environment": environment is not None,
        "prompts": _digest(json.dumps([[draw.epoch, draw.index, draw.row.prompt] for draw in batch]).encode()),
        "settings": asdict(trainer.config),
        "reference": ref_policy and fingerprint(ref_policy),
        "weights": fingerprint(policy) + (fingerprint(value_model) if value_model else ""),
    }


def fingerprint(model: nn.Module) -> str:
    """A checksum of every number of a model, or of this process's slices of it."""
    slices = [p.detach().to_local() if hasattr(p, "to_local") else p.detach() for p in model.parameters()]
    return _digest(torch.stack([checksum(x).cpu() for x in slices]).numpy().tobytes())


def checksum(x: Tensor) -> Tensor:
    """An int64: the sum of a hash of each number's bits and place, modulo 2^64.

    A sum of integers is exact in any order, so it is taken on the device where the tensor lies: to copy a large model
    takes longer than to read it. splitmix64 is one to one, so a single number that differs always changes the sum.
    """
    bits = x.contiguous().view(OF_SIZE[x.element_size()]).flatten()
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for start in range(0, len(bits), at_once := AT_ONCE.get(x.device.type, 1 << 20)):
        words = bits[start : start + at_once].to(torch.int64)
        total += splitmix64(words ^ splitmix64(torch.arange(start, start + len(words), device=x.device))).sum()
    return total


def place(folder: Path, step: int, stream: str) -> Path:
    """The folder of this process's rollout. Dynamic sampling has further streams in a step: spare-0, ..."""
    return folder / f"step-{step}" / f"{stream.replace(' ', '-')}.{rank()}-of-{world_size()}"


def recorded_steps(folder: Path) -> list[int]:
    names = (path.name[5:] for path in folder.glob("step-*") if any(path.glob("*.*-of-*")))
    return sorted(int(name) for name in names if name.isdecimal())


def read_rollout(path: Path) -> tuple[Rollout, dict[str, Any]]:
    """-> (the rollout of a folder, its origin).   Raises: InputError if a file is missing or damaged."""
    advice = "record the rollouts again"
    check_files(path, advice)
    try:
        texts = json.loads((path / TEXTS).read_text(encoding="utf-8"))
        origin = texts.pop("origin")
        return Rollout(**load_file(path / TENSORS), **texts), origin
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path}: needed a recorded rollout, got {shown(str(error))}; {advice}") from None


def flat(origin: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """{"sampling": {"top_k": 0}} -> ("sampling.top_k", 0)"""
    for name, value in origin.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
