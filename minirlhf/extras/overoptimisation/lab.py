"""The folder of the lab: a file of results for each cell and seed, so that the same command goes on.

FOLDER/results/CELL-seed-S.json  the curve of a cell, with the settings that it depends on
FOLDER/seed-S/                   the SFT policy of a seed, a run folder
FOLDER/table.md, figure.svg      written from all results
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from minirlhf.algorithms import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from minirlhf.errors import InputError, check_range
from minirlhf.extras.overoptimisation.cells import CROSS, MIDDLE, Cell
from minirlhf.extras.overoptimisation.start import Start
from minirlhf.jobs.folder import check_can_be_made
from minirlhf.model import ModelConfig
from minirlhf.training.checkpoint import holds_anything, write_whole
from minirlhf.training.defaults import with_defaults
from minirlhf.training.fields import as_text
from minirlhf.training.settings import parse_settings

RESULTS = "results"


@dataclass(frozen=True)
class LabConfig:
    output: str = "runs/overoptimisation"  # [folder] results, one file each, the table and the figure
    quick: bool = False  # [-] the middle of the cross alone, with one seed; the whole lab goes on from its results
    seeds: int = 5  # [runs] of each cell
    best_of: int = 1024  # [completions] of a prompt, at most
    best_of_prompts: int = 32  # [prompts] held out
    evaluated: int = 512  # [prompts] held out, in each evaluation of PPO and DPO

    def __post_init__(self) -> None:
        check_range(self, "seeds", least=1)
        check_range(self, "best_of", "evaluated", least=2)
        check_range(self, "best_of_prompts", least=1, most=self.evaluated)  # the first of the evaluated prompts


SETTINGS = {
    "job": LabConfig,
    "model": ModelConfig,
    "sft": SFTConfig,
    "reward_model": with_defaults(RewardConfig, steps=400, max_epochs=16.0, batch_size=32, lr=4e-3, weight_decay=0.0),
    "dpo": with_defaults(DPOConfig, epochs=8.0, batch_size=32, lr=1e-3),
    "ppo": with_defaults(
        PPOConfig, steps=60, batch_size=128, minibatch_size=64, epochs=2, lr=1e-3, missing_eos_penalty=0.0
    ),
}
# Settings that the lab does not read, with the reason. Their defaults alone are accepted.
UNREAD = {
    ("ppo", "kl_coef"): "the axis kl_coef in cells.py sets it",
    ("ppo", "separate_value_model"): "PPO has a value head here",
    ("dpo", "precompute_ref_logps"): "a run of DPO is too short for it",
}
# Method -> (plain settings, sections) that its results depend on, beside those that all results depend on.
READS = {
    "best_of_n": (("best_of", "best_of_prompts"), ("reward_model",)),
    "ppo": ((), ("reward_model", "ppo")),
    "dpo": ((), ("dpo",)),
}


@dataclass
class Lab:
    settings: dict[str, Any]  # section -> dataclass
    _start: Start | None = field(default=None, repr=False)  # of the last seed

    @classmethod
    def open(cls, *, help: str, argv: list[str] | None = None) -> Lab:
        """Read the flags and make the folder.

        Raises: InputError for bad settings, and for a folder that holds other files than those of a lab.
        """
        lab = cls(settings := parse_settings(SETTINGS, argv, description=help))
        for (section, name), reason in UNREAD.items():
            if (value := getattr(settings[section], name)) != (default := getattr(SETTINGS[section](), name)):
                flag = f"--{section}.{name}"
                raise InputError(f"{flag}: needed {as_text(default)}, got {as_text(value)}: {reason}; leave it out")
        check_can_be_made(lab.folder)
        if holds_anything(lab.folder) and not (lab.folder / RESULTS).is_dir():
            raise InputError(
                f"{lab.folder}: needed a new folder or a folder of the lab, got other files; choose another"
            )
        (lab.folder / RESULTS).mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)  # faster than two for models of this size
        return lab

    @property
    def folder(self) -> Path:
        return Path(self.settings["job"].output)

    def todo(self) -> list[tuple[int, Cell]]:
        """The cells without a result, seed by seed."""
        job = self.settings["job"]
        cells, seeds = (MIDDLE, 1) if job.quick else (CROSS, job.seeds)
        return [(seed, cell) for seed in range(seeds) for cell in cells if self.result(seed, cell) is None]

    def start(self, seed: int) -> Start:
        """The policy and the rows of a seed. Only the last seed stays in memory."""
        if self._start is None or self._start.seed != seed:
            self._start = Start.of(self.folder / f"seed-{seed}", self.settings, seed)
        return self._start

    def keep(self, seed: int, cell: Cell, measured: dict[str, Any]) -> None:
        text = json.dumps({"settings": self._settings_of(cell), **measured}, indent=1)
        write_whole(self._path(seed, cell), text + "\n")

    def result(self, seed: int, cell: Cell) -> dict[str, Any] | None:
        """{points, accuracy} of a cell; None if it is missing or was measured with other settings.

        Raises: InputError for a damaged file.
        """
        if not (path := self._path(seed, cell)).exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if found["settings"] == self._settings_of(cell) and found["points"] else None
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise InputError(f"{path}: needed a result of the lab, got: {error}; delete it to measure again") from None

    def results(self, cell: Cell) -> list[dict[str, Any]]:
        """The results of all seeds that are there."""
        return list(self._known(cell))

    def _known(self, cell: Cell) -> Iterator[dict[str, Any]]:
        for seed in range(self.settings["job"].seeds):
            if found := self.result(seed, cell):
                yield found

    def _path(self, seed: int, cell: Cell) -> Path:
        return self.folder / RESULTS / f"{cell.name}-seed-{seed}.json"

    def _settings_of(self, cell: Cell) -> dict[str, Any]:
        """The settings that a result depends on, as JSON gives them back. All methods sample as [ppo] says."""
        job, (plain, sections) = self.settings["job"], READS[cell.method]
        read = {name: asdict(self.settings[name]) for name in ("model", "sft", *sections)}
        for section, name in UNREAD:  # another default of a setting that is not read changes no result
            read.get(section, {}).pop(name, None)
        read["sampling"] = asdict(self.settings["ppo"].sampling(eos_ids=()))
        read["job"] = {name: getattr(job, name) for name in ("evaluated", *plain)}
        return json.loads(json.dumps({"cell": asdict(cell), **read}))
