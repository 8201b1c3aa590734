"""The bug museum: a small run of a copy of the package with a fault in one line.

python tests/museum.py                           # the names of all faults
python tests/museum.py dead_critic               # the change, a healthy run and a faulty run, the doctor's findings
python tests/museum.py dead_critic --seed 1 --steps 30 --output DIR
python tests/museum.py dead_critic --test        # the test that catches the fault fails on the copy
python tests/museum.py --page runs/doctor        # write docs/museum anew, from the benchmark's runs
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minirlhf.cli.doctor import main as doctor  # noqa: E402 (after sys.path)
from tests.bugs import pages  # noqa: E402
from tests.bugs.fault import Fault  # noqa: E402
from tests.bugs.faults import FAULTS  # noqa: E402

PROGRAMS = ROOT / "tests" / "bugs" / "programs.py"


def changed(fault: Fault, root: Path = ROOT) -> str:
    """The text of the fault's file with the fault.   Raises: ValueError unless the old line stands in it once."""
    text = (root / "minirlhf" / fault.file).read_text(encoding="utf-8")
    if (count := text.count(fault.old)) != 1:
        raise ValueError(f"{fault.file}: needed the line once, found it {count} times: {fault.old}")
    return text.replace(fault.old, fault.new)


@contextlib.contextmanager
def package_with(fault: Fault | None):
    """-> a temporary folder with a copy of the package that has the fault."""
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "minirlhf", Path(folder) / "minirlhf", ignore=ignored)
        if fault:
            (Path(folder) / "minirlhf" / fault.file).write_text(changed(fault), encoding="utf-8")
        yield Path(folder)


def python(package: Path, *words: object, **options) -> subprocess.CompletedProcess:
    """Start Python with the copy of the package instead of the package."""
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, words)], env=environment, **options)


def run(name: str, folder: Path, seed: int = 0, runs: int = 1, steps: int | None = None, program: str = "") -> None:
    """Write folder/seed-N for each seed.   name: of a fault, or "healthy" with the name of a program."""
    fault = FAULTS.get(name)
    settings = [*(fault.settings if fault else ()), *([f"steps={steps}"] if steps else ())]
    with package_with(fault) as package:
        words = [PROGRAMS, fault.program if fault else program, folder, "--seed", seed, "--runs", runs]
        done = python(package, *words, "--set", *settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")


def is_caught(name: str) -> bool:
    """True if the test that the museum names fails on the copy with the fault."""
    with package_with(FAULTS[name]) as package:
        shutil.copytree(ROOT / "tests", package / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        for other in (".pytest.ini", "examples", "docs"):
            (package / other).symlink_to(ROOT / other)
        words = ["-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", FAULTS[name].test]
        done = python(package, *words, cwd=package, capture_output=True, text=True)
    return done.returncode == 1 and "failed" in done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=FAULTS, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/museum"), help="folder of the run")
    parser.add_argument("--test", action="store_true", help="does the test catch the fault?")
    parser.add_argument("--page", type=Path, metavar="RUNS", help="write docs/museum from the benchmark's runs")
    asked = parser.parse_args()
    if asked.page:
        return pages.write(ROOT / "docs" / "museum", asked.page)
    if not asked.name:
        return print("\n".join(f"{name}: {fault.title}" for name, fault in FAULTS.items()))
    fault = FAULTS[asked.name]
    if asked.test:
        caught = is_caught(asked.name)
        print(f"{fault.test} {'catches' if caught else 'does not catch'} the fault")
        return sys.exit(not caught)
    print(f"minirlhf/{fault.file}\n- {fault.old.strip()}\n+ {fault.new.strip()}\n")
    run(asked.name, asked.output / asked.name, asked.seed, 1, asked.steps)
    doctor([str(asked.output / asked.name / f"seed-{asked.seed}")])


if __name__ == "__main__":
    main()
