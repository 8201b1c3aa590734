"""Processor seconds of the main job by stage, of this tree or of another.

python tests/benchmarks/main_job_stages.py                          # all steps, some minutes
python tests/benchmarks/main_job_stages.py --tree ../old            # a worktree of an older commit
python tests/benchmarks/main_job_stages.py -- --seed 1 --sft.steps 300 --reward_model.steps 300 --ppo.steps 4

Arguments after `--` go to examples/ppo.py. Time in a stage does not count what another stage of the table took in it.
"""

import argparse
import importlib
import runpy
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parents[2]
# stage -> module, class, method
STAGES = {
    "open the job": ("jobs.job", "Job", "make"),
    "SFT steps": ("algorithms.sft", "SFTTrainer", "step"),
    "SFT evaluations": ("algorithms.sft", "SFTTrainer", "evaluate"),
    "reward steps": ("algorithms.reward_model", "RewardTrainer", "step"),
    "reward evaluations": ("algorithms.reward_model", "RewardTrainer", "evaluate"),
    "PPO rollouts": ("algorithms.ppo", "PPOTrainer", "collect"),
    "PPO updates": ("algorithms.ppo", "PPOTrainer", "update"),
    "PPO evaluations": ("jobs.stage", "PolicyStage", "evaluate"),
    "files": ("training.run", "Run", "record"),
}


class Times:
    """Processor seconds and calls of each stage. Of nested stages, the inner one counts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.inner: list[float] = []  # for each stage that runs: the seconds of the stages within it

    def measure(self, stage: str, owner: type, method: str) -> None:
        """Replace a method by one that is timed."""
        function = getattr(owner, method)

        def timed(*args: object, **options: object) -> object:
            started = time.process_time()
            self.inner.append(0.0)
            try:
                return function(*args, **options)
            finally:
                seconds = time.process_time() - started
                self.seconds[stage] += seconds - self.inner.pop()
                self.calls[stage] += 1
                if self.inner:
                    self.inner[-1] += seconds

        setattr(owner, method, timed)

    def table(self, total: float) -> str:
        rows = [(stage, self.calls[stage], self.seconds[stage]) for stage in STAGES if self.calls[stage]]
        rows += [("all else, imports too", 1, total - sum(self.seconds.values())), ("together", 1, total)]
        lines = [f"| {stage} | {calls} | {s:.1f} | {1000 * s / calls:.1f} |" for stage, calls, s in rows]
        return "\n".join(["| stage | calls | processor s | ms a call |", "|---|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", default=HERE, type=Path, help="repository whose main job runs")
    parser.add_argument("arguments", nargs="*", help="arguments of the program")
    options = parser.parse_args()
    sys.path.insert(0, str(options.tree.resolve()))
    times = Times()
    for stage, (module, owner, method) in STAGES.items():
        times.measure(stage, getattr(importlib.import_module(f"minirlhf.{module}"), owner), method)
    program = runpy.run_path(str(options.tree / "examples" / "ppo.py"))["main"]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["ppo.py", "--output", f"{folder}/job", *options.arguments]
        program()
    print(times.table(time.process_time()))


if __name__ == "__main__":
    main()
