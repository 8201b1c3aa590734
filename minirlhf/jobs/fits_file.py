"""Settings that fit into memory, as a file for --config, and the table of the memory that a job needs by plan."""

from __future__ import annotations

from minirlhf.columns import aligned
from minirlhf.jobs.fitting import Plan, flags
from minirlhf.jobs.strategies import named
from minirlhf.runtime.memory import in_words
from minirlhf.training.settings import settings_to_toml

NAMES = {"gathered": "gathered weights", "casts": "bf16 copies", "sampler": "sampler's copy"}


def table(plan: Plan) -> str:
    """The parts of the memory of a process at each moment of a step."""
    moments = {name: parts for name, parts in plan.memory.moments.items() if parts}
    names = [
        name
        for name in dict.fromkeys(n for parts in moments.values() for n in parts)
        if any(parts.get(name) for parts in moments.values())
    ]
    rows = [[NAMES.get(name, name), *(cell(parts.get(name, 0)) for parts in moments.values())] for name in names]
    sums = [sum(parts.values()) for parts in moments.values()]
    rows.append(["sum", *map(cell, sums)])
    rows.append(["with freed blocks", *(cell(plan.memory.taken(size)) for size in sums)])
    return aligned([f"{plan.stage}, {named(plan.strategy)}", *moments], rows)


def cell(size: float) -> str:
    return in_words(size) if size else "-"


def text_of(plan: Plan) -> str:
    """All settings of a plan as TOML. Comments before them name the changes and show the table."""
    title = f"fits into memory by plan; changed settings: {flags(plan.changes) or 'none'}"
    comments = "".join(f"# {line}\n" for line in (title, *table(plan).split("\n")))
    return f"{comments}\n{settings_to_toml(plan.job.settings)}"
