"""Small runs of each algorithm, of the size of examples/letter_e.py: the museum's runs.

python programs.py NAME FOLDER [--seed S] [--runs N] [--steps K] [--set lr=0.1]

Run N is written to FOLDER/seed-S. A random network with 30 tokens learns to write the letter e, and to end. This file
imports nothing of the tests, because it runs with a copy of the package that holds a fault.
"""

import argparse
import ast
import dataclasses
import random
from pathlib import Path

import tokenizers

from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from minirlhf.data import Batches, EncodedRow
from minirlhf.evaluation import evaluate_policy
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, copy_of
from minirlhf.runtime import session
from minirlhf.text.tokenizer import BOS, EOS, PAD, Tokenizer
from minirlhf.training import Run, RunConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"vocab_size": 30, "intermediate_size": 64, "max_position_embeddings": 40}
ON_POLICY = {"steps": 50, "batch_size": 64, "minibatch_size": 32, "max_tokens": 10, "missing_eos_penalty": 0.2}
CONFIGS = {
    "ppo": PPOConfig(**ON_POLICY, epochs=2, lr=2e-3, kl_coef=0.04),
    "grpo": GRPOConfig(
        **ON_POLICY | {"batch_size": 8, "minibatch_size": 4, "missing_eos_penalty": 0.8},
        epochs=2,
        group_size=8,
        lr=2e-3,
        kl_coef=0.03,
    ),
    "sft": SFTConfig(steps=150, batch_size=16, lr=5e-3, max_epochs=100.0),
    "reward_model": RewardConfig(steps=100, batch_size=32, lr=2e-3, max_epochs=100.0),
    "dpo": DPOConfig(steps=100, batch_size=32, lr=1e-3, max_epochs=100.0, beta=0.1),
}


def letter_tokenizer() -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, *LETTERS, "Ġ"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([PAD, BOS, EOS])
    return Tokenizer(backend)


def share_of_e(prompts, completions, rows):
    return [text.count("e") / max(len(text), 6) for text in completions]  # six are enough


def gold(prompts, completions, rows):
    return {"gold_reward": share_of_e(prompts, completions, rows)}


def encoded(tokenizer: Tokenizer, n: int, seed: int) -> list[EncodedRow]:
    """n rows: a prompt of 1 to 9 letters, an answer with more e, and an answer with fewer e, of other lengths."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        prompt = "".join(rng.choices(LETTERS, k=rng.randint(1, 9)))
        pair = ["".join(rng.choices("eeabcd", k=rng.randint(1, 9))) for _ in range(2)]
        chosen, rejected = sorted(pair, key=lambda text: -text.count("e") / len(text))
        (ids,), responses = tokenizer.encode_prompts([prompt]), tokenizer.encode_responses([chosen, rejected])
        rows.append(EncodedRow({"prompt": prompt}, ids, tuple(responses)))
    return rows


def trainer_of(name: str, config, tokenizer: Tokenizer, updates: int):
    transformer = Transformer(ModelConfig(**SHAPE))
    policy = Policy(transformer, value_head=name == "ppo")
    match name:
        case "ppo":
            return PPOTrainer(policy, copy_of(policy), share_of_e, tokenizer, config)
        case "grpo":
            return GRPOTrainer(policy, copy_of(policy), share_of_e, tokenizer, config)
        case "sft":
            return SFTTrainer(policy, tokenizer, config, updates)
        case "reward_model":
            return RewardTrainer(RewardModel(transformer), tokenizer, config, updates)
    return DPOTrainer(policy, copy_of(policy), tokenizer, config, updates)


def train(name: str, folder: Path, seed: int, **changes) -> None:
    """One run in `folder`. changes: of the settings in CONFIGS."""
    config = dataclasses.replace(CONFIGS[name], **changes)
    with session(device="cpu", seed=seed, threads=1):
        tokenizer = letter_tokenizer()
        rows, held_out = encoded(tokenizer, 400, seed), encoded(tokenizer, 64, seed + 1000)
        batches = Batches.of(rows, config, seed=seed, stream=name)
        trainer = trainer_of(name, config, tokenizer, len(batches))

        def evaluate():
            if name not in ("ppo", "grpo"):
                return trainer.evaluate(held_out)
            sampling, parts = config.sampling(tokenizer.eos_ids), {"reward": share_of_e, "gold": gold}
            return evaluate_policy(trainer.policy, tokenizer, held_out, sampling, seed=seed, **parts).known()

        every = max(1, len(batches) // 10)
        run = Run(
            RunConfig(output=str(folder), seed=seed, eval_every=every, save_every=0),
            trainer,
            batches,
            settings={name: config},
            tokenizer=tokenizer,
            evaluate=evaluate,
        )
        for batch in run:
            run.record(trainer.step(batch))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONFIGS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    changes = {key: ast.literal_eval(value) for key, value in (pair.split("=") for pair in asked.set)}
    for seed in range(asked.seed, asked.seed + asked.runs):
        folder = asked.folder / f"seed-{seed}"
        try:
            train(asked.name, folder, seed, **changes)
        except ValueError as error:  # a fault may make the loss infinite; the run folder shows the steps before
            if not (folder / "metrics.jsonl").exists():
                raise  # of the settings
            print(f"seed {seed}: ended: {error}")


if __name__ == "__main__":
    main()
