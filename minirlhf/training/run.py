"""Run: an iterator over training batches that writes metrics and checkpoints. The training loop stays in your script.

run = Run(config, trainer, batches)
for batch in run:
    run.record(trainer.step(batch))
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from minirlhf.errors import InputError, check_range
from minirlhf.runtime.distributed import any_rank, barrier, gather, is_main, rank, shows
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.checkpoint import discard, is_complete
from minirlhf.training.settings import settings_to_toml

FINAL = "model"  # folder of the final weights and tokenizer, in the Hugging Face layout, with adapters merged
ADAPTER = "adapter"  # folder of the final adapter alone, in PEFT's layout; absent if no adapter was trained


@dataclass(frozen=True)
class RunSettings:
    """How often a run evaluates and saves. A job has the same settings for all its stages."""

    eval_every: int | None = None  # [steps] between evaluations; none: ten in a run; 0: only after the last step
    save_every: int | None = None  # [steps] between checkpoints; none: ten in a run; 0: only after the last step
    async_save: bool = False  # [-] write checkpoints in a thread: the training waits for the copy to host memory only
    export: bool = False  # [-] a checkpoint in slices also has the folder of each model, for --policy
    keep: int = 2  # [checkpoints] number of newest checkpoints to keep; the best is always kept
    best_metric: str | None = None  # [-] of evaluations, such as eval/loss; decides the best checkpoint; none: as the
    #                                 algorithm says
    best_mode: Literal["min", "max"] | None = None  # [-] of best_metric; none: min for losses, KL and errors, else max
    patience: int = 0  # [evaluations] end the run after so many in a row without a new best; 0: never
    final: Literal["last", "best"] = "last"  # [-] the checkpoint that becomes the finished model

    def __post_init__(self) -> None:
        check_range(self, "eval_every", "save_every", "patience", least=0)
        check_range(self, "keep", least=1)
        if self.best_mode and not self.best_metric:
            raise InputError(f"{type(self).__name__}: best_mode needs best_metric; set both, or leave it out")


@dataclass(frozen=True)
class RunConfig(RunSettings):
    """All settings of one run."""

    output: str = "runs/run"  # [folder] of all files of the run
    resume: bool | Literal["previous"] = False  # [-] continue the run in `output`; previous: also if its
    #                                            newest checkpoint is damaged
    overwrite: bool = False  # [-] delete the earlier run in `output`, and nothing else
    base: str | None = None  # [folder] of the model under the adapters; adapter files name it
    seed: int = 0  # [-] seed of dropout


class Trainer(Protocol):
    """The attributes and methods of an algorithm that Run uses."""

    models: dict[str, nn.Module]  # trained models by name; the first becomes the run's final model
    headline: tuple[str, ...]  # metrics shown beside the progress bar and in the table of evaluations
    best: tuple[str, str]  # (metric of an evaluation, "max" | "min"), to find the best checkpoint
    samples: list[dict[str, Any]]  # texts of the last step or evaluation, for samples.jsonl; `record` empties it

    def step(self, batch: list) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ModelFiles(Protocol):
    """Functions that save and load a trainer's models; minirlhf.pretrained.trained has them. All ranks save slices.

    `save_trained` writes checkpoints, and adapter/ at the end if there is an adapter. `save_final` writes model/.
    """

    def has_adapter(self, model: nn.Module) -> bool: ...
    def save_trained(self, model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None: ...
    def load_trained(self, model: nn.Module, folder: Path) -> None: ...
    def save_final(self, model: nn.Module, folder: Path, tokenizer: Any = None, base: str | None = None) -> None: ...


class Run:
    """Progress, metrics, samples, evaluation, checkpoints, resume and clean stop, in one folder.

    Args:
        config:     where the run is written, and how often it evaluates and saves.
        trainer:    the algorithm.
        batches:    batches[k] is the batch of step k, a pure function of k; its length is the number of steps.
        settings:   section -> dataclass, written to config.toml; a resumed run must have the same settings.
        tokenizer:  saved beside the weights.
        files:      functions that save and load models; None takes minirlhf.pretrained.trained.
        evaluate:   () -> metrics, called every `eval_every` steps; they are recorded as eval/NAME.
        until:      evaluation -> bool; True ends the run (early stopping).
        on_metrics: called with (step, metrics) on the main process; a tracker's log function fits here.
    Raises: InputError if the folder holds other files, a run without `resume`, or a run with other settings.
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
        self.saved = -1  # step of the last checkpoint; every process keeps it, so no process reads the folder for it
        self.writing: Any = None  # the thread that writes a checkpoint, and the memory that it writes from: see
        self.copies: Any = None  # `saving.py`
        self._signals: list[int] = []  # that asked the run to end
        from minirlhf.training.opening import open_run  # here, so that the core loads no leaf

        state, self._journal, self._table = open_run(self, settings_to_toml(settings or {"run": config}))
        self.step: int = state["step"]
        self._done: bool = state["done"]  # True once `until` returned True
        self._best: dict[str, Any] = state["best"]  # {"step", "value"} of the best evaluation, and the number "since"

    def __iter__(self) -> Iterator[Any]:
        """Yield this rank's rows of each remaining batch; at the end write a checkpoint and the final model."""
        from minirlhf.data.dealing import dealt  # here, so that the core loads no leaf
        from minirlhf.training.bar import progress
        from minirlhf.training.lock import unlocks
        from minirlhf.training.saving import where
        from minirlhf.training.signals import caught_signals

        if not self.step and (self.config.best_metric or self.config.patience or self.config.final == "best"):
            from minirlhf.training.best import check_metric

            check_metric(self)
        noise = keyed_uniforms(self.config.seed, "dropout", torch.arange(len(self.batches)), rank())  # of all steps
        seeds = (noise * 2**53).long().tolist()
        with caught_signals(where(self)) as self._signals, progress(self) as bar, unlocks(self.folder):
            while self.step < len(self.batches) and not self._done:
                expected = self.step + 1
                torch.manual_seed(seeds[self.step])
                yield dealt(self.batches[self.step], getattr(self.trainer, "config", None))
                if self.step != expected:
                    raise RuntimeError("Run: each step must end with run.record(trainer.step(batch))")
                bar.set_postfix(self._headline(), refresh=False)
                bar.update()
                self._stop_if_asked()
            self._finish()
            self._stop_if_asked()  # otherwise a job of several stages would begin the next stage

    def record(self, metrics: dict[str, float]) -> None:
        """Write the metrics of the current step; then evaluate and save if they are due.

        Raises: InputError if loss or gradient is not finite, with the step and the last good checkpoint.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                last = self.checkpoints()[-1:]
                raise InputError(
                    f"{self.folder}: step {self.step}: {name} is {metrics[name]}, needed a finite number; the "
                    f"weights did not change, and the last good checkpoint is {last[0] if last else 'none'}; "
                    "look at this step's batch, or start a new run from that checkpoint with a lower learning rate"
                )
        self.step += 1
        improved, evaluation, seconds = False, {}, None
        if self.evaluate and (self._due(self.config.eval_every) or self.step == len(self.batches)):
            started = time.perf_counter()
            # every process takes rank 0's numbers: if only some processes saved, the barrier in `save` would hang
            evaluation = {f"eval/{name}": value for name, value in gather(self.evaluate())[0].items()}
            metrics, seconds = {**metrics, **evaluation}, time.perf_counter() - started
            from minirlhf.training.best import new_best  # here, so that the core loads no leaf

            improved, self._best = new_best(self, evaluation, self._best)
            self._done = bool(self.until and self.until(evaluation))
            self.log(f"step {self.step}: {json.dumps(evaluation)}", show=False)
            if 0 < self.config.patience <= self._best.get("since", 0):
                self._done = True
                self.log(
                    f"{self.folder.name}: ends at step {self.step}, because step {self._best['step']} stays the best"
                )
        self.metrics = metrics
        if self._journal:
            from minirlhf.training.token_lists import take_samples  # here, so that the core loads no leaf

            self._journal.step(self.step - 1, metrics, take_samples(self), seconds)
            if shows("debug"):
                self.log(f"step {self.step}: {json.dumps(metrics)}")
            if evaluation and shows():
                self._journal.show(self._table.row(self.step, metrics))
            if self.on_metrics:
                self.on_metrics(self.step - 1, metrics)
        if improved or self._due(self.config.save_every):
            self.save()

    def log(self, text: str, show: bool = True) -> None:
        """Write a line to log.txt and, if `show`, to the terminal; only the main process does."""
        if self._journal:
            self._journal.log(text, show or shows("debug"))

    def save(self) -> None:
        """Write checkpoints/step-N, complete or not at all; then delete old checkpoints except the best.

        All processes call it. With `async_save` it returns while a thread writes, and the next call raises its error.
        Raises: InputError if a weight is not finite, before anything is written.
        """
        from minirlhf.training.saving import wait, write_checkpoint  # here: the core loads no leaf

        wait(self)
        self.saved, best = self.step, self._checkpoint(self._best.get("step") or -1)
        state = {"step": self.step, "done": self._done, "best": dict(self._best)}
        if is_main():
            state["records"] = self._journal.sync()
        state["trainer"] = self.trainer.state_dict()
        folder = self._checkpoint(self.step)

        def discard_old() -> None:
            for old in self.checkpoints()[: -self.config.keep]:
                if old != best:
                    discard(old)
            self.log(f"{folder.name.replace('-', ' ')}: checkpoint {folder}", show=False)

        write_checkpoint(self, folder, state, discard_old)

    def _due(self, every: int | None) -> bool:
        """True if this step is a multiple of `every` steps. None: ten times in a run; 0: never."""
        every = max(1, math.ceil(len(self.batches) / 10)) if every is None else every
        return every > 0 and self.step % every == 0

    def _finish(self) -> None:
        """Write the last checkpoint, then the folders of the final model."""
        from minirlhf.training import loading, saving  # here, so that the core loads no leaf

        if self.saved != self.step:
            self.save()
        saving.wait(self)
        if self.config.final == "best" and self._best:
            loading.load_models(self, self._checkpoint(self._best["step"]))
        if not is_complete(self.folder / FINAL):
            saving.save_final(self, self.folder / ADAPTER, self.folder / FINAL)
        barrier()

    def _checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step}"

    def checkpoints(self, whole: bool = True) -> list[Path]:
        """The folders of checkpoints, oldest first. whole: leave out a folder with a missing file."""
        found = [path for path in (self.folder / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
        return sorted((p for p in found if not whole or is_complete(p)), key=lambda path: int(path.name[5:]))

    def _headline(self) -> dict[str, str]:
        names = [name for name in self.trainer.headline if name in self.metrics and not name.startswith("eval/")]
        return {name: f"{self.metrics[name]:.3g}" for name in names}

    def _stop_if_asked(self) -> None:
        if any_rank(bool(self._signals)):
            if self.saved != self.step:
                self.save()
            from minirlhf.training.saving import wait  # here, so that the core loads no leaf

            wait(self)
            self.log(f"{self.folder.name}: stopped at step {self.step} with a checkpoint; continue with --resume")
            raise SystemExit(128 + (self._signals or [signal.SIGTERM])[0])


def finished_model(run: str | Path) -> Path | None:
    """The folder with the final weights of a run, or None if the run has not finished."""
    final = Path(run) / FINAL
    return final if is_complete(final) else None
