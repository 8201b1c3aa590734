"""Models, rows and trainers small enough for a test, and a program that trains them as one of two or until killed.

python tiny.py ranks FOLDER              one of the processes that RANK and WORLD_SIZE describe: trains every case
python tiny.py killed KIND FOLDER WHEN   a run that dies of SIGKILL: WHEN is a step, or "saving"
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file

from minirlhf.algorithms import PPOConfig, PPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from minirlhf.data import Batches
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, ValueModel
from minirlhf.runtime.distributed import process_group, share
from minirlhf.text.tokenizer import BOS, EOS, PAD, Tokenizer
from minirlhf.training import Run, RunConfig, checkpoint

STEPS = 3


def tokenizer() -> Tokenizer:
    """One token a letter: 30 in all."""
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, *"abcdefghijklmnopqrstuvwxyz", "Ġ"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([PAD, BOS, EOS])
    return Tokenizer(backend)


def transformer(seed: int = 0, dtype: torch.dtype = torch.float64, layers: int = 1, scale: float = 6.0) -> Transformer:
    """Width 16. Weights are `scale` times the usual, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Transformer(ModelConfig(vocab_size=30, intermediate_size=32, max_position_embeddings=64, **shape))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(scale)
    return model.to(dtype)


def rows(n: int, seed: int = 0) -> list[EncodedRow]:
    """n ragged rows that serve every algorithm: prompt, then response or chosen and rejected."""
    rng, words = random.Random(seed), tokenizer()
    texts = [["".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(3)] for _ in range(n)]
    prompts = words.encode_prompts([text[0] for text in texts])
    responses = [words.encode_responses(list(text[1:])) for text in texts]
    keys = ("prompt", "chosen", "rejected")
    return [
        EncodedRow(dict(zip(keys, text, strict=True)) | {"margin": len(text[0]) / 10}, prompt, tuple(pair))
        for text, prompt, pair in zip(texts, prompts, responses, strict=True)
    ]


def batches(batch_size: int, steps: int = STEPS, n: int = 24) -> Batches:
    return Batches(rows(n), batch_size=batch_size, steps=steps, seed=0, stream="tiny")


def likes_e(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    """The toy reward: how many e's, less half the other letters."""
    return [0.15 * text.count("e") - 0.05 * len(text) for text in completions]


def sft(dtype: torch.dtype = torch.float64, updates: int = STEPS, **settings) -> SFTTrainer:
    settings = {"batch_size": 8, "microbatch_tokens": 40, "lr": 3e-2} | settings
    return SFTTrainer(Policy(transformer(dtype=dtype)), tokenizer(), SFTConfig(**settings), updates)


def reward(dtype: torch.dtype = torch.float64, updates: int = STEPS, **settings) -> RewardTrainer:
    settings = {"batch_size": 8, "microbatch_tokens": 80, "lr": 1e-2} | settings
    torch.manual_seed(1)
    return RewardTrainer(RewardModel(transformer(dtype=dtype)), tokenizer(), RewardConfig(**settings), updates)


def ppo(
    dtype: torch.dtype = torch.float64, critic: bool = False, reward: Callable = likes_e, seed: int = 0, **settings
) -> PPOTrainer:
    """A reference that is not quite the policy, so that no KL is 0; `critic`: a separate value model."""
    defaults = {"steps": STEPS, "batch_size": 8, "minibatch_size": 4, "microbatch_tokens": 40, "max_tokens": 10}
    config = PPOConfig(**{**defaults, "lr": 1e-2, **settings})
    policy = Policy(transformer(dtype=dtype), value_head=not critic)
    value_model = ValueModel(transformer(seed=2, dtype=dtype)) if critic else None
    head = (value_model or policy).value_head
    with torch.no_grad():  # a fresh head is 0, and then its trunk has no gradient
        head.weight.normal_(std=0.3)
    reference = Policy(copy.deepcopy(policy.transformer))
    with torch.no_grad():
        reference.transformer.model.norm.weight.mul_(0.8)
    return PPOTrainer(policy, reference, reward, tokenizer(), config, value_model=value_model, seed=seed)


CASES: dict[str, Callable] = {
    "sft": sft,
    "reward": reward,
    "ppo_head": ppo,
    "ppo_critic": lambda: ppo(critic=True),
    "ppo_options": lambda: ppo(
        whiten_rewards=True, value_warmup=1, entropy_coef=0.02, temperature=0.7, kl_coef=0.3, epochs=3, dual_clip=3.0
    ),
    # the first KL is 0.1756, 4% under this target: the controller is not at its bound, so KL itself must agree
    "ppo_adaptive": lambda: ppo(kl_controller="adaptive", kl_target=0.183, kl_horizon=20, kl_coef=0.3, temperature=0.6),
}


def train(trainer, batches: Batches) -> list[dict[str, float]]:
    return [trainer.step(share(batches[k])) for k in range(len(batches))]


def weights(trainer) -> dict[str, torch.Tensor]:
    states = {name: model.state_dict() for name, model in trainer.models.items()}
    return {f"{name}.{key}": value.clone() for name, state in states.items() for key, value in state.items()}


def gradients(trainer, batch: list) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(gradients, metrics) of the first update of a step, which is not taken."""
    seen = []
    trainer.optimizer.step = lambda sums: (
        seen.append(
            (
                {name: p.grad.clone() for name, p in trainer.optimizer.parameters.items() if p.grad is not None},
                {name: float(value) for name, value in sums.items()},
            )
        )
        or trainer.optimizer.zero_grad()
        or {**{name: float(value) for name, value in sums.items()}, "lr": 0.0, "grad_norm": 0.0}
    )
    trainer.step(batch)
    return seen[0]


def go_on(kind: str, folder: str | Path, *, resume: bool = False, after_step: Callable[[int], None] = lambda k: None):
    """A run in a folder, from its start or where it stands: 8 steps, a checkpoint every 3rd, evaluated every 2nd."""
    steps = 8
    trainer = {
        "sft": lambda: sft(torch.float32, steps),
        "ppo": lambda: ppo(torch.float32, steps=steps, kl_controller="adaptive", kl_target=4.0, kl_horizon=20),
    }[kind]()
    held_out = rows(5, seed=9)
    run = Run(
        RunConfig(output=str(folder), resume=resume, eval_every=2, save_every=3),
        trainer,
        batches(8, steps),
        tokenizer=tokenizer(),
        evaluate=(lambda: trainer.evaluate(held_out)) if kind == "sft" else lambda: {"model_reward": trainer.kl.coef},
    )
    for batch in run:
        metrics = trainer.step(batch)
        after_step(run.step)
        run.record(metrics)
    return trainer


def _train_as_rank(folder: Path) -> None:
    with process_group(torch.device("cpu")):
        for name, make in CASES.items():
            trainer = make()
            log = train(trainer, batches(8))
            save_file(weights(trainer), folder / f"{name}-{os.environ['RANK']}.safetensors")
            (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(log))
        try:
            refusal = str(train(ppo(batch_size=6, minibatch_size=3), batches(6)))
        except InputError as error:
            refusal = f"error: {error}"
        (folder / f"odd-{os.environ['RANK']}.txt").write_text(refusal)
        if os.environ["RANK"] == "1":  # the second process comes to every checkpoint late
            place = Run._checkpoint
            Run._checkpoint = lambda self, step: time.sleep(0.3) or place(self, step)
        go_on("ppo", folder / "run")


def _train_until_killed(kind: str, folder: str, when: str) -> None:
    def die(step: int | None = None) -> None:
        if step is None or str(step) == when:
            os.kill(os.getpid(), signal.SIGKILL)

    if when == "saving":  # the second checkpoint is written aside in part, and not yet renamed
        flush, seen = checkpoint._flush, []
        # a checkpoint's own files only: the run's first writes are config.toml and the folder above it
        checkpoint._flush = lambda path: seen.append(path) or flush(path) or (len(seen) > 14 and die())
    go_on(kind, folder, after_step=die)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "ranks":
        _train_as_rank(Path(sys.argv[2]))
    else:
        _train_until_killed(*sys.argv[2:])
