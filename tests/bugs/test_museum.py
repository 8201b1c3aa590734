"""The bug museum: each fault can be put into the package, tests catch it, and the pages tell of it."""

import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from minirlhf.seeing.doctor import RULES

from .. import museum
from ..benchmarks import doctor as benchmark
from . import pages
from .faults import FAULTS
from .programs import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
# faults of pure functions, whose tests are functions without fixtures
PURE = ("score_on_padding", "kl_with_wrong_sign", "values_one_off", "optimistic_clip", "groups_mixed")
PURE += ("sees_the_answer", "pairs_turned_round", "references_exchanged")
FOLDER = ROOT / "docs" / "museum"


@pytest.mark.parametrize("name", FAULTS)
def test_the_line_of_a_fault_stands_in_the_package_once(name):
    fault = FAULTS[name]
    text = museum.changed(fault)
    compile(text, fault.file, "exec")
    assert text != (ROOT / "minirlhf" / fault.file).read_text(encoding="utf-8")
    assert fault.program in CONFIGS and (fault.rule is None or fault.rule in RULES)
    path, _, function = fault.test.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")


def test_a_line_that_has_changed_is_named():
    gone = FAULTS["dead_critic"]._replace(old="no such line")
    with pytest.raises(ValueError, match="algorithms/ppo.py: needed the line once, found it 0 times: no such line"):
        museum.changed(gone)


def test_at_least_16_faults_are_real():
    assert sum(fault.real for fault in FAULTS.values()) >= 16


@pytest.mark.parametrize("name", PURE)
def test_the_named_test_catches_a_fault_of_a_pure_function(name, monkeypatch):
    fault, faulty = FAULTS[name], ModuleType("faulty")
    exec(compile(museum.changed(fault), fault.file, "exec"), faulty.__dict__)
    path, _, function = fault.test.partition("::")
    tests = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    real = f"minirlhf.{fault.file.removesuffix('.py').replace('/', '.')}"
    for key, value in list(vars(tests).items()):
        if getattr(value, "__module__", None) == real:
            monkeypatch.setattr(tests, key, getattr(faulty, key))
    with pytest.raises(AssertionError):
        getattr(tests, function)()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_the_named_test_catches_the_fault_in_the_copy(name):
    assert museum.is_caught(name)


@pytest.mark.slow
def test_the_museum_runs_a_fault_and_the_doctor_names_it(tmp_path, monkeypatch, capsys):
    words = ["museum.py", "old_logps_recomputed", "--steps", "12", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    museum.main()
    out = capsys.readouterr().out
    assert "old.logps.copy_(now.logps.detach())" in out and "step 10: the ratio is always 1 (ratio_never_moves)" in out


def test_the_program_lists_its_faults(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["museum.py"])
    museum.main()
    assert capsys.readouterr().out.splitlines() == [f"{name}: {fault.title}" for name, fault in FAULTS.items()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The benchmark's folder: healthy scores of k / 100 or k / 101, faulty scores of 0 from step 3 on; dead critics."""
    return written_runs(tmp_path_factory.mktemp("runs"), range(2))


def written_runs(folder, seeds):
    def write(name, seed, **metrics):
        (path := folder / name / f"seed-{seed}").mkdir(parents=True)
        program = FAULTS[name].program if name in FAULTS else name.removeprefix("healthy-")
        (path / "config.toml").write_text(f"[{program}]\nsteps = 30\n")
        rows = [{"step": k, **{key: value(k) for key, value in metrics.items()}} for k in range(30)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    for seed in seeds:
        for program, watched in pages.WATCHED.items():
            write(f"healthy-{program}", seed, **{watched: lambda k, seed=seed: k / (100 + seed)})
        for name, fault in FAULTS.items():
            critic = {"explained_variance": lambda k: 0.0} if name == "dead_critic" else {}
            watched = pages.WATCHED[fault.program]
            write(name, seed, **{watched: lambda k: k / 100 if k < 3 else 0.0}, **critic)
    return folder


def test_the_benchmark_counts_findings_and_false_alarms(runs):
    text = benchmark.report(runs)
    assert (
        "10 healthy runs (ppo, grpo, sft, reward_model, dpo; 300 steps) and 2 runs of each fault (seeds 0, 1, ...):"
        in text
    )
    assert "| dead_critic | `dead_critic` | 2/2 | 20 | 2/2 | - |" in text
    assert "| values_one_off | none | - | - | 0/2 | - |" in text
    assert "| `dead_critic` | 1 | 0 | 0.00 |" in text


def test_a_later_benchmark_with_more_runs_makes_the_missing_ones(tmp_path, monkeypatch):
    def run(name, part, seed, runs, program):
        for number in range(seed, seed + runs):
            (part / f"seed-{number}").mkdir(parents=True)
            made.append((name, number))

    monkeypatch.setattr(benchmark, "run", run)
    monkeypatch.setattr(benchmark, "FAULTS", {"dead_critic": FAULTS["dead_critic"]})
    for runs, again in ((3, range(3)), (7, range(7)), (7, ())):
        made = []
        benchmark.make(tmp_path, runs)
        assert [number for name, number in made if name == "dead_critic"] == [*again]


def test_the_bound_counts_the_runs_that_chose_no_threshold(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "examine", lambda run: [])
    monkeypatch.setattr(benchmark, "TUNED", 3)
    assert "with 95% confidence" not in benchmark.report(written_runs(tmp_path / "tuned", range(3)))
    text = benchmark.report(written_runs(tmp_path / "fair", range(6)))
    assert "15 of them have seeds that chose no threshold; so with 95% confidence fewer than 20% of such runs" in text


def test_the_page_tells_how_long_a_fault_hides(runs, tmp_path):
    pages.write(tmp_path, runs)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    room = text[text.index("## dead_critic") :].partition("\n## ")[0]
    # the mean of 5 values falls below the healthy mean of k / 101 at once, when the first 0 is in it
    assert "Hides until: step 4 of 30." in room and "Doctor: `dead_critic`, 2 of 2 runs." in room
    assert "- losses = policy_losses + config.value_coef * value_losses\n" in room


class Data(HTMLParser):
    found = ""

    def handle_starttag(self, tag, attrs):
        self.inside = dict(attrs).get("id") == "data"

    def handle_data(self, text):
        if getattr(self, "inside", False):
            self.found, self.inside = text, False


def test_the_quiz_holds_all_faults_and_loads_nothing():
    html = (FOLDER / "quiz.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html and len(html) < 1_000_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|document\.write|eval\(", html)
    reader = Data()
    reader.feed(html)
    data = json.loads(reader.found)
    assert [room["name"] for room in data["rooms"]] == list(FAULTS)
    assert all(len(room["curves"]["loss" if room["program"] != "ppo" else "kl"]) > 10 for room in data["rooms"])
    assert data["healthy"].keys() == CONFIGS.keys()


def test_the_museum_has_a_room_for_each_fault_as_it_is():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, fault in FAULTS.items():
        room = text[text.index(f"## {name}\n") :].partition("\n## ")[0]
        assert all(part in room for part in (*pages.lines_of(fault.old), *pages.lines_of(fault.new)))
        assert fault.effect in room.replace("\n", " ") and f"Test: `{fault.test}`" in room
    assert f"| {len(FAULTS)} bugs of RLHF code" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"has {len(FAULTS)} faults of RLHF code" in (ROOT / "docs/doctor.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    assert links and all((FOLDER / link).exists() for link in links)
