"""tests/forks.py: a program in a fork does what it does as a new interpreter."""

import pytest

PROGRAM = """
import os, sys, torch
print(__name__, sys.argv, os.environ.get("WORD"), "minirlhf" in sys.modules, sys.stdin.read())
import neighbour
raise SystemExit(neighbour.CODE)
"""


def test_a_file_has_its_arguments_variables_folder_and_exit_code(forks, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "neighbour.py").write_text("CODE = 3")
    program = str(tmp_path / "program.py")
    first, second = forks.run([program, 1], [program], env=[{"WORD": "yes"}, {}])
    assert (first.stdout, first.stderr) == (f"__main__ {[program, '1']} yes False \n", "")
    assert (second.stdout, second.returncode) == (f"__main__ {[program]} None False \n", 3)


def test_errors_and_signals_of_a_line_of_code(forks):
    fails, killed, ends = forks.run(
        ["-c", "import sys; assert sys.argv == ['-c', 'x'], sys.argv; {}['key']", "x"],
        ["-c", "import os; os.kill(os.getpid(), 9)"],
        ["-c", "import atexit; atexit.register(print, 'end')"],
    )
    assert fails.returncode == 1 and fails.stderr.startswith("Traceback") and fails.stderr.endswith("KeyError: 'key'\n")
    assert killed.returncode == -9 and (ends.returncode, ends.stdout) == (0, "end\n")


def test_a_program_that_hangs_is_killed_and_named(forks):
    with pytest.raises(TimeoutError, match="'import time; time.sleep.* not ended after 0.3 s, exit codes .None"):
        forks.run(["-c", "import time; time.sleep(60)"], seconds=0.3)


def test_ranks_find_each_other(forks):
    done = forks.ranks("-c", "import os; print(*(os.environ[x] for x in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR')))")
    assert [process.stdout for process in done] == ["0 2 127.0.0.1\n", "1 2 127.0.0.1\n"]
