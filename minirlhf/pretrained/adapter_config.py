"""adapter_config.json of PEFT: each key is read, has no effect on the adapter's function, or is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minirlhf.adapters.lora import LoRAConfig
from minirlhf.adapters.select import ALL
from minirlhf.errors import InputError, shown
from minirlhf.pretrained.checked import check_model_folder
from minirlhf.pretrained.model_classes import IS_VALUE_MODEL
from minirlhf.pretrained.safe import check_type, not_as_needed, read_json

CONFIG = "adapter_config.json"
CONTENT = "JSON with peft_type, r and lora_alpha"
READ = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
}
READ |= {"rank_pattern", "alpha_pattern", "modules_to_save", IS_VALUE_MODEL}
# The weights' names in the file tell which modules are adapted, so the keys that chose them say nothing more. The file
# holds the matrices after training, so settings of their start say nothing either.
NO_EFFECT = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
NO_EFFECT |= {"ensure_weight_tying", "fan_in_fan_out", "inference_mode", "auto_mapping", "peft_version", "revision"}
NO_EFFECT |= {"megatron_config", "megatron_core", "runtime_config", "qalora_group_size"}
NO_EFFECT |= {"loftq_config", "eva_config", "corda_config", "lora_ga_config"}
# Keys with values that change nothing. pissa, olora, corda, loftq and lora_ga change the base's weights at the start.
NEUTRAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica")}
# Keys that change the function when they are set, as every key that is not known
REFUSED = {"trainable_token_indices", "target_parameters", "layer_replication", "lora_bias", "use_qalora", "use_bdlora"}
REFUSED |= {"alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config"}
TYPES = {"use_rslora": bool, "use_dora": bool, "rank_pattern": dict, "alpha_pattern": dict}
TYPES |= {"base_model_name_or_path": str, "task_type": str, IS_VALUE_MODEL: bool}
LARGEST = 10**9  # of ranks and alphas
LONGEST = 1000  # letters of a pattern
MATCHES = 10_000_000  # steps to match patterns with names, at most: a stranger's pattern must not run for hours


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of an adapter in a file. A module may have a rank and an alpha of its own."""

    lora: LoRAConfig
    ranks: Mapping[str, int] = field(default_factory=dict)  # pattern -> rank
    alphas: Mapping[str, float] = field(default_factory=dict)  # pattern -> alpha
    saved: tuple[str, ...] = ()  # modules_to_save

    @property
    def patterns(self) -> str:
        """Ranks and alphas of single modules, in words."""
        values = [("r", self.ranks), ("alpha", self.alphas)]
        return ", ".join(f"{name} {value:g} for {pattern}" for name, of in values for pattern, value in of.items())

    def of_modules(self, names: Iterable[str]) -> dict[str, LoRAConfig]:
        """The settings of each module, by its name in the file. As in PEFT the first pattern that fits decides.

        Raises: InputError if the patterns are no expressions, or cost too much.
        """
        names = list(names)
        ranks, alphas = _first_fits(self.ranks, names), _first_fits(self.alphas, names)
        own = {name: {"r": ranks[name]} if name in ranks else {} for name in names}
        own = {name: own[name] | ({"alpha": float(alphas[name])} if name in alphas else {}) for name in names}
        return {name: replace(self.lora, **changes) if changes else self.lora for name, changes in own.items()}


def read_config(folder: str | Path) -> dict[str, Any]:
    """The JSON object of an adapter's folder. Raises: InputError."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise InputError(f"{folder}: needed an adapter folder with {CONFIG}, found none; check the path")
    return read_json(path, CONTENT, peft_type=str, r=int)


def read_settings(folder: str | Path) -> AdapterSettings:
    """adapter_config.json -> AdapterSettings. All files of the adapter are checked against a manifest, if it has one.

    Raises: InputError if a file is damaged, or a setting is missing, broken or not supported.
    """
    check_model_folder(folder)
    path, raw = Path(folder) / CONFIG, read_config(folder)
    try:
        _check_types(raw)
    except InputError as error:
        raise not_as_needed(path, CONTENT, error) from None
    if raw["peft_type"] != "LORA":
        raise InputError(f"{path}: peft_type must be LORA, no other type is supported; got {shown(raw['peft_type'])}")
    for key, value in raw.items():
        if value and key not in READ | NO_EFFECT and value not in NEUTRAL.get(key, ()):
            raise InputError(
                f"{path}: {shown(key)[1:-1]} is not supported and must be unset, got {shown(value)}; use PEFT to merge"
            )
    targets = raw.get("target_modules") or ALL
    try:
        lora = LoRAConfig(
            r=raw["r"],
            alpha=float(raw["lora_alpha"]),
            dropout=float(raw.get("lora_dropout") or 0),
            target_modules=(targets,) if isinstance(targets, str) else tuple(targets),
            use_rslora=bool(raw.get("use_rslora")),
            use_dora=bool(raw.get("use_dora")),
        )
        patterns = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
        settings = AdapterSettings(lora, *patterns, saved=tuple(raw.get("modules_to_save") or ()))
        for alpha in settings.alphas.values():  # each is checked as the common setting is
            replace(lora, alpha=alpha)
        for rank in settings.ranks.values():
            replace(lora, r=rank)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return settings


def _check_types(raw: dict[str, Any]) -> None:
    """Check the type and the bounds of every value that is read. Raises: InputError."""
    given = {key: value for key, value in raw.items() if value is not None}
    for key, wanted in TYPES.items():
        if key in given:
            check_type(key, given[key], wanted)
    for key in ("target_modules", "modules_to_save"):
        names = given.get(key, [])
        if key == "modules_to_save" or not isinstance(names, str):  # target_modules may be a pattern
            check_type(key, names, list)
            for name in names:
                check_type(f"each entry of {key}", name, str)
    numbers = {"r": (raw["r"], int), "lora_alpha": (raw.get("lora_alpha"), float)}
    numbers["lora_dropout"] = given.get("lora_dropout", 0), float
    for key, wanted in (("rank_pattern", int), ("alpha_pattern", float)):
        numbers |= {f"{key} of {shown(name)}": (value, wanted) for name, value in given.get(key, {}).items()}
    for name, (value, wanted) in numbers.items():
        check_type(name, value, wanted, -LARGEST, LARGEST)


def _first_fits(patterns: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Name -> the value of the first pattern that fits the end of the name, after a dot."""
    quantifiers = {pattern: len(re.findall(r"[*+?{]", pattern)) for pattern in patterns}
    longest = max(map(len, names), default=0)
    if any(len(pattern) > LONGEST or re.search(r"\)[*+?{]", pattern) for pattern in patterns) or (
        len(names) * sum(longest**count for count in quantifiers.values()) > MATCHES
    ):
        raise InputError(
            f"{CONFIG}: rank_pattern and alpha_pattern cost too much to match; write plain names of modules"
        )
    try:
        compiled = [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items()]
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"{CONFIG}: needed patterns of module names in rank_pattern and alpha_pattern, got {error}"
        ) from None
    fits = {name: next((value for pattern, value in compiled if pattern.match(name)), None) for name in names}
    return {name: value for name, value in fits.items() if value is not None}
