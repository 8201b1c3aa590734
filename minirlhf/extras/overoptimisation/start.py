"""The parts that the cells of one seed share: the SFT policy, the rows, the samples and the proxies."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from minirlhf.algorithms import RewardTrainer
from minirlhf.data import Batches, EncodedRow
from minirlhf.errors import InputError
from minirlhf.evaluation import evaluate_policy
from minirlhf.extras.overoptimisation.cells import MEMBERS, SIZES, Cell
from minirlhf.generation import SamplingConfig
from minirlhf.jobs import Job, JobConfig
from minirlhf.model import Policy, RewardModel, Transformer, copy_of
from minirlhf.rewards import Reward
from minirlhf.rewards.best_of import BestOfN, Samples
from minirlhf.rewards.ensemble import Ensemble
from minirlhf.rewards.scoring import RewardModelScorer
from minirlhf.runtime import seed_everything
from minirlhf.training import RunSettings


@dataclass(frozen=True)
class Standardised:
    """A reward in the unit of Gao et al.: mean 0 and standard deviation 1 over samples of the SFT policy.

    So a KL coefficient means the same for every proxy, and gold reward and proxy fit on one axis.
    """

    reward: Reward
    mean: float
    std: float

    @classmethod
    def over(cls, reward: Reward, samples: Samples) -> Standardised:
        scores = reward(*samples.flat)
        return cls(reward, statistics.fmean(scores), statistics.pstdev(scores) or 1.0)  # a constant is only shifted

    def __call__(self, prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        return [(score - self.mean) / self.std for score in self.reward(prompts, completions, rows)]


@dataclass(frozen=True)
class Start:
    """The policy and the rows of one seed. A proxy is made when a cell first needs it, and kept in memory."""

    seed: int
    settings: dict[str, Any]  # section -> dataclass
    job: Job
    policy: Policy  # the SFT model: every distance is measured from it
    prompts: list[EncodedRow]
    held_out: list[EncodedRow]
    pairs: list[EncodedRow]  # the comparisons, ranked by the gold reward; 5% of the labels are wrong
    held_out_pairs: list[EncodedRow]
    samples: Samples  # of the SFT policy, to standardise rewards
    made: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, settings: dict[str, Any], seed: int) -> Start:
        """Train the SFT policy in this folder, or load it if an earlier start of the lab trained it.

        Raises: InputError if fewer prompts are held out than are to be evaluated.
        """
        common = JobConfig(output=str(folder), seed=seed, resume=folder.exists(), device="cpu")
        sections = {name: settings[name] for name in ("model", "sft", "reward_model")}
        sections |= {"job": common, "run": RunSettings(eval_every=0)}
        job = Job.make("overoptimisation", "reward_model", sections, torch.device("cpu"))
        policy = job.policy().requires_grad_(False)
        shape = policy.transformer.config
        prompts, held_out = job.rows("prompts", shape, reserve=settings["ppo"].max_tokens)
        pairs, held_out_pairs = job.rows("pairs", shape)
        if (evaluated := settings["job"].evaluated) > len(held_out):
            raise InputError(f"--evaluated: needed at most {len(held_out):,}, all held-out prompts, got {evaluated:,}")
        sampling = settings["ppo"].sampling(job.tokenizer.eos_ids)
        sampler = BestOfN(policy, gold_of(job), 1, job.tokenizer, sampling, seed)
        samples = sampler(prompts[:evaluated])
        rows = prompts, held_out[:evaluated], pairs, held_out_pairs
        return cls(seed, settings, job, policy, *rows, samples)

    @property
    def sampling(self) -> SamplingConfig:
        return self.settings["ppo"].sampling(self.job.tokenizer.eos_ids)

    @property
    def gold(self) -> Reward:
        return self._once("gold", lambda: Standardised.over(gold_of(self.job), self.samples))

    @property
    def pool(self) -> Samples:
        """Many samples of few held-out prompts; their scores are gold rewards. All proxies rank the same samples."""
        job = self.settings["job"]
        sampler = BestOfN(self.policy, self.gold, job.best_of, self.job.tokenizer, self.sampling, self.seed)
        return self._once("pool", lambda: sampler(self.held_out[: job.best_of_prompts]))

    def student(self, value_head: bool = False) -> Policy:
        """A copy of the SFT policy, to be trained."""
        seed_everything(self.seed)  # the value head is random
        return Policy(copy_of(self.policy).requires_grad_(True).transformer, value_head=value_head)

    def proxy(self, cell: Cell) -> Standardised:
        """The learned reward of a cell, standardised."""
        key = cell.comparisons, cell.size, cell.ensemble
        return self._once(key, lambda: Standardised.over(self._proxy(cell), self.samples))

    def accuracy(self, cell: Cell) -> float:
        """The accuracy of the proxy's first reward model on held-out pairs."""
        return self._reward_model(cell, 0)[1]

    def point(self, policy: Policy, proxy: Reward | None) -> dict[str, float | None]:
        """KL to the SFT policy [nats], gold reward and proxy [standard deviations], on held-out prompts."""
        fixed = {"reward": proxy, "ref_policy": self.policy, "gold": self.job.task.gold, "seed": self.seed}
        found = evaluate_policy(policy, self.job.tokenizer, self.held_out, self.sampling, **fixed).measures
        gold = (found["gold_reward"] - self.gold.mean) / self.gold.std
        measures = {"kl": found["kl"], "gold": gold, "proxy": found["model_reward"]}
        return {**measures, "grammatical": found["grammatical"]}

    def _proxy(self, cell: Cell) -> Reward:
        if cell.ensemble == "none":
            return self._reward_model(cell, 0)[0]
        members = [self._reward_model(cell, member)[0] for member in range(MEMBERS)]
        return Ensemble([Standardised.over(member, self.samples) for member in members], cell.ensemble)

    def _reward_model(self, cell: Cell, member: int) -> tuple[RewardModelScorer, float]:
        return self._once((cell.comparisons, cell.size, member), lambda: self._trained(cell, member))

    def _trained(self, cell: Cell, member: int) -> tuple[RewardModelScorer, float]:
        """A reward model with random first weights, trained on the first comparisons -> (its scores, its accuracy).

        Members of an ensemble differ in their weights and in the order of the comparisons.
        """
        seed_everything(MEMBERS * self.seed + member)
        model = RewardModel(Transformer(replace(self.policy.transformer.config, **SIZES[cell.size])))
        config, pairs = self.settings["reward_model"], self.pairs[: cell.comparisons]
        batches = Batches.of(pairs, config, seed=self.seed, stream=f"comparisons of member {member}")
        trainer = RewardTrainer(model, self.job.tokenizer, config, updates=len(batches))
        for batch in batches:
            trainer.step(batch)
        model.requires_grad_(False)
        return RewardModelScorer(model, self.job.tokenizer), trainer.evaluate(self.held_out_pairs)["accuracy"]

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


def gold_of(job: Job) -> Reward:
    """The gold reward as a reward function."""
    return lambda prompts, completions, rows: job.task.gold(prompts, completions, rows)["gold_reward"]
