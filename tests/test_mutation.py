"""tests/mutation.py: the tool itself, and that the tests notice a sample of its changes."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("mutation.py")


@pytest.fixture(scope="module")
def mutation():
    spec = importlib.util.spec_from_file_location("mutation", TOOL)
    sys.modules["mutation"] = module = importlib.util.module_from_spec(spec)  # @dataclass needs it there
    spec.loader.exec_module(module)
    return module


EXAMPLE = '''
def example(x, mask, low: int = 2):
    """Not 1 but 2."""
    if low < 1:
        raise ValueError(f"low must be at least 1, got {low + 1}")
    check(x)
    return torch.where(mask, -x.detach(), 0).clamp(min=low).sum()
'''

WANTED = [
    "2 to 3 | def example(x, mask, low: int = 2):",
    "drop the check | if low < 1:",
    "negate the condition | if low < 1:",
    "< to <= | if low < 1:",
    "1 to 0 | if low < 1:",
    "drop the statement | check(x)",
]
LAST = ["return 0 times it", "sum to mean", "drop .clamp()", "min= to max=", "swap the choices of where", "drop -"]
LAST += ["drop .detach()", "0 to 1"]


def test_mutants_of_an_example_leave_text_alone(mutation):
    last = EXAMPLE.splitlines()[-1].strip()
    wanted = [f"example | {change}" for change in (*WANTED, *(f"{change} | {last}" for change in LAST))]
    assert sorted(mutant.name for mutant in mutation.mutants("losses/example.py", EXAMPLE)) == sorted(wanted)


def test_a_mutant_is_the_code_with_one_change(mutation):
    assert not mutation.mutants("losses/g.py", "def g():\n    return []\n")
    source = "def f(x):\n    return x + 2\n"
    results = {}
    for mutant in mutation.mutants("losses/f.py", source):
        exec(mutant.code(), scope := {})
        results[mutant.name.split(" | ")[1]] = scope["f"](5)
    assert results == {"return 0 times it": 0, "+ to -": 3, "2 to 3": 8}


def test_every_equivalent_mutant_exists_and_has_a_reason(mutation):
    table = tomllib.loads(mutation.EQUIVALENT.read_text(encoding="utf-8"))
    for file, entries in table.items():
        names = {
            mutant.name for mutant in mutation.mutants(file, (mutation.PACKAGE / file).read_text(encoding="utf-8"))
        }
        assert entries.keys() <= names, sorted(entries.keys() - names)
        assert all(len(reason) > 10 for reason in entries.values())


def test_every_file_of_the_losses_has_tests_of_its_own(mutation):
    for path in (mutation.PACKAGE / "losses").glob("*.py"):
        for test in mutation.tests_of(f"losses/{path.name}"):
            assert path.name == "__init__.py" or (TOOL.parent / test).is_file(), f"{path.name}: {test}"


def test_outside_the_losses_defaults_and_messages_are_left_alone(mutation):
    source = (
        "class C:\n    steps: int = 3\n\ndef f(x, low=2):\n    say(x)\n    g(x)\n    return zip(x, low, strict=True)\n"
    )
    names = [mutant.name for mutant in mutation.mutants("training/example.py", source)]
    assert names == ["f | drop the statement | g(x)", "f | return 0 times it | return zip(x, low, strict=True)"]
    assert len(mutation.mutants("losses/example.py", source)) == 4


def test_the_changed_file_is_loaded_here_and_in_programs(mutation, tmp_path):
    program = f"""
import importlib.util, subprocess, sys
spec = importlib.util.spec_from_file_location("mutation", {str(TOOL)!r})
sys.modules["mutation"] = mutation = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutation)
code = compile("CHANGED = 7", "errors.py", "exec")
mutation.load_in_place("errors.py", code, {str(tmp_path)!r})
import minirlhf.errors
assert minirlhf.errors.CHANGED == 7
"""
    inner = "from minirlhf.errors import CHANGED; print(CHANGED)"
    program += f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


@pytest.mark.slow
def test_of_a_sample_of_mutants_nearly_all_are_killed():
    command = [sys.executable, str(TOOL), "--sample", "150", "--seed", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stdout + run.stderr
