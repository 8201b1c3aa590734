"""A cell to a curve: the gold reward and the proxy at growing distances from the SFT policy.

A point is {kl, gold, proxy, grammatical}; see `Start.point`. The first point is the SFT policy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minirlhf.algorithms import DPOTrainer, PPOTrainer
from minirlhf.data import Batches
from minirlhf.extras.overoptimisation.cells import Cell
from minirlhf.extras.overoptimisation.start import Start
from minirlhf.jobs.best_of_n import powers
from minirlhf.rewards.best_of import best_of_each, kl_bound

EVALUATIONS = 15  # in a run of PPO
EPOCHS = (0.125, 0.25, 0.5, 1, 2, 3, 4, 6, 8)  # of DPO, up to the settings' own


def best_of_n(start: Start, cell: Cell) -> list[dict[str, Any]]:
    """n = 1, 2, 4, ... from one pool of samples: the mean over all subsets of n samples, unbiased."""
    samples = start.pool
    proxy = samples.measured(start.proxy(cell)(*samples.flat))
    golds, proxies = best_of_each(proxy, samples.scores).tolist(), best_of_each(proxy).tolist()
    return [
        {"n": n, "kl": kl_bound(n), "gold": golds[n - 1], "proxy": proxies[n - 1]}
        for n in powers(start.settings["job"].best_of)
    ]


def ppo(start: Start, cell: Cell) -> list[dict[str, Any]]:
    """PPO against the proxy, evaluated during the run."""
    config, proxy = replace(start.settings["ppo"], kl_coef=cell.kl_coef), start.proxy(cell)
    policy = start.student(value_head=True)
    trainer = PPOTrainer(policy, start.policy, proxy, start.job.tokenizer, config, seed=start.seed)
    batches = Batches.of(start.prompts, config, seed=start.seed, stream="ppo")
    points, every = [{"step": 0, **start.point(policy, proxy)}], max(1, len(batches) // EVALUATIONS)
    for step, batch in enumerate(batches, 1):
        trainer.step(batch)
        if step % every == 0 or step == len(batches):
            points.append({"step": step, **start.point(policy, proxy)})
    return points


def dpo(start: Start, cell: Cell) -> list[dict[str, Any]]:
    """DPO on the comparisons that the proxies learn from, evaluated by epoch. It has no proxy but itself."""
    config, policy = start.settings["dpo"], start.student()
    batches = Batches.of(start.pairs[: cell.comparisons], config, seed=start.seed, stream="dpo")
    trainer = DPOTrainer(policy, start.policy, start.job.tokenizer, config, updates=len(batches))
    in_epoch = cell.comparisons / config.batch_size
    measured = {round(epochs * in_epoch): epochs for epochs in EPOCHS} | {len(batches): len(batches) / in_epoch}
    points = [{"epoch": 0, **start.point(policy, None)}]
    for step, batch in enumerate(batches, 1):
        trainer.step(batch)
        if step in measured:
            points.append({"epoch": measured[step], **start.point(policy, None)})
    return points


MEASURES = {"best_of_n": best_of_n, "ppo": ppo, "dpo": dpo}


def measure(start: Start, cell: Cell) -> dict[str, Any]:
    """{points, accuracy}: the curve of a cell, and the accuracy of its reward model; None without a proxy."""
    points = MEASURES[cell.method](start, cell)
    return {"points": points, "accuracy": None if cell.method == "dpo" else start.accuracy(cell)}
