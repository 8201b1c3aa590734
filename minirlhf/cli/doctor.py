"""`minirlhf doctor`: faults of runs, named in words.

minirlhf doctor runs/ppo-001           # a pipeline: each of its runs
minirlhf doctor runs/ppo-001/ppo       # one run, also while it is going on
minirlhf doctor --rules                # all rules
"""

from __future__ import annotations

import argparse
from pathlib import Path

from minirlhf.columns import printable, wrapped
from minirlhf.errors import InputError
from minirlhf.seeing.doctor import RULES, Finding, examine, silent
from minirlhf.seeing.reading import SeenRun, counted, read_job

WIDTH = 80  # columns


def diagnosis(run: SeenRun) -> str:
    """The findings about a run in words, in at most 80 columns."""
    findings, unable = examine(run), len(silent(run))
    parts = [f"{printable(str(run.folder))} ({run.steps:,} steps)"]
    parts += [_shown(finding) for finding in findings]
    if not findings:
        parts.append(_indented(f"No fault found by {counted(len(RULES) - unable, 'rule')}."))
    parts.append(_indented(f"{counted(unable, 'rule')} without the metrics to judge this run; --rules lists all."))
    return "\n".join([*parts, *(_indented(f"Note: {note}.") for note in run.notes)])


def _shown(finding: Finding) -> str:
    past = "" if finding.lasting else " The last steps no longer show it."
    lines = [
        f"  step {finding.step:,}: {finding.of.title} ({finding.rule})",
        _indented(f"{finding.evidence[0].upper()}{finding.evidence[1:]}.{past}", 4),
        _indented(f"Remedy: {finding.of.remedy}.", 4),
        _indented(f"Read: {finding.of.docs}", 4),
    ]
    return "\n".join(lines)


def _indented(text: str, by: int = 2) -> str:
    return "\n".join(" " * by + line for line in wrapped(printable(text), WIDTH - by))


def _listed() -> str:
    names = [f"{name}: {rule.title}; reads {', '.join(rule.needs)}" for name, rule in RULES.items()]
    return "\n".join([*names, "", _indented("docs/doctor.md has the figures of each rule.", 0)])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "minirlhf doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="a run, or the folder of a pipeline")
    parser.add_argument("--rules", action="store_true", help="list the rules")
    asked = parser.parse_args(arguments)
    if asked.rules:
        return print(_listed())
    if not asked.folders:
        raise InputError("minirlhf doctor: needed the folder of a run or a pipeline, got none; see --help")
    print("\n\n".join(diagnosis(run) for folder in asked.folders for run in read_job(folder).runs))
