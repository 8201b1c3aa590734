"""The commands of docs/multi_node.md run: each machine of the page is a torchrun on this machine."""

import os
import re
import shlex
import stat
import subprocess
import sys

import pytest

from minirlhf.training.checkpoint import is_complete

from ..forks import free_port
from .test_docs import MACHINES, ROOT, TEXT, Workshop

BLOCKS = re.findall(r"^```(?:sh|bash)\n(.*?)^```$", TEXT[MACHINES], re.MULTILINE | re.DOTALL)
STATIC, ELASTIC, SCRIPT = (block.replace("\\\n", " ") for block in BLOCKS)
SRUN = '#!/bin/bash\nfor node in 0 1; do "$@" & pids+=($!); done\nfor pid in ${pids[@]}; do wait $pid || exit; done\n'


@pytest.fixture(scope="module")
def workshop(forks, tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("workshop"), forks)


def here(text, output):
    """The text with this machine's address, a free port, one process for each torchrun, and another folder."""
    changes = {"node0": "127.0.0.1", "29500": str(free_port()), "runs/mine": output}
    changes["--nproc-per-node 8"] = "--nproc-per-node 1"
    for old, new in {**changes, "torchrun ": f"{sys.executable} -m torch.distributed.run "}.items():
        text = text.replace(old, new)
    return text


def start(workshop, words, **options):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | options
    return subprocess.Popen(words, cwd=workshop.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def check(workshop, processes, output):
    texts = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    assert is_complete(workshop.folder / output / "ppo" / "model"), texts


@pytest.mark.slow
@pytest.mark.parametrize("block", [STATIC, ELASTIC], ids=["static", "elastic"])
def test_the_commands_for_two_machines_work(workshop, block):
    output = f"runs/{len(block)}"
    lines = here(block, output).strip().splitlines()
    words = [workshop.with_tiny_settings(shlex.split(line)) for line in lines]
    check(workshop, [start(workshop, each) for each in (words if len(words) == 2 else words * 2)], output)


@pytest.mark.slow
def test_the_script_for_slurm_works_with_stand_ins_for_srun_and_scontrol(workshop):
    stand_ins = workshop.folder / "stand-ins"
    stand_ins.mkdir()
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/bash\nprintf '127.0.0.1\\nnode1\\n'\n"}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(stat.S_IRWXU)
    config = workshop.with_tiny_settings(["python", "examples/ppo.py"])[-1]
    script = here(SCRIPT, "runs/slurm").replace("examples/ppo.py", f"examples/ppo.py --config {config}")
    (workshop.folder / "ppo.sbatch").write_text(script)
    variables = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"}
    path = f"{stand_ins}:{os.environ['PATH']}"
    for _ in range(2):  # the second time the job is finished already
        check(workshop, [start(workshop, ["bash", "ppo.sbatch"], PATH=path, **variables)], "runs/slurm")


def test_the_script_for_slurm_is_bash():
    subprocess.run(["bash", "-n", "-c", SCRIPT], check=True)
    assert SCRIPT.startswith("#!/bin/bash\n#SBATCH ")
