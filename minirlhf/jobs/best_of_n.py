"""Best-of-n against PPO: the gold reward of both at the same KL to the policy before PPO."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minirlhf.errors import check_range
from minirlhf.evaluation.policies import Report
from minirlhf.jobs.settings import PipelineConfig
from minirlhf.jobs.stage import PolicyStage
from minirlhf.rewards.best_of import REASON, BestOfN, best_of_each, kl_bound
from minirlhf.training.checkpoint import write_whole
from minirlhf.training.run import finished_model
from minirlhf.training.table import table


@dataclass(frozen=True)
class BestOfNJobConfig(PipelineConfig):
    best_of: int = 64  # [completions] of each prompt, at most
    best_of_prompts: int = 256  # [prompts] held out
    plays: ClassVar[bool] = False  # the samples of the best of n are completions, not episodes
    one_process: ClassVar[str] = "best_of_n samples in one process"  # the reason for `check_parallel`

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "best_of", "best_of_prompts", least=1)


# A smaller reward model and a shorter PPO than those of the main job
DEFAULTS = {
    **{"reward_model.steps": 800, "reward_model.batch_size": 64, "reward_model.lr": 4e-3},
    **{"reward_model.weight_decay": 0.0, "ppo.steps": 30, "ppo.kl_coef": 0.05},
}


def compare_with_ppo(stage: PolicyStage, before: Report, after: Report) -> str:
    """Sample the reference, print both curves, and write best_of_n.json into the folder of the job."""
    job, common = stage.job, stage.job.common
    if not finished_model(stage.folder):
        return ""  # a rehearsal trains nothing
    sampler = BestOfN(stage.reference, stage.reward, common.best_of, job.tokenizer, stage.sampling, job.seed)
    samples = sampler(stage.prompts[: common.best_of_prompts])
    scores = best_of_each(samples.scores).tolist()
    gold = job.task.gold and samples.measured(job.task.gold(*samples.flat)["gold_reward"])
    golds = best_of_each(samples.scores, gold).tolist() if gold is not None else [None] * common.best_of
    during = curve(stage.folder / "metrics.jsonl")
    ppo = [{"steps": 0, **point(before.measures)}, *[row for row in during if row["steps"] < job.config.steps]]
    ppo.append({"steps": job.config.steps, **point(after.measures)})
    found = [
        {"n": n, "kl_bound": kl_bound(n), "reward": scores[n - 1], "gold": golds[n - 1]} for n in powers(common.best_of)
    ]
    write_whole(job.folder / "best_of_n.json", json.dumps({"best_of_n": found, "ppo": ppo}, indent=1) + "\n")
    header = ["best of n", "KL bound", "reward", "gold", "PPO's gold at this KL"]
    rows = [[str(row["n"]), row["kl_bound"], row["reward"], row["gold"], at_kl(ppo, row["kl_bound"])] for row in found]
    steps = [[str(row["steps"]), row["kl"], row["reward"], row["gold"]] for row in ppo]
    return f"{table(header, rows)}\n{REASON}\n\n{table(['PPO steps', 'KL', 'reward', 'gold'], steps)}"


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most`."""
    return sorted({2**k for k in range(most.bit_length())} | {most})


def curve(path: Path) -> list[dict[str, float | None]]:
    """The evaluations during the run, from its metrics.jsonl: steps, KL, reward, gold."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    evaluated = [line for line in lines if "eval/kl" in line]
    names = {name: name.removeprefix("eval/") for line in evaluated for name in line if name.startswith("eval/")}
    return [
        {"steps": line["step"] + 1, **point({short: line.get(name) for name, short in names.items()})}
        for line in evaluated
    ]


def point(measures: dict[str, float | None]) -> dict[str, float | None]:
    return {"kl": measures["kl"], "reward": measures["model_reward"], "gold": measures.get("gold_reward")}


def at_kl(curve: list[dict[str, float | None]], kl: float) -> float | None:
    """The gold reward of the curve where it first reaches this KL, on a straight line between two points."""
    kl = max(kl, curve[0]["kl"])  # the KL before PPO is 0 but for rounding
    for a, b in zip(curve, curve[1:], strict=False):
        if a["gold"] is not None and a["kl"] <= kl <= b["kl"] and a["kl"] < b["kl"]:
            return a["gold"] + (b["gold"] - a["gold"]) * (kl - a["kl"]) / (b["kl"] - a["kl"])
    return None
