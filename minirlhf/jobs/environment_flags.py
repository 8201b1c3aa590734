"""The flags of programs that play environments."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields

# Sections of the programs that play environments. Programs with `plays` = False have the section alone.
PROGRAMS = ("ppo", "grpo", "online_dpo")


@dataclass(frozen=True)
class EnvironmentFlags:
    """Plain flags of a program that plays environments."""

    environment: str | None = None  # [FILE.py:CLASS] the policy acts in this environment; --reward adds to its rewards
    max_turns: int = 8  # [turns] of the policy in an episode of the environment, at most
    max_tool_tokens: int = 256  # [tokens] of a text of the environment, at most; the rest is cut off
    step_timeout: float = 30.0  # [s] that a step of the environment may take


def with_environment_flags(cls: type, section: str) -> type:
    """The dataclass of plain flags, with those of environments if the program plays them."""
    if section not in PROGRAMS or not getattr(cls, "plays", True) or issubclass(cls, EnvironmentFlags):
        return cls
    names = tuple(field.name for field in fields(EnvironmentFlags))
    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    namespace["later_stages_only"] = (*cls.later_stages_only, *names)
    bases = (cls, EnvironmentFlags)
    return dataclasses.make_dataclass(cls.__name__, [], bases=bases, namespace=namespace, frozen=True)
