"""Models, rows and trainers small enough for a test, and a program that trains them in two processes or is killed.

python tiny.py ranks FOLDER              one of the processes that RANK and WORLD_SIZE describe: trains every case
python tiny.py killed KIND FOLDER WHEN   a run that dies of SIGKILL: WHEN is a step, or "saving"
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import tokenizers
import torch
from folders import check_folders
from safetensors.torch import save_file

from minirlhf.adapters.quantised import quantised_slices
from minirlhf.algorithms import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    OnlineDPOConfig,
    OnlineDPOTrainer,
    PPOConfig,
    PPOTrainer,
    ProcessRewardConfig,
    ProcessRewardTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    UnpairedConfig,
    UnpairedTrainer,
)
from minirlhf.algorithms.ref_logps import precompute_ref_logps
from minirlhf.data import Batches
from minirlhf.data.dealing import dealt
from minirlhf.data.encoding import EncodedRow
from minirlhf.environments import Episodes, Observation
from minirlhf.evaluation import evaluate_policy
from minirlhf.generation import SamplingConfig
from minirlhf.jobs.measuring import Answer, likelihood_of
from minirlhf.model import (
    LoRAConfig,
    ModelConfig,
    Policy,
    ProcessRewardModel,
    RewardModel,
    Transformer,
    ValueModel,
    adapter_view,
    apply_lora,
    packing,
    prefix_tree,
    quantise_linears,
    reference_of,
)
from minirlhf.rewards import RewardModelScorer, judge_by
from minirlhf.runtime.distributed import process_group
from minirlhf.runtime.parallel import copies
from minirlhf.runtime.parallel.gradients import average_whole_gradients
from minirlhf.runtime.parallel.sharding import full, is_sharded, rebuilt, shard, whole_of
from minirlhf.runtime.parallel.strategy import Strategy, current, using
from minirlhf.text.tokenizer import BOS, EOS, PAD, Tokenizer
from minirlhf.training import Run, RunConfig, checkpoint

STEPS = 3
# each trainer once
COPIED = "sft_experts,reward,ppo_options,grpo_batch,grpo_episodes,dpo,kto,online_dpo,gkd,process_reward"
# cases that two processes train in slices too
SHARDED = "reward,ppo_options,ppo_qlora,ppo_adapters,dpo,gkd"
FEW = "reward,ppo_head,dapo,kto,gkd"  # cases that two processes train on fewer rows than processes too
EXPERTS = {"model_type": "qwen3_moe", "qk_norm": "head", "num_experts": 4, "moe_intermediate_size": 12}


def tokenizer() -> Tokenizer:
    """One token a letter: 30 in all."""
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, *"abcdefghijklmnopqrstuvwxyz", "Ġ"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([PAD, BOS, EOS])
    return Tokenizer(backend)


def transformer(
    seed: int = 0, dtype: torch.dtype = torch.float64, layers: int = 1, scale: float = 6.0, **changes
) -> Transformer:
    """Width 16; `changes` are fields of ModelConfig. Weights are `scale` times as large as usual, far from uniform."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1}
    shape |= {"vocab_size": 30, "intermediate_size": 32, "max_position_embeddings": 64}
    model = Transformer(ModelConfig(**shape | changes))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(scale)
    return model.to(dtype)


def rows(n: int, seed: int = 0) -> list[EncodedRow]:
    """n ragged rows for every algorithm: a prompt and two responses (chosen and rejected; SFT reads the first).

    source["desirable"] says whether the response was liked; "labels" judge its steps of up to three tokens.
    """
    rng, words = random.Random(seed), tokenizer()
    texts = [["".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(3)] for _ in range(n)]
    prompts = words.encode_prompts([text[0] for text in texts])
    responses = [words.encode_responses(list(text[1:])) for text in texts]
    keys = ("prompt", "chosen", "rejected")
    encoded = []
    for text, prompt, pair in zip(texts, prompts, responses, strict=True):
        columns = [*range(2, len(text[1]) - 1, 3), len(text[1]) - 1]
        source = dict(zip(keys, text, strict=True)) | {"margin": len(text[0]) / 10}
        source |= {"desirable": len(text[2]) % 2 == 0, "label_columns": columns}
        source["labels"] = [text[1][k] < "e" for k in columns]
        encoded.append(EncodedRow(source, prompt, tuple(pair)))
    return encoded


def batches(batch_size: int, steps: int = STEPS, n: int = 24) -> Batches:
    return Batches(rows(n), batch_size=batch_size, steps=steps, seed=0, stream="tiny")


def share_short_prefixes(patch: Callable[[object, str, int], None] = setattr) -> None:
    """From now on, rows share beginnings of one token: the prompts here are too short for a real saving."""
    patch(packing, "SHORT", 0)
    patch(packing, "LEAST", 1)
    patch(prefix_tree, "LEAST", 1)


def likes_e(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    """The toy reward: how many e's, less half the other letters."""
    return [0.15 * text.count("e") - 0.05 * len(text) for text in completions]


class Echo:
    """Answers each turn with its letters in order, up to three turns; a turn is worth its e's."""

    def reset(self, row: dict) -> str:
        self.left = len(row["prompt"]) % 3
        return row["prompt"]

    def step(self, action: str) -> Observation:
        self.left -= 1
        return Observation("".join(sorted(set(action) & {*"abcdefgh"})), 0.3 * action.count("e"), self.left < 0)


def episodes() -> Episodes:
    return Episodes(Echo, tokenizer(), max_turns=2)


def sft(dtype: torch.dtype = torch.float64, updates: int = STEPS, shape: dict | None = None, **settings) -> SFTTrainer:
    settings = {"batch_size": 8, "microbatch_tokens": 40, "lr": 3e-2} | settings
    policy = Policy(transformer(dtype=dtype, **(shape or {})))
    return SFTTrainer(policy, tokenizer(), SFTConfig(**settings), updates)


def reward(dtype: torch.dtype = torch.float64, updates: int = STEPS, **settings) -> RewardTrainer:
    settings = {"batch_size": 8, "microbatch_tokens": 80, "lr": 1e-2} | settings
    torch.manual_seed(1)
    return RewardTrainer(RewardModel(transformer(dtype=dtype)), tokenizer(), RewardConfig(**settings), updates)


def ppo(
    dtype: torch.dtype = torch.float64,
    value_model: bool = False,
    reward: Callable = likes_e,
    seed: int = 0,
    environment: Episodes | None = None,
    **settings,
) -> PPOTrainer:
    """value_model: train a separate value model instead of a head."""
    defaults = {"steps": STEPS, "batch_size": 8, "minibatch_size": 4, "microbatch_tokens": 40, "max_tokens": 10}
    defaults |= {"epochs": 2, "kl_coef": 0.14}
    config = PPOConfig(**{**defaults, "lr": 1e-2, **settings})
    policy = Policy(transformer(dtype=dtype), value_head=not value_model)
    separate = ValueModel(transformer(seed=2, dtype=dtype)) if value_model else None
    head = (separate or policy).value_head
    with torch.no_grad():  # a fresh head is 0, so its trunk would have no gradient
        head.weight.normal_(std=0.3)
    options = {"value_model": separate, "seed": seed, "environment": environment}
    return PPOTrainer(policy, near(policy), reward, tokenizer(), config, **options)


def ppo_adapters(four_bits: bool = False, reward: Callable = likes_e, seed: int = 0, **settings) -> PPOTrainer:
    """Policy and value model as two adapters of one base, which is also the reference."""
    defaults = {"steps": STEPS, "batch_size": 8, "minibatch_size": 4, "microbatch_tokens": 40, "max_tokens": 10}
    defaults |= {"epochs": 2, "kl_coef": 0.14}
    config = PPOConfig(**{**defaults, "lr": 1e-2, **settings})
    base = quantise_linears(transformer()) if four_bits else transformer()
    base = adapted(copies.shared(base, torch.device("cpu")), ("policy", "value"))
    policy, value_model = Policy(adapter_view(base, "policy")), ValueModel(adapter_view(base, "value"))
    with torch.no_grad():
        value_model.value_head.weight.normal_(std=0.3)
    reference = Policy(adapter_view(base, None))
    return PPOTrainer(policy, reference, reward, tokenizer(), config, value_model=value_model, seed=seed)


def ppo_lora(four_bits: bool = False, **settings) -> PPOTrainer:
    """A policy with adapters and a value head; in slices, the adapters come after the slices and stay whole."""
    policy = Policy(transformer(layers=2), value_head=True)
    with torch.no_grad():
        policy.value_head.weight.normal_(std=0.3)
    policy = copies.placed(policy, torch.device("cpu"))
    if four_bits:
        policy = quantised_slices(policy) if is_sharded(policy) else quantise_linears(policy)
    policy = adapted(policy)
    reference = reference_of(policy)  # a view of the policy
    defaults = {"steps": STEPS, "batch_size": 8, "minibatch_size": 4, "microbatch_tokens": 40, "max_tokens": 10}
    config = PPOConfig(**{**defaults, "epochs": 2, "kl_coef": 0.14, "lr": 1e-2, **settings})
    return PPOTrainer(policy, reference, likes_e, tokenizer(), config)


def adapted(
    model: Transformer | Policy, names: Sequence[str] = ("default",), targets: tuple[str, ...] = ("all-linear",)
):
    """The model with adapters whose B is not 0, so that every weight of the adapters has a gradient."""
    torch.manual_seed(5)
    for name in names:
        apply_lora(model, LoRAConfig(r=2, alpha=2.0, target_modules=targets), name)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                p.normal_(std=0.3)
    return model


def near(policy: Policy) -> Policy:
    """A reference that differs a little from the policy, so that no KL is 0."""
    reference = Policy(copy.deepcopy(policy.transformer))
    with torch.no_grad():
        reference.transformer.model.norm.weight.mul_(0.8)
    return reference


def has_e(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    """A reward that is 0 or 1."""
    return [float("e" in text) for text in completions]


def short(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float | None]:
    """A reward that does not apply to completions of fewer than 3 letters."""
    return [None if len(text) < 3 else -0.2 * len(text) for text in completions]


def grpo(
    dtype: torch.dtype = torch.float64,
    rewards: Callable | list | None = likes_e,
    seed: int = 0,
    environment: Episodes | None = None,
    **settings,
):
    defaults = {"steps": STEPS, "batch_size": 8, "minibatch_size": 4, "group_size": 4, "microbatch_tokens": 120}
    config = GRPOConfig(**{**defaults, "max_tokens": 8, "kl_coef": 0.1, "lr": 1e-2, **settings})
    policy = Policy(transformer(dtype=dtype))
    spare = Batches(rows(20, seed=4), batch_size=config.batch_size, steps=3 * config.steps, seed=0, stream="spare")
    options = {"spare": spare, "seed": seed, "environment": environment}
    return GRPOTrainer(policy, near(policy), rewards, tokenizer(), config, **options)


def dpo(dtype: torch.dtype = torch.float64, updates: int = STEPS, **settings) -> DPOTrainer:
    config = DPOConfig(**{"batch_size": 8, "microbatch_tokens": 100, "lr": 1e-2, **settings})
    policy = Policy(transformer(dtype=dtype))
    return DPOTrainer(policy, near(policy) if config.uses_reference else None, tokenizer(), config, updates)


def precomputed(trainer):
    with tempfile.TemporaryDirectory() as folder:
        precompute_ref_logps(trainer, [rows(24), rows(5, seed=9)], Path(folder))
    return trainer


def unpaired(dtype: torch.dtype = torch.float64, updates: int = STEPS, **settings) -> UnpairedTrainer:
    config = UnpairedConfig(**{"batch_size": 8, "microbatch_tokens": 60, "lr": 1e-2, **settings})
    policy = Policy(transformer(dtype=dtype))
    return UnpairedTrainer(policy, near(policy), tokenizer(), config, updates, rows=rows(24))


def online_dpo(dtype: torch.dtype = torch.float64, judge: Callable | None = None, **settings) -> OnlineDPOTrainer:
    defaults = {"steps": STEPS, "batch_size": 8, "microbatch_tokens": 60, "max_tokens": 8, "lr": 1e-2}
    defaults["minibatch_size"] = 8 if settings.get("algorithm") == "nash_md" else 4
    config = OnlineDPOConfig(**{**defaults, **settings})
    policy = Policy(transformer(dtype=dtype))
    return OnlineDPOTrainer(policy, near(policy), judge or judge_by(likes_e), tokenizer(), config)


def distillation(dtype: torch.dtype = torch.float64, updates: int = STEPS, **settings) -> DistillationTrainer:
    """The teacher has twice the student's depth."""
    config = DistillationConfig(**{"batch_size": 8, "microbatch_tokens": 60, "lr": 1e-2, "max_tokens": 8, **settings})
    teacher = Policy(transformer(seed=3, dtype=dtype, layers=2))
    return DistillationTrainer(Policy(transformer(dtype=dtype)), teacher, tokenizer(), config, updates)


def process_reward(dtype: torch.dtype = torch.float64, updates: int = STEPS, **settings) -> ProcessRewardTrainer:
    config = ProcessRewardConfig(**{"batch_size": 8, "microbatch_tokens": 60, "lr": 1e-2, **settings})
    torch.manual_seed(1)
    return ProcessRewardTrainer(ProcessRewardModel(transformer(dtype=dtype)), tokenizer(), config, updates)


CASES: dict[str, Callable] = {
    "sft": sft,
    "reward": reward,
    "ppo_head": ppo,
    "ppo_value_model": lambda: ppo(value_model=True),
    "ppo_lora": ppo_lora,
    "ppo_qlora": lambda: ppo_lora(four_bits=True),
    "ppo_adapters": ppo_adapters,
    "ppo_4_bits": lambda: ppo_adapters(four_bits=True, temperature=0.7),
    "ppo_options": lambda: ppo(
        whiten_rewards=True, value_warmup=1, entropy_coef=0.02, temperature=0.7, kl_coef=0.3, epochs=3, dual_clip=3.0
    ),
    # the first KL is 0.1756, 4% below the target: not clipped by the controller, so the coefficient depends on the KL
    "ppo_adaptive": lambda: ppo(kl_controller="adaptive", kl_target=0.183, kl_horizon=20, kl_coef=0.3, temperature=0.6),
    "sft_dft": lambda: sft(loss="dft"),
    # each row is a micro-batch with its own router loss; some experts get no token
    "sft_experts": lambda: sft(shape=EXPERTS, router_loss_coef=0.3, microbatch_tokens=1),
    "grpo": grpo,
    "grpo_entropy": lambda: grpo(entropy_coef=0.02, epochs=2, temperature=0.7),
    "grpo_batch": lambda: grpo(scale_rewards="batch", overlong_filter=True, entropy_coef=0.02, entropy_target=2.0),
    "dapo": lambda: grpo(algorithm="dapo", rewards=has_e, group_size=2, minibatch_size=8),
    # in two steps only one process of two has groups of equal scores
    "grpo_resample": lambda: grpo(group_size=2, resample=1, minibatch_size=8),
    "rloo": lambda: grpo(algorithm="rloo", minibatch_size=8, rewards=[likes_e, short], reward_weights=(1.0, 0.5)),
    "remax": lambda: grpo(algorithm="remax", minibatch_size=None, group_size=2),
    "reinforce++": lambda: grpo(algorithm="reinforce++", group_size=1, gamma=0.9, missing_eos_penalty=0.3),
    "reinforce++_baseline": lambda: grpo(algorithm="reinforce++_baseline", sampler_cap=2.0),
    "ppo_episodes": lambda: ppo(environment=episodes(), max_tokens=5, missing_eos_penalty=0.3),
    "grpo_episodes": lambda: grpo(
        rewards=None, environment=episodes(), turn_advantages=True, max_tokens=5, scale_rewards="batch", epochs=2
    ),
    "reinforce++_episodes": lambda: grpo(
        algorithm="reinforce++", environment=episodes(), turn_advantages=True, group_size=2, max_tokens=5
    ),
    "gspo": lambda: grpo(algorithm="gspo", epochs=2),
    "bnpo": lambda: grpo(algorithm="bnpo", rewards=has_e),
    "gdpo": lambda: grpo(algorithm="gdpo", rewards=[likes_e, short], reward_weights=(1.0, 0.5)),
    "high_entropy": lambda: grpo(high_entropy_share=0.3),
    "dpo": lambda: dpo(weighting=True, length_alpha=0.4, nll_coef=0.3, ref_update_every=2),
    "dpo_precomputed": lambda: precomputed(dpo(precompute_ref_logps=True)),
    "bco_pair": lambda: dpo(loss="bco_pair", divergence="js"),
    "orpo": lambda: dpo(loss="orpo"),
    "kto": lambda: unpaired(desirable_weight=1.5),
    "bco": lambda: unpaired(loss="bco"),
    "bco_weighted": lambda: unpaired(loss="bco", prompt_weighting=True),
    "online_dpo": lambda: online_dpo(missing_eos_penalty=0.2),
    "xpo": lambda: online_dpo(algorithm="xpo", xpo_alpha=0.05),
    "nash_md": lambda: online_dpo(algorithm="nash_md", temperature=0.7),
    "gkd": lambda: distillation(temperature=0.7),
    "minillm": lambda: distillation(algorithm="minillm", beta=1.0, on_policy=1.0),
    "process_reward": process_reward,
}


def uneven() -> PPOTrainer:
    """Minibatches of three rows: two processes cannot have equally many."""
    return ppo(batch_size=6, minibatch_size=3)


def train(trainer, batches: Batches) -> list[dict[str, float]]:
    return [trainer.step(dealt(batches[k], trainer.config)) for k in range(len(batches))]


def weights(trainer) -> dict[str, torch.Tensor]:
    states = {name: model.state_dict() for name, model in trainer.models.items()}
    return {f"{name}.{key}": value.clone() for name, state in states.items() for key, value in state.items()}


def train_on_few(trainer) -> dict[str, list]:
    """Steps on one row and on three, evaluations on none, one and five -> metrics, and evaluations with samples."""
    trainer.config = copy.copy(trainer.config)
    object.__setattr__(trainer.config, "minibatch_size", trainer.config.batch_size)
    log = [trainer.step(dealt(batches(n)[0], trainer.config)) for n in (1, 3)]
    if not hasattr(trainer, "evaluate"):
        return {"log": log}
    return {"log": log, "evaluations": [[trainer.evaluate(rows(n, seed=9)), trainer.samples] for n in (0, 1, 5)]}


def measured() -> list:
    """`evaluate_policy` on 0, 1 and 5 rows, with a reward model as the reward, and the likelihood of 5 answers."""
    torch.manual_seed(1)
    policy, scorer = Policy(transformer()), RewardModel(transformer(dtype=torch.float64))
    reference = near(policy)
    if current().shards:
        policy, reference, scorer = (shard(model, torch.device("cpu")) for model in (policy, reference, scorer))

    def gold(prompts: list[str], completions: list[str], rows: list[dict]) -> dict[str, list[float]]:
        return {"gold_reward": likes_e(prompts, completions, rows)}

    # the longest prompt alone fills a micro-batch, so the processes make different numbers of forwards
    options = {"reward": RewardModelScorer(scorer, tokenizer(), 12), "ref_policy": reference, "gold": gold}
    sampling = SamplingConfig(max_tokens=6, stop_ids=tokenizer().eos_ids, microbatch_tokens=12)
    found = []
    for n in (0, 1, 5):
        report = evaluate_policy(policy, tokenizer(), rows(n, seed=3), sampling, **options)
        found.append([report.known(), report.completions, report.gold])
    answers = [Answer([*row.prompt, *row.responses[0]], [False] * len(row.prompt) + row.mask(), 1) for row in rows(5)]
    return found if current().shards else [*found, likelihood_of(policy, answers, 1, 12)]


def gradients(trainer, batch: list) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """(gradients, metrics) of the first update of a step. The weights do not change."""
    recorded, optimizer = [], trainer.optimizer

    def record(sums: dict[str, torch.Tensor]) -> dict[str, float]:
        if current().shards:  # as an update begins: heads are in no slice, so FSDP leaves them out
            average_whole_gradients(list(optimizer.parameters.values()))
        found = {name: p.grad.clone() for name, p in optimizer.parameters.items() if p.grad is not None}
        metrics = {name: float(value) for name, value in sums.items()}
        recorded.append((found, metrics))
        optimizer.zero_grad()
        return {**metrics, "lr": 0.0, "grad_norm": 0.0}

    optimizer.step = record
    trainer.step(batch)
    return recorded[0]


def go_on(
    kind: str,
    folder: str | Path,
    *,
    after_step: Callable[[int], None] = lambda k: None,
    dtype: torch.dtype = torch.float32,
    **config: bool | int,
):
    """Start or resume a run in a folder: 8 steps, a checkpoint every 3 steps, an evaluation every 2."""
    steps = 8
    adaptive = {"entropy_coef": 0.02, "entropy_target": 3.2, "entropy_delta": 0.01}
    trainer = {
        "sft": lambda: sft(dtype, steps),
        "grpo": lambda: grpo(dtype, has_e, steps=steps, group_size=2, resample=1, **adaptive),
        "episodes": lambda: ppo(dtype, steps=steps, environment=episodes(), max_tokens=4, minibatch_size=8),
        "dpo": lambda: dpo(dtype, steps, loss="bco_pair", ref_update_every=2),
        "ppo": lambda: ppo(dtype, steps=steps, kl_controller="adaptive", kl_target=4.0, kl_horizon=20),
    }[kind]()
    held_out = rows(5, seed=9)
    run = Run(
        RunConfig(output=str(folder), **{"eval_every": 2, "save_every": 3, **config}),
        trainer,
        batches(8, steps),
        tokenizer=tokenizer(),
        evaluate=(lambda: {name: trainer.steps_done for name in ("model_reward", "gold_reward")})
        if kind in ("ppo", "grpo", "episodes")
        else lambda: trainer.evaluate(held_out),
    )
    for batch in run:
        metrics = trainer.step(batch)
        after_step(run.step)
        run.record(metrics)
    return trainer


def _copy_sharded(folder: Path) -> None:
    """A copy of a model in slices, made slice by slice from a model on the meta device."""
    source = shard(Policy(transformer(layers=2)), torch.device("cpu"))

    def build() -> Policy:
        with torch.device("meta"):
            return Policy(Transformer(source.transformer.config).to(torch.float64))

    part = copies.copied(source).transformer
    gc.collect()
    assert whole_of(part) is not None  # a part keeps the model alive that its slices belong to
    copied = rebuilt(build, source, torch.device("cpu"))
    save_file(
        {key: full(x) for key, x in copied.state_dict().items()}, folder / f"copy-{os.environ['RANK']}.safetensors"
    )


def stop_at(step: int, folder: Path, kind: str = "sft", **options: object) -> None:
    """The run of `go_on` without its end: it stops before it records this step."""

    class Stopped(Exception):
        pass

    def stop(now: int) -> None:
        if now == step:
            raise Stopped

    with contextlib.suppress(Stopped):
        go_on(kind, folder, after_step=stop, **options)


def _sharded(name: str):
    """A case with its policy in slices, and the frozen models too."""
    trainer = CASES[name]()
    assert is_sharded(next(iter(trainer.models.values())))
    for model in (getattr(trainer, part, None) for part in ("ref_policy", "teacher")):
        if model is not None and [*model.parameters()] and whole_of(model) is None:
            shard(model, torch.device("cpu"))
    return trainer


def _write(trainer, record: list | dict, file: Path) -> None:
    """The weights and the record of a trainer, as this process sees them."""
    name = f"{file}-{os.environ['RANK']}"
    save_file({key: full(x) for key, x in weights(trainer).items()}, f"{name}.safetensors")
    Path(f"{name}.json").write_text(json.dumps(record))


def _train_few(make: Callable, file: Path) -> None:
    trainer = make()
    _write(trainer, train_on_few(trainer), file)


def _train_as_rank(folder: Path) -> None:
    exact = {"dtype": torch.float64}  # in fp32, AdamW turns the rounding of a small gradient into a part of a step
    with process_group(torch.device("cpu")):
        for name in os.environ.get("COPIED", COPIED).split(","):
            trainer = CASES[name]()
            _write(trainer, train(trainer, batches(8)), folder / name)
        few = os.environ.get("FEW", FEW).split(",")
        for name in few:
            _train_few(CASES[name], folder / f"{name}-few")
        trainer = uneven()
        _write(trainer, train(trainer, batches(6)), folder / "uneven")
        (folder / f"measured-ddp-{os.environ['RANK']}.json").write_text(json.dumps(measured()))
        with using(Strategy("fsdp", gather="layers")):
            (folder / f"measured-fsdp-{os.environ['RANK']}.json").write_text(json.dumps(measured()))
            for name in os.environ.get("SHARDED", SHARDED).split(","):
                trainer = _sharded(name)
                _write(trainer, train(trainer, batches(8)), folder / f"{name}-fsdp")
                if name in few:
                    _train_few(partial(_sharded, name), folder / f"{name}-fsdp-few")
            _copy_sharded(folder)
            check_folders(folder, every="SHARDED" in os.environ)
            go_on("sft", folder / "slices", export=True, **exact)
            stop_at(4, folder / "resumed", **exact)
            go_on("sft", folder / "resumed", resume=True, **exact)
        with using(Strategy("ddp", shard_optimizer=True)):
            go_on("sft", folder / "zero", **exact)
            stop_at(4, folder / "zero-resumed", **exact)
            go_on("sft", folder / "zero-resumed", resume=True, **exact)
        if os.environ["RANK"] == "1":  # the second process is late at every checkpoint
            save = Run._checkpoint
            Run._checkpoint = lambda self, step: time.sleep(0.3) or save(self, step)
        go_on("ppo", folder / "run")


def _train_until_killed(kind: str, folder: str, when: str) -> None:
    def die(step: int | None = None) -> None:
        if step is None or str(step) == when:
            os.kill(os.getpid(), signal.SIGKILL)

    if when == "saving":  # die while the second checkpoint is half written and not yet renamed
        flush, flushed = checkpoint._flush, []
        # the first flushes belong to config.toml, the run's folder and the first checkpoint
        checkpoint._flush = lambda path: flushed.append(path) or flush(path) or (len(flushed) > 14 and die())
    go_on(kind, folder, after_step=die)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "PREFIXES" in os.environ:
        share_short_prefixes()
    if sys.argv[1] == "ranks":
        _train_as_rank(Path(sys.argv[2]))
    else:
        _train_until_killed(*sys.argv[2:])
