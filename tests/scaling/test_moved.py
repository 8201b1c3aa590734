"""A run goes on with another number of processes and another strategy; damage of its checkpoints ends all processes."""

import subprocess
import sys

import damaged
import moved
import pytest


def last_lines(module, *arguments):
    """(exit code, output) of a program of this folder."""
    done = subprocess.run([sys.executable, module.__file__, *arguments], capture_output=True, text=True, timeout=1800)
    return done.returncode, done.stdout + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_run_that_goes_on_in_another_layout_ends_with_the_same_weights(kind):
    code, output = last_lines(moved, "--runs", kind)
    assert code == 0 and output.count(f"| {kind} |") == len(moved.MOVES), output


@pytest.mark.slow
def test_damage_of_a_checkpoint_in_slices_ends_both_processes_with_one_line():
    code, output = last_lines(damaged)
    count = len(damaged.DAMAGE)
    assert code == 0 and f"{count} of {count} damaged checkpoints were named by one line" in output, output
