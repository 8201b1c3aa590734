"""Memory that a step freed is there for the next: counted in pages that the system cleared."""

import pytest

PROGRAM = """
import resource, sys, torch
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.training.optimizer import Optimizer, OptimizerConfig

def pages(size):  # that the system clears for a tensor of `size` bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(size // 4).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "train":
    Optimizer({"policy": Policy(Transformer(ModelConfig(50, 16, 1, 2, 1, 16)))}, OptimizerConfig(), 1)
print([pages(2**26) for _ in range(3)][-1])
"""


CAN = "from minirlhf.runtime.allocator import keep_freed_memory; print(keep_freed_memory())"


def test_training_keeps_the_memory_that_it_freed(forks):
    variables = {"MALLOC_MMAP_THRESHOLD_": str(2**25)}
    tunables = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={2**25}"}
    runs = [["-c", PROGRAM, word] for word in ("train", "sample", "train")]
    done = forks.run(*runs, ["-c", CAN], ["-c", CAN], env=[{}, {}, variables, {}, tunables])
    assert [program.returncode for program in done] == [0, 0, 0, 0, 0], done[0].stderr
    kept, given_back, as_the_user_set = (int(program.stdout) for program in done[:3])
    if done[3].stdout.strip() == "False":
        pytest.skip("a C library without mallopt")
    assert kept < 100  # of 16,384
    assert given_back > 2**26 / 2**16  # a page has at most 64 KiB
    assert as_the_user_set > 100
    assert done[4].stdout.strip() == "False"
