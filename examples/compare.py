"""Every algorithm on the same SFT model, the same reward and as many sampled tokens, over several seeds.

python examples/compare.py                              # all, 5 seeds: what docs/results.md shows
python examples/compare.py --only grpo,dapo,dpo_sigmoid --seeds 2
python examples/compare.py --list true                  # the names

Each result is a file of its own in the output folder: stop whenever you like, and run the same command to go on. A
result of other settings than these is computed again.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from reward_model import train_reward_model
from sft import train_sft
from tqdm import tqdm

from minirlhf import job
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
from minirlhf.evaluation import Report, win_rate
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import ModelConfig, Policy, copy_of
from minirlhf.rewards import Reward, RewardModelScorer, judge_by
from minirlhf.text import Tokenizer
from minirlhf.training import RunSettings, parse_settings
from minirlhf.training.checkpoint import write_whole

STEPS, COMPLETIONS = 24, 128  # 3,072 completions in all, each of at most MAX_TOKENS
UPDATES = 4  # of each batch: 96 in all
MAX_TOKENS, EVALUATED, KL_COEF = 48, 512, 0.02
OPTIMIZER = {"lr": 1e-3, "lr_final": 0.1}
UNPAIRED_LR = 6e-4  # answers one by one are noisier than pairs: at 1e-3 KTO lost its grammar on one seed
BEST_OF = 4  # completions of a prompt, the best and the worst of which are a pair for the offline algorithms
BETA = {"simpo": 2.0, "alphapo": 2.0, "discopop": 1.0}  # 0.1 for the other offline ones
ONLINE_BETA = 0.3  # its pairs are what the policy writes now: less holds it than pairs that stay
NLL_COEF = 1.0  # of the chosen answer: without it nothing holds the probability of what neither answer says
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # by number of seeds
COMMON = {"steps": STEPS, "completions": COMPLETIONS, "updates": UPDATES, "max_tokens": MAX_TOKENS, "kl_coef": KL_COEF}
COMMON |= {"best_of": BEST_OF, "beta": BETA, "online_beta": ONLINE_BETA, "nll_coef": NLL_COEF, **OPTIMIZER}
COMMON["unpaired_lr"] = UNPAIRED_LR


@dataclass(frozen=True)
class CompareConfig:
    output: str = "runs/compare"  # [folder] results, one file each, and the table
    only: tuple[str, ...] = ()  # [names] a subset; nothing means all
    seeds: int = 5  # [runs] of each
    list: bool = False  # [-] print the names and end


SETTINGS = {"job": CompareConfig}


@dataclass(frozen=True)
class Start:
    """What all algorithms of one seed begin with."""

    seed: int
    tokenizer: Tokenizer
    policy: Policy  # copied before it is trained
    reward: Reward  # in [0, 1]
    prompts: list[EncodedRow]
    evaluate: Callable[[Policy], Report]  # on held-out prompts
    before: Report  # of the SFT model
    pairs: list[EncodedRow]  # the SFT model's own answers, ranked by the reward


def on_policy_trainer(start: Start, name: str) -> tuple[Any, list]:
    """GRPO's family: groups of 8; PPO: one completion a prompt; online preference: two."""
    policy, ref_policy = copy_of(start.policy).requires_grad_(True), copy_of(start.policy)
    common = {**OPTIMIZER, "steps": STEPS, "max_tokens": MAX_TOKENS, "missing_eos_penalty": 0.0}
    parts = start.tokenizer, start.seed
    if name == "ppo":
        sizes = {"batch_size": COMPLETIONS, "minibatch_size": 2 * COMPLETIONS // UPDATES, "epochs": 2}
        config = PPOConfig(**common, **sizes, kl_coef=KL_COEF)
        policy = Policy(policy.transformer, value_head=True)
        trainer = PPOTrainer(policy, ref_policy, start.reward, parts[0], config, seed=parts[1])
    elif name in grpo.ALGORITHMS:
        size = COMPLETIONS // 8
        groups = {"batch_size": size, "minibatch_size": 2 * size // UPDATES, "epochs": 2}
        if grpo.ALGORITHMS[name].surrogate == "reinforce":  # its gradient holds for the policy that sampled, alone
            common["steps"] = UPDATES * STEPS
            groups = {"batch_size": size // UPDATES, "minibatch_size": size // UPDATES, "epochs": 1}
        config = GRPOConfig(algorithm=name, **common, **groups, kl_coef=KL_COEF if name != "bnpo" else 0.0)
        spare = batches_of(start.prompts, config.batch_size, STEPS * max(1, config.recipe.resample), start, "spare")
        trainer = GRPOTrainer(policy, ref_policy, start.reward, parts[0], config, spare=spare, seed=parts[1])
    else:
        size = COMPLETIONS // 2
        sizes = {"batch_size": size, "minibatch_size": 2 * size // UPDATES, "epochs": 2}
        config = OnlineDPOConfig(algorithm=name, beta=ONLINE_BETA, **common, **sizes)
        judge = judge_by(lambda *asked: [4 * score for score in start.reward(*asked)])
        trainer = OnlineDPOTrainer(policy, ref_policy, judge, parts[0], config, seed=parts[1])
    return trainer, batches_of(start.prompts, config.batch_size, config.steps, start, name)


def offline_trainer(start: Start, name: str) -> tuple[Any, list]:
    """DPO's family and single answers: as many updates as the others, a few epochs over the pairs."""
    policy, ref_policy = copy_of(start.policy).requires_grad_(True), copy_of(start.policy)
    family, loss = name.split("_", 1)
    steps, rows = UPDATES * STEPS, start.pairs
    size = COMPLETIONS // BEST_OF
    if family == "unpaired":
        rows, size = single_rows(rows, policy.transformer.config.max_position_embeddings), 2 * size
        optimizer = OPTIMIZER | {"lr": UNPAIRED_LR}
        config = UnpairedConfig(loss=loss, **optimizer, steps=steps, batch_size=size)
        trainer = UnpairedTrainer(policy, ref_policy, start.tokenizer, config, steps, rows=rows)
    else:
        own = {"loss": loss, "beta": BETA.get(loss, 0.1), "nll_coef": NLL_COEF}
        config = DPOConfig(**own, **OPTIMIZER, steps=steps, batch_size=size)
        trainer = DPOTrainer(policy, ref_policy, start.tokenizer, config, steps)
    return trainer, batches_of(rows, size, steps, start, "offline")


def batches_of(rows: list, size: int, steps: int, start: Start, stream: str) -> Batches:
    return Batches(rows, batch_size=size, steps=steps, seed=start.seed, stream=stream)


ON_POLICY = ("ppo", *grpo.ALGORITHMS, "online_dpo", "xpo", "nash_md")
OFFLINE = (*(f"dpo_{loss}" for loss in dpo.LOSSES), *(f"unpaired_{loss}" for loss in ("kto", "apo_zero", "bco")))
TRAINERS: dict[str, Callable[[Start, str], tuple[Any, list]]] = {
    **dict.fromkeys(ON_POLICY, on_policy_trainer),
    **dict.fromkeys(OFFLINE, offline_trainer),
}


def prepare(folder: Path, seed: int) -> Start:
    """SFT, reward model and the pairs of one seed; finished stages are read again."""
    settings = {
        "job": job.JobConfig(output=str(folder), seed=seed, resume=True),
        "model": ModelConfig(),
        "sft": SFTConfig(),
        "reward_model": RewardConfig(),
        "run": RunSettings(),
    }
    common, device = settings["job"], torch.device("cpu")
    task = job.load_task(common)
    tokenizer = job.load_tokenizer(common, task, folder)
    policy = train_sft(settings, task, tokenizer, folder, device)
    base = copy_of(policy).requires_grad_(True).transformer
    model, _ = train_reward_model(settings, task, tokenizer, base, folder, device)
    scorer = RewardModelScorer(model.requires_grad_(False), tokenizer)

    def reward(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        return [1 / (1 + math.exp(-score)) for score in scorer(prompts, completions, rows)]

    rows, held_out = job.encode(common, tokenizer, task, "prompts", (), policy.transformer.config, reserve=MAX_TOKENS)
    pairs = own_pairs(policy, tokenizer, reward, rows, seed)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, stop_ids=tokenizer.eos_ids, batch_size=EVALUATED)
    evaluate = job.evaluator(common, task, tokenizer, held_out[:EVALUATED], sampling, policy, reward)
    return Start(seed, tokenizer, policy, reward, rows, evaluate, evaluate(policy), pairs)


def own_pairs(policy: Policy, tokenizer: Tokenizer, reward: Reward, rows: list, seed: int) -> list[EncodedRow]:
    """As many completions as the others sample, BEST_OF a prompt: the best against the worst, unless all are equal."""
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
    """Train one algorithm, and measure what it writes on held-out prompts."""
    trainer, batches = TRAINERS[name](start, name)
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
    """results.md from all results there are: means and 95% intervals (t distribution) over the seeds."""
    lines = [
        "| algorithm | gold reward (95%) | gain | at least | win rate | KL | grammatical | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for name in names:
        paths = sorted(folder.glob(f"results/{name}-seed-*.json"))
        found = [result for result in map(read_result, paths) if result]
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
    """Half the 95% interval of their mean."""
    if len(values) < 2:
        return math.nan
    return T95.get(len(values), T95[10]) * statistics.stdev(values) / len(values) ** 0.5


def read_result(path: Path) -> dict[str, float] | None:
    """The measures in a result's file, or None if there is none that was made with these settings."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found["measures"] if found.get("common") == COMMON else None


@exits_cleanly
def main() -> None:
    config = parse_settings(SETTINGS, description=__doc__)["job"]
    if config.list:
        return print("\n".join(TRAINERS))
    for name in config.only:
        if name not in TRAINERS:
            raise InputError(f"--only: no algorithm {name!r}; --list true shows them: {', '.join(TRAINERS)}")
    names, folder = list(config.only or TRAINERS), Path(config.output)
    torch.set_num_threads(1)
    (folder / "results").mkdir(parents=True, exist_ok=True)
    todo = [(seed, name) for seed in range(config.seeds) for name in names]
    todo = [(seed, name) for seed, name in todo if not read_result(folder / f"results/{name}-seed-{seed}.json")]
    bar, start = tqdm(todo, unit="run"), None
    for seed, name in bar:
        bar.set_description(f"{name}, seed {seed}")
        if start is None or start.seed != seed:
            start = prepare(folder / f"seed-{seed}", seed)
        result = {"common": COMMON, "measures": measure(start, name)}
        write_whole(folder / f"results/{name}-seed-{seed}.json", json.dumps(result))
    print(write_table(folder, list(TRAINERS)))


if __name__ == "__main__":
    main()
