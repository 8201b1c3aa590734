"""minirlhf train PROGRAM: SFT, reward models, PPO and other algorithms. `minirlhf train ppo --help` shows the settings.

minirlhf train ppo --data rows.jsonl         # as `python examples/ppo.py --data rows.jsonl`
minirlhf train --config journey.toml         # the program that the file names: program = "ppo"
torchrun --nproc_per_node 8 -m minirlhf train sft --data rows.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minirlhf.algorithms.distillation import DistillationConfig
from minirlhf.algorithms.dpo import DPOConfig
from minirlhf.algorithms.grpo import GRPOConfig
from minirlhf.algorithms.online_dpo import OnlineDPOConfig
from minirlhf.algorithms.ppo import PPOConfig
from minirlhf.algorithms.process_reward import ProcessRewardConfig
from minirlhf.algorithms.reward_model import RewardConfig
from minirlhf.algorithms.sft import SFTConfig
from minirlhf.algorithms.unpaired import UnpairedConfig
from minirlhf.cli import work
from minirlhf.cli.program import program_of
from minirlhf.extras.diffusion import commands as diffusion
from minirlhf.extras.seq2seq import commands as seq2seq
from minirlhf.jobs import best_of_n as best_of
from minirlhf.jobs import played, programs
from minirlhf.jobs.job import Job
from minirlhf.jobs.labelled import LabelledJobConfig
from minirlhf.jobs.settings import PipelineConfig, RLJobConfig


def train(name: str, argv: list[str]) -> None:
    """Train as the program `name` does; argv: its flags."""
    program = PROGRAMS[name]
    help = f"{program.does}\n\nminirlhf train {name} {program.example}".strip()
    with Job.open(program.folder or name, program.config, help=help, argv=argv, **program.options) as job:
        for part in program.parts(job):
            run = part.open()
            for batch in run:
                run.record(part.trainer.step(batch))


class Program(NamedTuple):
    """What `minirlhf train NAME` runs."""

    does: str  # a line of help
    config: type  # the program's own settings
    parts: Callable[[Job], Iterator[work.Work]]
    options: dict[str, Any]  # of Job.open
    example: str = "--data rows.jsonl"  # flags of an example
    folder: str = ""  # of the output, runs/FOLDER-001; "": the program's name


AFTER_SFT = {"after": ("sft",)}
AFTER_BOTH = {"after": ("sft", "reward")}
GRPO = {"job": programs.GRPOJobConfig, "defaults": programs.GRPO_DEFAULTS}
BEST_OF_N = {"section": "ppo", "job": best_of.BestOfNJobConfig, "defaults": best_of.DEFAULTS}
LLAMA = {"job": programs.LlamaJobConfig, "defaults": programs.LLAMA_DEFAULTS}
LABELLED = {**AFTER_BOTH, "section": "ppo", "job": LabelledJobConfig}
TOOLS = {"job": played.ToolsJobConfig, "defaults": played.TOOLS_DEFAULTS, "task": played.load_sums}
GAME = {"job": played.GameJobConfig, "defaults": played.GAME_DEFAULTS, "task": played.load_game}
STEPS = {"job": programs.ProcessRewardJobConfig, "task": programs.load_steps, "needs": ("steps",)}
PROGRAMS = {
    "sft": Program("supervised fine-tuning", SFTConfig, work.sft, {"needs": ("sft",)}),
    "reward_model": Program(
        "a reward model from pairs",
        RewardConfig,
        work.reward_model,
        {"section": "reward_model", "needs": ("pairs",)},
        folder="reward",
    ),
    "process_reward": Program(
        "a reward model that judges each step of an answer", ProcessRewardConfig, work.process_reward, STEPS
    ),
    "ppo": Program("SFT, reward model, PPO", PPOConfig, work.ppo, {**AFTER_BOTH, "job": PipelineConfig}),
    "best_of_n": Program("PPO, then best-of-n at the same KL", PPOConfig, work.best_of_n, {**AFTER_BOTH, **BEST_OF_N}),
    "grpo": Program("GRPO and its family: groups of completions", GRPOConfig, work.grpo, {**AFTER_BOTH, **GRPO}),
    "tools": Program(
        "GRPO with a calculator that the policy calls",
        GRPOConfig,
        work.tools,
        {**AFTER_SFT, "section": "grpo", **TOOLS},
        example="--policy DIR --data rows.jsonl",
    ),
    "game": Program(
        "a game of several turns, with credit for each turn",
        GRPOConfig,
        work.game,
        {**AFTER_SFT, "section": "grpo", **GAME},
        example="--policy DIR",
    ),
    "dpo": Program("DPO and its family: pairs", DPOConfig, work.dpo, {**AFTER_SFT, "needs": ("pairs",)}),
    "unpaired": Program(
        "KTO, BCO: answers that people liked or not",
        UnpairedConfig,
        work.unpaired,
        {**AFTER_SFT, "needs": ("unpaired",), "task": programs.load_unpaired},
    ),
    "online_dpo": Program(
        "Online DPO, XPO, Nash-MD: pairs of the policy's own answers",
        OnlineDPOConfig,
        work.online_dpo,
        {**AFTER_BOTH, "job": RLJobConfig},
    ),
    "sentiment": Program(
        "positive continuations: PPO against a classifier of sentiment",
        PPOConfig,
        work.labelled,
        {**LABELLED, "task": programs.load_sentiment, "defaults": programs.SENTIMENT_DEFAULTS},
        example="--data reviews",
    ),
    "detoxify": Program(
        "less rude texts: PPO against a classifier of rude and polite texts",
        PPOConfig,
        work.labelled,
        {**LABELLED, "task": programs.load_rudeness, "defaults": programs.DETOXIFY_DEFAULTS},
        example="--data comments",
    ),
    "distillation": Program(
        "learn from a teacher: GKD, MiniLLM",
        DistillationConfig,
        work.distillation,
        {**AFTER_SFT, "needs": ("sft",), "job": programs.DistillationJobConfig, "adapters": False},
    ),
    "multi_adapter": Program(
        "PPO with four models on one frozen base",
        PPOConfig,
        work.multi_adapter,
        {**AFTER_BOTH, "section": "ppo", "needs": ("pairs",), "job": programs.MultiAdapterJobConfig},
        example="--policy DIR --data rows.jsonl",
    ),
    "llama": Program(
        "adapters of a base model: SFT, reward model, PPO, and all merged",
        PPOConfig,
        work.llama,
        {**AFTER_BOTH, **LLAMA, "section": "ppo", "needs": ("sft", "pairs")},
        example="--policy DIR --data votes.jsonl",
    ),
}


# Programs of extras/, with settings and stages of their own: a line of help, and a function of the flags.
EXTRAS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "seq2seq": ("an encoder-decoder such as T5: SFT, PPO", seq2seq.seq2seq),
    "ddpo": ("DDPO: a diffusion model, from scores of its pictures", diffusion.ddpo),
    "alignprop": ("AlignProp: a diffusion model, from the gradient of a reward", diffusion.alignprop),
}


def main(argv: list[str]) -> None:
    does = {name: program.does for name, program in PROGRAMS.items()}
    does |= {name: line for name, (line, _) in EXTRAS.items()}
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, does))
        return print(__doc__.strip(), "", *(f"{name:<{width}}  {line}" for name, line in does.items()), sep="\n")
    name, flags = program_of("train", argv, does)
    if name in EXTRAS:
        EXTRAS[name][1](flags)
    else:
        train(name, flags)
