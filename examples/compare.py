"""All algorithms compared: the same SFT model, reward, number of tokens.

python examples/compare.py              # all, 5 seeds, as in docs/results.md
python examples/compare.py --only grpo,dapo,dpo_sigmoid --seeds 2
python examples/compare.py --list true  # the names

Each result is a file in the output folder. Stop whenever you like: the same
command goes on. A result that was computed with other settings is computed
again.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    OnlineDPOConfig,
    OnlineDPOTrainer,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    SFTConfig,
    UnpairedConfig,
    UnpairedTrainer,
    dpo,
    grpo,
)
from minirlhf.algorithms.unpaired import single_rows
from minirlhf.data import Batches
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError, exits_cleanly
from minirlhf.evaluation import Report, evaluate_policy, win_rate
from minirlhf.generation import SamplingConfig, generate
from minirlhf.jobs import Job, JobConfig
from minirlhf.model import ModelConfig, Policy, copy_of
from minirlhf.rewards import Reward, judge_by
from minirlhf.text import Tokenizer
from minirlhf.training import RunSettings, parse_settings
from minirlhf.training.checkpoint import write_whole

STEPS, COMPLETIONS = 24, 128  # 3,072 completions in all, each with at most MAX_TOKENS tokens
UPDATES = 4  # of each batch: 96 in all
MAX_TOKENS, EVALUATED, KL_COEF = 48, 512, 0.02
OPTIMIZER = {"lr": 1e-3, "lr_final": 0.1}
UNPAIRED_LR = 6e-4  # single answers are noisier than pairs: at 1e-3 KTO lost its grammar on one seed
BEST_OF = 4  # completions of a prompt; the best and the worst are a pair for the offline algorithms
BETA = {"simpo": 2.0, "alphapo": 2.0, "discopop": 1.0}  # 0.1 for all other offline losses
ONLINE_BETA = 0.3  # online pairs move with the policy, so a larger beta must hold it
NLL_COEF = 1.0  # of the chosen answer; without it, texts outside of the pairs gain probability
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # by number of seeds
COMMON = {"steps": STEPS, "completions": COMPLETIONS, "updates": UPDATES, "max_tokens": MAX_TOKENS, "kl_coef": KL_COEF}
COMMON |= {"best_of": BEST_OF, "beta": BETA, "online_beta": ONLINE_BETA, "nll_coef": NLL_COEF, **OPTIMIZER}
COMMON["unpaired_lr"] = UNPAIRED_LR


@dataclass(frozen=True)
class CompareConfig:
    output: str = "runs/compare"  # [folder] results, one file each, and the table
    only: tuple[str, ...] = ()  # [names] a subset; default: all
    seeds: int = 5  # [runs] of each algorithm
    list: bool = False  # [-] print the names and end


@dataclass(frozen=True)
class Start:
    """The start that all algorithms of a seed share."""

    seed: int
    tokenizer: Tokenizer
    policy: Policy  # the SFT model; each algorithm trains a copy
    reward: Reward  # in [0, 1]
    prompts: list[EncodedRow]
    evaluate: Callable[[Policy], Report]  # on held-out prompts
    before: Report  # of the SFT model
    pairs: list[EncodedRow]  # the SFT model's own answers, ranked by the reward

    def student(self) -> Policy:
        """A copy of the SFT model, to be trained."""
        return copy_of(self.policy).requires_grad_(True)

    def reference(self) -> Policy:
        return copy_of(self.policy)

    def batches(self, rows: list, config: Any, stream: str, steps: int | None = None) -> Batches:
        steps = steps or config.steps
        return Batches(rows, batch_size=config.batch_size, steps=steps, seed=self.seed, stream=stream)


@dataclass(frozen=True)
class Recipe:
    """The trainer and the settings of one algorithm."""

    family: str  # a key of TRAINERS
    changes: dict[str, Any]  # the settings that differ from the family's defaults


def sizes(completions_per_prompt: int, epochs: int = 2) -> dict[str, int]:
    """A batch of COMPLETIONS completions, learned in UPDATES updates."""
    prompts = COMPLETIONS // completions_per_prompt
    return {"batch_size": prompts, "minibatch_size": epochs * prompts // UPDATES, "epochs": epochs}


def on_policy(**changes: Any) -> dict[str, Any]:
    return {**OPTIMIZER, "steps": STEPS, "max_tokens": MAX_TOKENS, "missing_eos_penalty": 0.0, **changes}


def grpo_settings(name: str) -> dict[str, Any]:
    """Groups of 8. The reinforce surrogate is exact only for the policy that sampled: one update for each batch."""
    changes = on_policy(algorithm=name, kl_coef=KL_COEF if name != "bnpo" else 0.0, **sizes(8))
    return {**changes, **single_updates(8)} if GRPOConfig(algorithm=name).recipe.surrogate == "reinforce" else changes


def single_updates(completions_per_prompt: int) -> dict[str, int]:
    """The completions and updates of `sizes`, with smaller batches: each batch is learned in one update."""
    prompts = COMPLETIONS // completions_per_prompt // UPDATES
    return {"steps": UPDATES * STEPS, "batch_size": prompts, "minibatch_size": prompts, "epochs": 1}


def online_settings(name: str) -> dict[str, Any]:
    """Nash-MD is a policy gradient without a ratio: one update for each batch."""
    changes = on_policy(algorithm=name, beta=ONLINE_BETA, **sizes(2))
    return {**changes, **single_updates(2)} if name == "nash_md" else changes


def dpo_settings(loss: str) -> dict[str, Any]:
    return {"loss": loss, "beta": BETA.get(loss, 0.1), "nll_coef": NLL_COEF, **OPTIMIZER, **offline_sizes(1)}


def offline_sizes(rows_per_pair: int) -> dict[str, int]:
    """The same number of updates as on-policy algorithms make."""
    return {"steps": UPDATES * STEPS, "batch_size": rows_per_pair * COMPLETIONS // BEST_OF}


def recipes() -> dict[str, Recipe]:
    """Name -> recipe, for all algorithms that are compared."""
    unpaired = {**OPTIMIZER, "lr": UNPAIRED_LR, **offline_sizes(2)}
    return {
        "ppo": Recipe("ppo", on_policy(kl_coef=KL_COEF, **sizes(1))),
        **{name: Recipe("grpo", grpo_settings(name)) for name in grpo.ALGORITHMS},
        **{name: Recipe("online_dpo", online_settings(name)) for name in ("online_dpo", "xpo", "nash_md")},
        **{f"dpo_{loss}": Recipe("dpo", dpo_settings(loss)) for loss in dpo.LOSSES},
        **{f"unpaired_{loss}": Recipe("unpaired", {"loss": loss, **unpaired}) for loss in ("kto", "apo_zero", "bco")},
    }


Made = tuple[Any, Batches]  # trainer, batches


def ppo_trainer(start: Start, changes: dict[str, Any]) -> Made:
    config = PPOConfig(**changes)
    policy = Policy(start.student().transformer, value_head=True)
    trainer = PPOTrainer(policy, start.reference(), start.reward, start.tokenizer, config, seed=start.seed)
    return trainer, start.batches(start.prompts, config, "ppo")


def grpo_trainer(start: Start, changes: dict[str, Any]) -> Made:
    config = GRPOConfig(**changes)
    spare = start.batches(start.prompts, config, "spare", steps=STEPS * max(1, config.recipe.resample))
    models = start.student(), start.reference()
    trainer = GRPOTrainer(*models, start.reward, start.tokenizer, config, spare=spare, seed=start.seed)
    return trainer, start.batches(start.prompts, config, config.algorithm)


def online_trainer(start: Start, changes: dict[str, Any]) -> Made:
    config = OnlineDPOConfig(**changes)
    judge = judge_by(lambda *asked: [4 * score for score in start.reward(*asked)])
    trainer = OnlineDPOTrainer(start.student(), start.reference(), judge, start.tokenizer, config, seed=start.seed)
    return trainer, start.batches(start.prompts, config, config.algorithm)


def dpo_trainer(start: Start, changes: dict[str, Any]) -> Made:
    config = DPOConfig(**changes)
    trainer = DPOTrainer(start.student(), start.reference(), start.tokenizer, config, config.steps)
    return trainer, start.batches(start.pairs, config, "offline")


def unpaired_trainer(start: Start, changes: dict[str, Any]) -> Made:
    config = UnpairedConfig(**changes)
    rows = single_rows(start.pairs, start.policy.transformer.config.max_position_embeddings)
    models = start.student(), start.reference()
    trainer = UnpairedTrainer(*models, start.tokenizer, config, config.steps, rows=rows)
    return trainer, start.batches(rows, config, "offline")


TRAINERS: dict[str, Callable[[Start, dict[str, Any]], Made]] = {
    "ppo": ppo_trainer,
    "grpo": grpo_trainer,
    "online_dpo": online_trainer,
    "dpo": dpo_trainer,
    "unpaired": unpaired_trainer,
}


def prepare(folder: Path, seed: int) -> Start:
    """SFT, reward model and the pairs of one seed. Finished stages are loaded."""
    settings = {
        "job": JobConfig(output=str(folder), seed=seed, resume=folder.exists()),
        "model": ModelConfig(),
        "sft": SFTConfig(),
        "reward_model": RewardConfig(steps=800, batch_size=64, lr=4e-3, weight_decay=0.0),  # of the table in docs
        "run": RunSettings(),
    }
    job = Job.make("compare", "reward_model", settings, torch.device("cpu"))
    policy = job.policy()
    scorer, _ = job.reward(policy)
    scorer.model.requires_grad_(False)

    def reward(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        return [1 / (1 + math.exp(-score)) for score in scorer(prompts, completions, rows)]

    rows, held_out = job.rows("prompts", policy.transformer.config, reserve=MAX_TOKENS)
    pairs = own_pairs(policy, job.tokenizer, reward, rows, seed)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, stop_ids=job.tokenizer.eos_ids, batch_size=EVALUATED)

    def evaluate(student: Policy) -> Report:
        fixed = {"reward": reward, "ref_policy": policy, "gold": job.task.gold, "seed": seed}
        return evaluate_policy(student, job.tokenizer, held_out[:EVALUATED], sampling, **fixed)

    return Start(seed, job.tokenizer, policy, reward, rows, evaluate, evaluate(policy), pairs)


def own_pairs(policy: Policy, tokenizer: Tokenizer, reward: Reward, rows: list, seed: int) -> list[EncodedRow]:
    """Sample BEST_OF completions of each prompt: the best and the worst are a pair, unless their scores are equal."""
    batches = Batches(rows, batch_size=COMPLETIONS // BEST_OF, steps=STEPS, seed=seed, stream="pairs")
    draws = [draw for batch in batches for draw in batch]
    samples = [draw for draw in draws for _ in range(BEST_OF)]
    keys = [(draw.epoch, draw.index, i) for draw in draws for i in range(BEST_OF)]
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, stop_ids=tokenizer.eos_ids, batch_size=512)
    prompts, sources = [draw.row.prompt for draw in samples], [draw.row.source for draw in samples]
    ids = [c.ids for c in generate(policy.transformer, prompts, sampling, seed=seed, stream="pairs", keys=keys)]
    scores = reward([source["prompt"] for source in sources], tokenizer.decode_completions(ids), sources)
    pairs = []
    for i, draw in enumerate(draws):
        ranked = sorted(range(BEST_OF * i, BEST_OF * (i + 1)), key=scores.__getitem__)
        if scores[ranked[0]] < scores[ranked[-1]]:
            pairs.append(EncodedRow(draw.row.source, draw.row.prompt, (ids[ranked[-1]], ids[ranked[0]])))
    return pairs


def measure(start: Start, name: str) -> dict[str, float]:
    """Train an algorithm, and measure its completions of held-out prompts."""
    recipe = recipes()[name]
    trainer, batches = TRAINERS[recipe.family](start, recipe.changes)
    began = time.perf_counter()
    for batch in batches:
        trainer.step(batch)
    seconds = time.perf_counter() - began
    after = start.evaluate(trainer.models["policy"])
    measures = {key: after.measures[key] for key in ("gold_reward", "grammatical", "kl", "model_reward", "length")}
    return {
        **measures,
        "before": start.before.measures["gold_reward"],
        "win_rate": win_rate(start.before, after),
        "seconds": seconds,
    }


def write_table(folder: Path, names: list[str]) -> str:
    """Write results.md from all result files: means and 95% intervals (t distribution) over the seeds."""
    lines = [
        "| algorithm | gold reward (95%) | gain | at least | win rate | KL | grammatical | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for name in names:
        paths = sorted(folder.glob(f"results/{name}-seed-*.json"))
        found = [result for path in paths if (result := read_result(path, name))]
        if not found:
            continue
        mean = {key: statistics.mean(result[key] for result in found) for key in found[0]}
        gains = [result["gold_reward"] - result["before"] for result in found]
        cells = [
            f"{mean['gold_reward']:.2f} ± {margin([result['gold_reward'] for result in found]):.2f}",
            f"{statistics.mean(gains):+.2f}",
            f"{statistics.mean(gains) - margin(gains):+.2f}",
            f"{mean['win_rate']:.2f}",
            f"{mean['kl']:.1f}",
            f"{mean['grammatical']:.2f}",
            f"{mean['seconds']:.0f}",
            str(len(found)),
        ]
        rows.append((mean["gold_reward"], f"| {name} | " + " | ".join(cells) + " |"))
    lines += [line for _, line in sorted(rows, reverse=True)]
    text = "\n".join(lines) + "\n"
    write_whole(folder / "results.md", text)
    return text


def margin(values: list[float]) -> float:
    """Half the 95% interval of the mean of the values."""
    if len(values) < 2:
        return math.nan
    return T95.get(len(values), T95[10]) * statistics.stdev(values) / len(values) ** 0.5


def settings_of(name: str) -> dict[str, Any]:
    return {**COMMON, **recipes()[name].changes}


def read_result(path: Path, name: str) -> dict[str, float] | None:
    """The measures in a result file, or None if the file is missing or was computed with other settings."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found["measures"] if found.get("settings") == settings_of(name) else None


@exits_cleanly
def main() -> None:
    config = parse_settings({"job": CompareConfig}, description=__doc__)["job"]
    known = list(recipes())
    if config.list:
        return print("\n".join(known))
    for name in config.only:
        if name not in known:
            raise InputError(f"--only: no algorithm {name!r}; --list true shows them: {', '.join(known)}")
    names, folder = list(config.only or known), Path(config.output)
    torch.set_num_threads(1)
    (folder / "results").mkdir(parents=True, exist_ok=True)
    todo = [(seed, name) for seed in range(config.seeds) for name in names]
    todo = [(seed, name) for seed, name in todo if not read_result(folder / f"results/{name}-seed-{seed}.json", name)]
    bar, start = tqdm(todo, unit="run"), None
    for seed, name in bar:
        bar.set_description(f"{name}, seed {seed}")
        if start is None or start.seed != seed:
            start = prepare(folder / f"seed-{seed}", seed)
        result = {"settings": settings_of(name), "measures": measure(start, name)}
        write_whole(folder / f"results/{name}-seed-{seed}.json", json.dumps(result))
    print(write_table(folder, known))


if __name__ == "__main__":
    main()
