"""The file of `--config`: TOML, or YAML if its name ends in .yaml or .yml.

One file can serve several commands. A program reads the tables of its own sections and the keys above all tables. A
command with a table of its own, such as [split], reads this table alone if the file has it.
"""

from __future__ import annotations

import functools
import os
import tomllib
from pathlib import Path
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.nearest import nearest
from minirlhf.training.fields import TOP, checked

PROGRAM = "program"  # the key that names the program of `minirlhf train` and `minirlhf check`
# A file may hold settings of other programs and commands. They are named as not read, unlike unknown names.
TABLES = (
    *("model", "lora", "run", "sharding", "sft", "reward_model", "process_reward", "ppo", "grpo", "dpo", "unpaired"),
    *("online_dpo", "distillation"),
    *("sample", "check", "show", "split", "merge", "pairs", "augment", "convert", "download", "eval", "chat"),
)
KEYS = (
    *("reward", "reward_weights", "stop_after", "stop_sft_at", "student", "student_width", "student_steps"),
    *("kind", "rows", "value", "parallel", "base_steps", "best_of", "best_of_prompts", "prompt_words", "tool"),
    *("reward_ensemble", "reward_timeout", "save_rollouts", "replay", "replay_scores"),
    *("environment", "max_turns", "max_tool_tokens", "step_timeout"),
)


def read_settings(path: str, sections: dict[str, type], hints: dict[str, Any]) -> dict[str, Any]:
    """The values in the file by full name, such as "ppo.clip_eps". `hints` has the type of every setting.

    Raises: InputError for a file that cannot be read, and for an unknown or ill-typed setting.
    """
    values, problems, unread = settings_in(path, read_document(path), sections, hints)
    if problems:
        raise problems[0]
    if unread:
        _tell_once(f"{path}: not read here, because other programs have these settings: {', '.join(unread)}")
    return values


def settings_in(
    path: str, document: dict[str, Any], sections: dict[str, type], hints: dict[str, Any]
) -> tuple[dict[str, Any], list[InputError], list[str]]:
    """-> (the values of `read_settings`, an error for each unknown or ill-typed setting, names that others read)."""
    values, problems, unread = {}, [], []
    table = getattr(sections.get(TOP), "table", None)  # the name of a command's own table
    if alone := isinstance(document.get(table), dict):
        document = document[table]
    document = {key: value for key, value in document.items() if alone or key != PROGRAM}
    where = f"{path}: [{table}]: " if alone else f"{path}: "
    for name, value in _entries(document, sections).items():
        if name in hints and not ("." in name and name in document):  # "ppo.lr" = 1 could contradict [ppo]
            try:
                values[name] = checked(f"{where}{name}", hints[name], value, is_text=False)
            except InputError as error:
                problems.append(error)
        elif alone or name not in (TABLES if isinstance(value, dict) else KEYS):
            problems.append(InputError(f"{where}no {_unknown(name, value, sections, hints)}; see --help."))
        else:
            unread.append(f"[{name}]" if isinstance(value, dict) else name)
    return values, problems, unread


def read_document(path: str) -> dict[str, Any]:
    """The tables and keys of a file.   Raises: InputError if the file cannot be read."""
    is_yaml = Path(path).suffix in (".yaml", ".yml")
    form = "YAML" if is_yaml else "TOML"
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        if not is_yaml:
            return tomllib.loads(text)
        from minirlhf.training.yaml_file import read_yaml

        return read_yaml(path, text)
    except OSError as error:
        raise InputError(f"--config {path}: needed a {form} file, got: {error.strerror}; check the path.") from None
    except InputError:
        raise
    except ValueError as error:  # not UTF-8, or broken; the message of the parser has the line
        raise InputError(f"--config {path}: needed valid {form} in UTF-8, got: {error}; correct the file.") from None
    except RecursionError:
        raise InputError(f"--config {path}: needed settings, got values that are nested too deep.") from None


def _entries(document: dict[str, Any], sections: dict[str, type]) -> dict[str, Any]:
    """Full name -> value. A table that is no section stays whole."""
    entries: dict[str, Any] = {}
    for key, value in document.items():
        inside = key != TOP and key in sections and isinstance(value, dict)
        entries |= {f"{key}.{name}": entry for name, entry in value.items()} if inside else {key: value}
    return entries


def _unknown(name: str, value: Any, sections: dict[str, type], hints: dict[str, Any]) -> str:
    tables = [section for section in sections if section != TOP]
    is_table = tables and (isinstance(value, dict) or name in tables)
    closest = nearest(name, tables, "[{}]") if is_table else nearest(name, hints)
    return f"{'table' if isinstance(value, dict) else 'setting'} {shown(name)}{closest}"


@functools.cache  # a program may read its settings twice
def _tell_once(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # the processes have not joined yet
        print(line, flush=True)
