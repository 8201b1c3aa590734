"""What README.md and docs/ say is so: links resolve, Python blocks run, commands work as they stand."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

from minirlhf import losses
from minirlhf.algorithms import dpo, grpo
from minirlhf.cli.main import main as minirlhf_command
from minirlhf.evaluation.human.page import FORMAT, pack_key
from minirlhf.extras.diffusion import rewards as pictures
from minirlhf.jobs import opened
from minirlhf.training.journal import Journal
from minirlhf.training.vocabulary import METRICS

from ..examples.conftest import small_task
from ..forks import Forks
from ..test_imports import CORE, module
from ..test_imports import FILES as PACKAGE_FILES
from .output import BLOCK, shape, shortened

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:minirlhf|pip|pytest|python|torchrun)\b.*$", re.MULTILINE)

TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
PROSE = {page: FENCE.sub("", text) for page, text in TEXT.items()}
BLOCKS = [(page, *match.groups()) for page in PAGES for match in FENCE.finditer(TEXT[page])]
DRAWINGS = [code for _, _, code in BLOCKS if "matplotlib" in code]  # no package of the tests
PYTHON = [(page, code) for page, info, code in BLOCKS if info == "python" and code not in DRAWINGS]
EXCERPTS = [(page, info.split()[1], code) for page, info, code in BLOCKS if info.startswith("python ")]
# commands stand in ```sh blocks or, indented, in the prose; those that begin with pip are the CI script's
INDENTED = [line.strip() for page in PAGES for line in re.findall(r"^    .+$", PROSE[page], re.MULTILINE)]
INSTALL = [line for line in INDENTED if COMMAND.match(line)]
JOURNEY = ROOT / "docs" / "pipeline.md"  # tests/cli/test_journey.py runs its commands
MACHINES = ROOT / "docs" / "multi_node.md"  # test_multi_node.py runs its commands
SHELL = [code for page, info, code in BLOCKS if info == "sh" and page not in (JOURNEY, MACHINES)]
COMMANDS = list(dict.fromkeys(line for code in SHELL for line in code.splitlines() if line))

TINY = {
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
    },
    "sft": {"steps": 3},
    "reward_model": {"steps": 3},
    "ppo": {"steps": 2, "batch_size": 8, "minibatch_size": 4, "max_tokens": 8},
    "grpo": {"steps": 2, "batch_size": 4, "minibatch_size": 4, "group_size": 2, "max_tokens": 8},
    "dpo": {"steps": 2, "batch_size": 8},
    "unpaired": {"steps": 2, "batch_size": 8},
    "online_dpo": {"steps": 2, "batch_size": 4, "minibatch_size": 4, "max_tokens": 8},
    "distillation": {"steps": 2, "batch_size": 8, "max_tokens": 8},
    "process_reward": {"steps": 2, "batch_size": 8},
    "run": {"eval_every": 0},
}
SECTIONS = {
    "ppo": ["model", "sft", "reward_model", "ppo", "run"],
    "sft": ["model", "sft", "run"],
    "reward_model": ["model", "reward_model", "run"],
    "multi_adapter": ["model", "sft", "reward_model", "ppo", "run"],
    **dict.fromkeys(("sentiment", "detoxify", "llama"), ["model", "sft", "reward_model", "ppo", "run"]),
    "grpo": ["model", "sft", "reward_model", "grpo", "run"],
    "dpo": ["model", "sft", "dpo", "run"],
    "unpaired": ["model", "sft", "unpaired", "run"],
    "online_dpo": ["model", "sft", "reward_model", "online_dpo", "run"],
    "distillation": ["model", "sft", "distillation", "run"],
    "process_reward": ["model", "process_reward", "run"],
}
# settings that stand in no table
TOP = {"distillation": {"student_width": 8, "student_steps": 2}, "llama": {"base_steps": 2}}
PICTURES = {"chain": {"denoising_steps": 2}, "pretraining": {"steps": 2, "batch_size": 4, "pictures": 64}}
EXTRAS = {  # programs of extras/, with settings of their own
    "seq2seq": {name: TINY[name] for name in ("sft", "ppo", "run")},
    "ddpo": PICTURES | {"ddpo": {"steps": 2, "batch_size": 1, "group_size": 2}},
    "overoptimisation": {
        "": {"best_of": 4, "best_of_prompts": 3, "evaluated": 8},
        "reward_model": {"steps": 3},
        "dpo": {"epochs": 0.1},
        **{name: TINY[name] for name in ("model", "sft", "ppo")},
    },
    "alignprop": PICTURES | {"alignprop": {"steps": 2, "batch_size": 2}},
}
ROWS = {"process_reward": "steps.jsonl"}  # the others read pairs


def anchors(text: str) -> set[str]:
    """The anchors a page's headings get on GitHub."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def name_of(value) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else ""


def test_pages_are_there():
    assert len(PAGES) >= 16
    assert len(PYTHON) > 15 and len(EXCERPTS) == 1 and len(COMMANDS) > 5


def test_the_source_is_as_long_as_the_pages_say():
    def count(files):
        return sum(1 for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip())

    def number(text, pattern):
        return int(re.search(pattern, text)[1].replace(",", ""))

    page, readme = TEXT[ROOT / "docs" / "reading.md"], TEXT[ROOT / "README.md"]
    source = {module(path): path for path in PACKAGE_FILES}
    assert len(source) == pytest.approx(number(page, r"has about ([\d,]+) files"), rel=0.05)
    assert count(source.values()) == pytest.approx(number(page, r"about ([\d,]+) lines, blank"), rel=0.05)
    core = count(source[name] for name in CORE)
    assert core == pytest.approx(number(page, r"embedded task: about ([\d,]+) lines"), rel=0.03)
    assert core == pytest.approx(number(readme, r"needs, is about ([\d,]+) lines"), rel=0.03)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_resolve(page):
    links = re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", PROSE[page])
    assert links
    for title, link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{title}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{title}: {link} leaves the repository"
        if anchor:
            assert anchor in anchors(TEXT[target]), f"{title}: no heading {anchor!r} in {target.name}"
        if target.suffix == ".py" and re.fullmatch(r"`\w+`", title):
            name = title.strip("`")
            found = re.search(rf"^\s*(?:def |class )?{name}\b", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert found, f"{target.name} defines no {name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_read_well_in_a_terminal(page):
    assert not [line for line in TEXT[page].splitlines() if len(line) > 120]


def test_links_in_the_source_resolve():
    """`--help`, docstrings and comments point into docs/."""
    sources = [*(ROOT / "minirlhf").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    links = [link for path in sources for link in re.findall(r"docs/(\w+\.md)#([\w-]+)", path.read_text("utf-8"))]
    assert links
    for page, anchor in links:
        assert anchor == "NAME" or anchor in anchors(TEXT[ROOT / "docs" / page]), f"docs/{page}#{anchor}"


def test_every_metric_has_a_section():
    headings = re.findall(r"^## (\S+)$", PROSE[ROOT / "docs/metrics.md"], re.MULTILINE)
    assert set(METRICS) <= set(headings)
    assert set(headings) - set(METRICS) == {"eval/NAME"}


def test_every_loss_is_explained():
    text = PROSE[ROOT / "docs/losses.md"]
    public = [
        name for name in dir(losses) if getattr(getattr(losses, name), "__module__", "").startswith("minirlhf.losses.")
    ]
    missing = [name for name in public if f"[`{name}`](" not in text]
    assert not missing


def test_every_algorithm_is_explained():
    text = PROSE[ROOT / "docs/algorithms.md"]
    names = [*grpo.ALGORITHMS, *dpo.LOSSES]
    assert not [name for name in names if f"\n| `{name}` |" not in text]


def test_every_file_is_in_the_reading_order():
    text = PROSE[ROOT / "docs/reading.md"]
    small = {"__init__.py", "errors.py", "texts.py"}  # nothing to read before the others
    paths = [*(ROOT / "minirlhf").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    files = {path.relative_to(ROOT).as_posix() for path in paths if path.name not in small}
    assert not [path for path in sorted(files) if f"(../{path})" not in text]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=name_of)
def test_python_blocks_run(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_the_lines_that_draw_metrics_read_the_file_of_a_run(tmp_path, monkeypatch):
    (code,) = DRAWINGS
    journal = tmp_path / "runs/ppo-001/ppo"
    journal.mkdir(parents=True)
    for k in range(3):
        Journal(journal, k).step(k, {"kl": k / 2}, [])
    drawn = []
    pyplot = ModuleType("matplotlib.pyplot")
    pyplot.plot, pyplot.savefig = lambda *lines: drawn.append(lines), drawn.append
    matplotlib = ModuleType("matplotlib")
    matplotlib.pyplot = pyplot
    monkeypatch.setitem(sys.modules, "matplotlib", matplotlib)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/runs.md", "exec"), {})
    assert drawn == [([0, 1, 2], [0.0, 0.5, 1.0]), "kl.png"]
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 3


@pytest.mark.parametrize(("page", "source", "code"), EXCERPTS, ids=name_of)
def test_excerpts_stand_in_the_source(page, source, code):
    """Each line of an excerpt stands in the file it names, as it is and in this order; `...` leaves lines out."""
    lines = iter((ROOT / source).read_text(encoding="utf-8").splitlines())
    for line in code.splitlines():
        assert line.strip() == "..." or line in lines, f"not in {source}, or not after the line before: {line}"


def test_install_commands_are_those_of_ci():
    assert [line.strip() for line in TEXT[ROOT / "README.md"].splitlines()[4:6]] == INSTALL
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    for line in INSTALL:
        assert line.partition("#")[0].strip() in script


class Workshop:
    """A folder like a user's. The commands of all pages run there in their order, each once.

    Programs run in this process, because a start takes longer than a tiny run; those of torchrun in forks, two each.
    """

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.folder, self.forks = folder, forks
        self.results: dict[str, tuple[int, str, str]] = {}
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        words = ["kettle", "lamp", "tent", "desk"]
        pairs = [
            {"prompt": f"{n} {word}:", "chosen": f"the {word} is good.", "rejected": f"{word} bad"}
            for n in range(10)
            for word in words
        ]
        turns = [
            {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
            for n in range(40)
        ]
        steps = [
            {"prompt": f"{n}:", "steps": [f"{n} is {n}. ", "it is. "], "labels": [n % 2 == 0, True]} for n in range(40)
        ]
        answers = [{"prompt": f"{n} + 2 =", "answer": n + 2} for n in range(40)]
        (folder / "my.py").write_text(next(code for _, code in PYTHON if code.startswith("# my.py")))
        for name, rows in {
            "pairs.jsonl": pairs,
            "turns.jsonl": turns,
            "steps.jsonl": steps,
            "answers.jsonl": answers,
            "base.jsonl": [{"prompt": f"{n}", "completion": f"{n}?"} for n in range(4)],
            "tuned.jsonl": [{"prompt": f"{n}", "response": f"{n}!"} for n in range(4)],
        }.items():
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        key = {"models": ["base", "tuned"], "pairs": [[0, 1]], "categories": [None], "identical": []}
        ratings = [{"comparison": 0, "choice": "left", "comment": "", "left": 0, "at": "2026"}]
        file = {"format": FORMAT, "page": "0", "key": pack_key(key), "ratings": ratings}
        for rater in ("anna", "berta"):
            (folder / f"ratings-{rater}.json").write_text(json.dumps({**file, "rater": rater}))

    def run(self, command: str) -> tuple[int, str, str]:
        """-> (exit code, stdout, stderr) of a command, after all commands before it."""
        for earlier in COMMANDS[: COMMANDS.index(command) + 1]:
            if earlier not in self.results:
                words = self.with_tiny_settings(shlex.split(earlier))
                start = self.start if words[0] == "torchrun" else self.call
                self.results[earlier] = start(words)
        return self.results[command]

    def with_tiny_settings(self, words: list[str]) -> list[str]:
        """The command with tiny settings, in its own --config or one more flag, and few rows if it names none."""
        flags = {word for word in words if word.startswith("--")}
        program = next((Path(word).stem for word in words if word.startswith("examples/")), None)
        if program in EXTRAS:
            tables = {"": {"device": "cpu"}} | EXTRAS[program]
            (self.folder / f"{program}.toml").write_text("\n".join(toml(name, table) for name, table in tables.items()))
            return [*words, "--config", f"{program}.toml"]
        if "--help" in flags or program not in SECTIONS:
            return words + ["--device", "cpu"] * (words[:2] == ["minirlhf", "chat"])
        top = {"device": "cpu", "vocab_size": 400, **TOP.get(program, {})}
        if not flags & {"--data", "--task"}:
            top["data"] = ROWS.get(program, "pairs.jsonl")
        if "--config" in flags:
            config = words[words.index("--config") + 1]
        else:
            config = f"tiny{len(self.results)}.toml"
            words = [*words, "--config", config]
        tables = {"": top} | {name: TINY[name] for name in SECTIONS[program]}
        (self.folder / config).write_text("\n".join(toml(name, table) for name, table in tables.items()))
        return words

    def start(self, words: list[str]) -> tuple[int, str, str]:
        """The processes that torchrun starts, in forks."""
        read = torchrun_parser().parse_args(words[1:])
        with contextlib.chdir(self.folder):
            program, world = [read.training_script, *read.training_script_args], int(read.nproc_per_node)
            done = self.forks.ranks(*program, world=world, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
        codes, out, err = zip(*((each.returncode, each.stdout, each.stderr) for each in done), strict=True)
        return max(codes), "".join(out), "".join(err)

    def call(self, words: list[str]) -> tuple[int, str, str]:
        """The program's own lines, in this process."""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", words[1:] if words[0] != "minirlhf" else words)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))  # `minirlhf chat` reads it
            patch.setattr(opened, "embedded_task", small_task)
            patch.setattr(pictures, "CLASSIFIERS", {"gold": (2, 64, 0.4), "proxy": (2, 64, 0.0)})
            try:
                if words[0] == "minirlhf":
                    minirlhf_command()
                else:
                    runpy.run_path(str(self.folder / words[1]), run_name="__main__")
                code = 0
            except SystemExit as exit:
                code = exit.code or 0
        return code, *(stream.buffer.getvalue().decode() for stream in (out, err))


def toml(name: str, table: dict) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join([f"[{name}]"] * bool(name) + lines) + "\n"


@pytest.fixture(scope="module")
def workshop(forks, tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("workshop"), forks)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_work(command, workshop):
    code, out, err = workshop.run(command)
    assert code == 0, err[-2000:]
    assert "Traceback" not in err and "error: " not in err


def test_the_output_in_the_readme_is_that_of_the_program(workshop):
    """As tests/docs/output.py writes it; numbers and samples differ. The rows of the embedded task, as in README.md."""
    tables = {"": {"device": "cpu", "vocab_size": 400}} | {name: TINY[name] for name in SECTIONS["ppo"]}
    tables |= {"run": {"eval_every": 1}, "ppo": TINY["ppo"] | {"steps": 3}}
    (workshop.folder / "shown.toml").write_text("\n".join(toml(name, table) for name, table in tables.items()))
    code, out, err = workshop.call(["python", "examples/ppo.py", "--config", "shown.toml"])
    assert code == 0, err[-2000:]
    shown = BLOCK.search(TEXT[ROOT / "README.md"])[2]
    assert shape(shown) == shape(shortened(out))
    assert max(map(len, out.splitlines())) <= 80 and len(shape(shown)) > 20


def test_a_pipeline_looks_as_runs_md_says(workshop):
    """After all commands: the files that docs/runs.md names are there, and no others."""
    workshop.run(COMMANDS[-1])
    folder = workshop.folder / "runs/mine"
    expected = {"tokenizer", "sft", "reward", "ppo", "summary.json", "inputs.json", "stages.json", "page.html"}
    assert {path.name for path in folder.iterdir()} == expected
    run = {"config.toml", "metrics.jsonl", "timings.jsonl", "samples.jsonl", "log.txt", "checkpoints", "model"}
    for stage in ("sft", "reward", "ppo"):
        assert {path.name for path in (folder / stage).iterdir()} == run
    newest = max((folder / "ppo/checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    assert {path.name for path in newest.iterdir()} == {"policy", "state.json", "state.safetensors", "manifest.json"}
    assert set(json.loads((folder / "summary.json").read_text())) == {
        "seconds", "before", "after", "kl", "reward_model_accuracy",
    }  # fmt: skip
