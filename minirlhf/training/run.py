"""Run: what every algorithm shares while it trains. An iterator, not a `fit`: the loop stays in your script.

run = Run(config, trainer, batches)
for batch in run:
    run.record(trainer.step(batch))
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from minirlhf.errors import InputError, check_range
from minirlhf.runtime.distributed import any_rank, barrier, gather, is_main, rank, restarted, share
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.checkpoint import (
    discard,
    holds_anything,
    is_complete,
    load_state,
    remove_leftovers,
    save_state,
    write_whole,
    written_whole,
)
from minirlhf.training.journal import Journal
from minirlhf.training.settings import settings_to_toml

FINAL = "model"  # the finished run's weights and tokenizer, in the Hugging Face layout; adapters are merged into them
ADAPTER = "adapter"  # beside it, if adapters were trained: they alone, in PEFT's layout


@dataclass(frozen=True)
class RunSettings:
    """How often: what a user sets, for all stages of a job."""

    eval_every: int | None = None  # [steps] between evaluations; 0 for the last one only, none for ten in a run
    save_every: int | None = None  # [steps] between checkpoints; 0 for the last one only, none for ten in a run
    keep: int = 2  # [checkpoints] kept beside the best one

    def __post_init__(self) -> None:
        check_range(self, "eval_every", "save_every", least=0)
        check_range(self, "keep", least=1)


@dataclass(frozen=True)
class RunConfig(RunSettings):
    """How often, and where: one run."""

    output: str = "runs/run"  # [folder] where everything is written
    resume: bool = False  # [-] continue the run that stands in `output`
    base: str | None = None  # [folder] of the model that adapters were put on, to be named in their files
    seed: int = 0  # [-] of dropout


class Trainer(Protocol):
    """What Run asks of an algorithm."""

    models: dict[str, nn.Module]  # what is trained, by name; the first is what a finished run hands on
    headline: tuple[str, ...]  # metrics that stand beside the progress bar
    best: tuple[str, str]  # (metric, "max" | "min"): which evaluation marks the best checkpoint
    samples: list[dict[str, Any]]  # what the last step or evaluation produced, to be looked at; taken by `record`

    def step(self, batch: list) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ModelFiles(Protocol):
    """Saves and loads a trainer's models. Default: the module minirlhf.pretrained.trained."""

    def has_adapter(self, model: nn.Module) -> bool: ...
    def save_trained(self, model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None: ...
    def load_trained(self, model: nn.Module, folder: Path) -> None: ...
    def save_final(self, model: nn.Module, folder: Path, tokenizer: Any = None) -> None: ...


class Run:
    """Progress, metrics, samples, evaluation, checkpoints, resume and clean stop, in one folder.

    Args:
        config:     where and how often.
        trainer:    the algorithm.
        batches:    batches[k] for step k, a pure function of k; its length is the number of steps.
        settings:   section -> dataclass, written to config.toml; a resumed run must have the same.
        tokenizer:  saved beside the weights.
        files:      how models are saved and loaded; None takes minirlhf.pretrained.trained.
        evaluate:   called every `eval_every` steps -> metrics, recorded as eval/NAME.
        until:      called with each evaluation; the run is finished once it says True (early stopping).
        on_metrics: called with (step, metrics) on the main process: the hook for any tracker.
    Raises: InputError if the folder holds another run, or one and `resume` was not asked for.
    """

    def __init__(
        self,
        config: RunConfig,
        trainer: Trainer,
        batches: Sequence,
        *,
        settings: dict[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        files: ModelFiles | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        until: Callable[[dict[str, float]], bool] | None = None,
        on_metrics: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        if files is None:
            from minirlhf.pretrained import trained as files  # here, so that the core loads no leaf
        self.config, self.trainer, self.batches, self.tokenizer = config, trainer, batches, tokenizer
        self.files = files
        self.evaluate, self.until, self.on_metrics = evaluate, until, on_metrics
        self.folder = Path(config.output)
        self.step = 0
        self._done = False  # `until` has said so
        self._best: dict[str, Any] = {}  # {"step", "value"} of the best evaluation so far
        self._saved = -1  # the step of the last checkpoint, which every process knows without looking
        self._signal = 0
        self._open(settings_to_toml(settings or {"run": config}))

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's share of each batch that is left; end with a checkpoint and the final model."""
        previous = self._catch_signals()
        name = self.folder.name
        bar = tqdm(
            total=len(self.batches),
            initial=self.step,
            desc=name,
            unit="step",
            disable=not is_main(),
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )
        try:
            while self.step < len(self.batches) and not self._done:
                expected = self.step + 1
                torch.manual_seed(hash((self.config.seed, self.step, rank())))  # a step's dropout, whenever it is taken
                yield share(self.batches[self.step])
                if self.step != expected:
                    raise RuntimeError("Run: each step must end with run.record(trainer.step(batch))")
                bar.set_postfix(self._headline(), refresh=False)
                bar.update()
                self._stop_if_asked()
            self._finish()
            self._stop_if_asked()  # a job of several stages must not go on to the next
        finally:
            bar.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def record(self, metrics: dict[str, float]) -> None:
        """Take in the metrics of the step just made: write them, evaluate and save when it is time.

        Raises: InputError if loss or gradient is not finite, naming the step and the last good checkpoint.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                last = self._checkpoints()[-1:]
                raise InputError(
                    f"{self.folder}: step {self.step}: {name} is {metrics[name]}, needed a finite number; the "
                    f"weights were left as they stood and the last good checkpoint is {last[0] if last else 'none'}; "
                    "look at this step's batch, or begin anew from there with a lower learning rate"
                )
        self.step += 1
        improved = False
        if self.evaluate and (self._due(self.config.eval_every) or self.step == len(self.batches)):
            # the main process's numbers count: were another's off by a bit, it might not come to save's barrier
            evaluation = {f"eval/{name}": value for name, value in gather(self.evaluate())[0].items()}
            metrics = {**metrics, **evaluation}
            improved = self._is_best(evaluation)
            self._done = bool(self.until and self.until(evaluation))
            self.log(f"step {self.step}: {json.dumps(evaluation)}", show=False)
        self.metrics = metrics
        if self._journal:
            self._journal.step(self.step - 1, metrics, self.trainer.samples)
            self.trainer.samples = []
            if self.on_metrics:
                self.on_metrics(self.step - 1, metrics)
        if improved or self._due(self.config.save_every):
            self.save()

    def log(self, text: str, show: bool = True) -> None:
        """A line in log.txt and, if `show`, for the user, from the main process."""
        if self._journal:
            self._journal.log(text, show)

    def save(self) -> None:
        """Write checkpoints/step-N, complete or not at all, then drop those that are neither recent nor the best."""
        self._saved = self.step
        if is_main():
            self._journal.sync()
            with written_whole(self._checkpoint(self.step)) as folder:
                for name, model in self.trainer.models.items():
                    self.files.save_trained(model, folder / name, self.tokenizer, self.config.base)
                state = {"step": self.step, "done": self._done, "best": self._best}
                state["trainer"] = self.trainer.state_dict()
                save_state(folder, state)
            best = self._best.get("step")
            for old in self._checkpoints()[: -self.config.keep]:
                if old != self._checkpoint(best or -1):
                    discard(old)
        self.log(f"step {self.step}: checkpoint {self._checkpoint(self.step)}", show=False)
        barrier()

    def _due(self, every: int | None) -> bool:
        """Is it time, after this step, for what happens every so many steps (None: ten times a run, 0: never)?"""
        every = max(1, math.ceil(len(self.batches) / 10)) if every is None else every
        return every > 0 and self.step % every == 0

    def _open(self, settings: str) -> None:
        """Begin a run in an empty folder, or find the place where the one that stands there stopped."""
        path = self.folder / "config.toml"
        if holds_anything(self.folder):
            if not path.exists():
                raise InputError(f"{self.folder}: holds files that are not a run's; choose another --output")
            if not (self.config.resume or restarted()):
                raise InputError(f"{self.folder}: holds a run already; give --resume or choose another --output")
            check_same_settings(path, settings)
            self._load()
        barrier()  # every rank has looked before the main one writes
        self._journal = None
        if is_main():
            for folder in (self.folder, self.folder / "checkpoints"):
                remove_leftovers(folder)
            if not path.exists():
                write_whole(path, settings)
            self._journal = Journal(self.folder, self.step)
            self.log(f"{'resumed' if self.step else 'started'} at step {self.step} of {len(self.batches)}", show=False)

    def _load(self) -> None:
        found = self._checkpoints()
        if not found:
            return
        state = load_state(found[-1])
        for name, model in self.trainer.models.items():
            self.files.load_trained(model, found[-1] / name)
        self.step, self._done, self._best = state["step"], state["done"], state["best"]
        self._saved = self.step
        self.trainer.load_state_dict(state["trainer"])

    def _finish(self) -> None:
        if self._saved != self.step:
            self.save()
        if is_main() and not is_complete(self.folder / FINAL):
            model = next(iter(self.trainer.models.values()))
            if self.files.has_adapter(model):
                with written_whole(self.folder / ADAPTER) as folder:
                    self.files.save_trained(model, folder, self.tokenizer, self.config.base)
            with written_whole(self.folder / FINAL) as folder:
                self.files.save_final(model, folder, self.tokenizer)
        barrier()

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step}"

    def _checkpoints(self) -> list[Path]:
        """All complete checkpoints, oldest first. What a crash left half-written has another name or lacks a file."""
        found = [path for path in (self.folder / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
        return sorted(filter(is_complete, found), key=lambda path: int(path.name[5:]))

    def _is_best(self, evaluation: dict[str, float]) -> bool:
        name, direction = self.trainer.best
        value = evaluation.get(name)
        if value is None:
            return False
        sign = 1 if direction == "max" else -1
        if self._best and sign * value <= sign * self._best["value"]:
            return False
        self._best = {"step": self.step, "value": value}
        return True

    def _headline(self) -> dict[str, str]:
        shown = {name: self.metrics[name] for name in self.trainer.headline if name in self.metrics}
        return {name: f"{value:.3g}" for name, value in shown.items()}

    def _catch_signals(self) -> dict[int, Any]:
        """From here on the first SIGINT or SIGTERM ends the run after its step; a second SIGINT ends it at once."""

        first = math.inf

        def note(number: int, frame: Any) -> None:
            nonlocal first
            first = min(first, time.monotonic())
            if time.monotonic() - first > 2:  # under torchrun one Ctrl-C arrives twice, moments apart
                raise KeyboardInterrupt
            self._signal = number

        try:
            return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: the program's own handlers stay
            return {}

    def _stop_if_asked(self) -> None:
        if any_rank(bool(self._signal)):
            if self._saved != self.step:
                self.save()
            self.log(f"{self.folder.name}: stopped at step {self.step} with a checkpoint; continue with --resume")
            raise SystemExit(128 + (self._signal or signal.SIGTERM))


def finished_model(run: str | Path) -> Path | None:
    """The folder with the final weights of a finished run, or None if it has not finished."""
    final = Path(run) / FINAL
    return final if is_complete(final) else None


def check_same_settings(path: Path, settings: str) -> None:
    """Raise InputError, showing the first difference, if a run is resumed with other settings than it began with."""
    ignored = ("resume", "output", "stop_after", "device", "threads")
    texts = path.read_text(), settings
    old, new = ([x for x in text.splitlines() if x.split(" = ")[0] not in ignored] for text in texts)
    if old != new:
        different = next((pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]), (old[-1], new[-1]))
        raise InputError(
            f"{path.parent}: holds another run: it began with {different[0]!r}, now asked for is {different[1]!r}; "
            "resume with its own settings or choose another --output"
        )
