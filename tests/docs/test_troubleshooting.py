"""docs/troubleshooting.md names flags, metrics and files that exist."""

import re
from pathlib import Path

from minirlhf.algorithms import dpo, grpo
from minirlhf.cli import eval_human, run
from minirlhf.cli.chat import ChatConfig
from minirlhf.cli.data_look import ShowFlags
from minirlhf.cli.plan import PlanFlags
from minirlhf.evaluation import MEASURES
from minirlhf.training.fields import fields_of
from minirlhf.training.vocabulary import METRICS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
CLASSES = {**run.settings_classes(), "chat": ChatConfig, "show": ShowFlags, "plan": PlanFlags}
SETTINGS = {
    re.sub("^(chat|show|plan)\\.", "", name) for section, cls in CLASSES.items() for name, *_ in fields_of(section, cls)
}
PARSERS = (run.parser, eval_human.parser)


def options(parser):
    """The flags of an argparse parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        for inner in getattr(action, "choices", None) or {} if action.nargs == "A..." else ():
            yield from options(action.choices[inner])


def test_every_flag_exists():
    named = set(re.findall(r"(?<![\w-])--([a-z][\w.-]*\w)", re.sub(r"\(#--resume-refuses\)", "", TEXT)))
    known = SETTINGS | {"config", "help", "nproc-per-node"}
    known |= {flag.removeprefix("--") for parser in PARSERS for flag in options(parser())}
    assert len(named) > 40 and not named - known


def test_every_metric_and_name_in_code_exists():
    """Each `name` alone in backticks is a metric, a setting, or a name of a file, an algorithm or a program."""
    named = set(re.findall(r"`([a-z_0-9/]+)`", TEXT))
    metrics = {*METRICS, *(f"eval/{name}" for name in (*METRICS, *MEASURES))}
    journal = (ROOT / "minirlhf/training/journal.py").read_text(encoding="utf-8")
    others = {"seconds", "evaluation_seconds", "memory_mb", "gpu_memory_mb"}
    assert all(f'"{name}"' in journal for name in others)
    assert not named - metrics - others - {name.rpartition(".")[2] for name in SETTINGS}


def test_the_named_choices_exist():
    for flag, choices in {"grpo.algorithm": grpo.ALGORITHMS, "dpo.loss": dpo.LOSSES}.items():
        named = re.findall(rf"--{flag} (\w+)", TEXT)
        assert named and set(named) <= set(choices)


def test_the_table_lists_every_symptom_once():
    sections = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    table = re.findall(r"\[([^\]]+)\]\(#", TEXT[: TEXT.index("\n## ")].replace("\n", " "))
    assert sorted(name.lower() for name in table) == sorted(name.lower() for name in sections)


def test_the_quoted_messages_are_those_of_the_programs():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "minirlhf").rglob("*.py"))
    sources = re.sub(r'"\s+f?"', "", sources)
    for words in (
        "holds a run already",
        "holds another run: it began with",
        "damaged: ",
        "needed a complete checkpoint",
        "nothing to resume, starting afresh",
        "model's logits are not finite",
        "needed only columns that are used as they are meant",
        "renders earlier turns differently once an answer follows",
    ):
        assert words in sources and words.lower() in " ".join(TEXT.lower().split()), words
