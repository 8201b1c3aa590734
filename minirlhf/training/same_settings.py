"""A resumed run must have the settings that it began with."""

from __future__ import annotations

from pathlib import Path

from minirlhf.errors import InputError, shown

# settings that may change in a resumed run
MAY_CHANGE = ("resume", "overwrite", "output", "stop_after", "device", "threads", "log_level", "tracker")
# the strategy of several processes, in runs that began with a section [sharding] or before there was one
MAY_CHANGE += ("parallel", "[sharding]", "", "replicas", "cpu_offload", "reshard_after_forward", "gather")
MAY_CHANGE += ("shard_optimizer", "save_rollouts", "reward_timeout", "async_save", "export")
MAY_CHANGE += ("microbatch_tokens", "gradient_checkpointing")  # how a step fits into memory; only rounding differs


def check_same_settings(path: Path, settings: str) -> None:
    """Raise InputError with the first difference if `settings` differ from the settings in the file `path`."""
    try:
        texts = path.read_text(encoding="utf-8"), settings
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: needed the settings of a run, got: {error}; choose another --output") from None
    old, new = ([x for x in text.splitlines() if x.split(" = ")[0] not in MAY_CHANGE] for text in texts)
    if old != new:
        last = (old or [""])[-1], (new or [""])[-1]  # a damaged file may be empty
        different = next((pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]), last)
        raise InputError(
            f"{path.parent}: holds another run: it began with {shown(different[0])}, but the settings now say "
            f"{shown(different[1])}; resume with its own settings or choose another --output"
        )
