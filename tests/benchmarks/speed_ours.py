"""Our side of `speed.py`: a function for each row of its table. It prepares the work and returns one step of it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import speed_work as work
import torch

from minirlhf.adapters.lora import LoRAConfig, apply_lora
from minirlhf.algorithms import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    PPOConfig,
    PPOTrainer,
    SFTConfig,
    SFTTrainer,
)
from minirlhf.data.batches import Draw
from minirlhf.data.encoding import EncodedRow
from minirlhf.generation import SamplingConfig, generate
from minirlhf.generation import slots as slots_module
from minirlhf.generation.slot_cache import SlotCache
from minirlhf.losses import cross_entropy, fused_linear_loss, linear_token_logps
from minirlhf.model import ModelConfig, Policy, RewardModel, Transformer, ValueModel, copy_of
from minirlhf.rewards.scoring import RewardModelScorer
from minirlhf.text.tokenizer import Tokenizer

Step = Callable[[], int]


def transformer(shape: str, seed: int = 0) -> Transformer:
    spec = work.SHAPES[shape]
    torch.manual_seed(seed)
    config = ModelConfig(
        vocab_size=spec["vocab"],
        hidden_size=spec["hidden"],
        num_hidden_layers=spec["layers"],
        num_attention_heads=spec["heads"],
        num_key_value_heads=spec["kv_heads"],
        intermediate_size=spec["intermediate"],
        max_position_embeddings=2048,
        attention_bias=True,
        model_type="qwen2",
    )
    return Transformer(config)


def tokenizer(shape: str) -> Tokenizer:
    return Tokenizer(work.word_tokenizer(work.SHAPES[shape]["vocab"]))


def force_lengths(lengths: list[int]) -> None:
    """Completion i of every call of `generate` has lengths[i] tokens: each token is compared with an id that is never
    drawn, and no completion ends early.
    """
    begin = slots_module.Slots.__init__

    def with_lengths(self, *arguments, **options):
        begin(self, *arguments, **options)
        self.rooms, self.stops = list(lengths), torch.tensor([self.transformer.config.vocab_size])

    slots_module.Slots.__init__ = with_lengths


def sampling(shape: str, steps: int, mixed: bool = False) -> Step:
    vocab = work.SHAPES[shape]["vocab"]
    prompts, lengths = work.ids_of(work.BATCH, work.PROMPT, vocab, seed=1), [work.NEW] * work.BATCH
    if mixed:
        lengths = work.completion_lengths(True, work.NEW)
        prompts = [prompt for prompt in prompts[: work.PROMPTS] for _ in range(work.GROUP)]
    force_lengths(lengths)
    model, config = transformer(shape), SamplingConfig(work.NEW, stop_ids=(work.EOS,))

    def step() -> int:
        completions = generate(model, prompts, config)
        assert [len(c.ids) for c in completions] == lengths
        return sum(lengths)

    return step


def over_batches(trainer, rows: list[EncodedRow], batch: int, tokens: Callable[[list[EncodedRow]], int]) -> Step:
    """Each step trains on the next rows."""
    at = iter(range(0, len(rows), batch))

    def step() -> int:
        start = next(at)
        part = rows[start : start + batch]
        trainer.step([Draw(row, start + i, 0, i) for i, row in enumerate(part)])
        return tokens(part)

    return step


def sft(shape: str, steps: int, mixed: bool = False, lora: bool = False) -> Step:
    rows = [EncodedRow({}, ids[:1], (ids[1:],)) for ids in work.sft_rows(shape, steps, mixed)]
    policy = Policy(transformer(shape))
    if lora:
        apply_lora(policy, LoRAConfig(r=8, alpha=16, target_modules=("q_proj", "v_proj")))
    trainer = SFTTrainer(policy, tokenizer(shape), SFTConfig(batch_size=work.ROWS, lr=1e-5), steps)
    return over_batches(trainer, rows, work.ROWS, lambda part: sum(1 + len(row.responses[0]) for row in part))


def dpo(shape: str, steps: int) -> Step:
    rows = [EncodedRow({}, prompt, answers) for prompt, *answers in work.pairs(shape, steps)]
    policy = Policy(transformer(shape))
    trainer = DPOTrainer(policy, copy_of(policy), tokenizer(shape), DPOConfig(batch_size=work.PAIRS, lr=1e-6), steps)
    return over_batches(
        trainer, rows, work.PAIRS, lambda part: sum(2 * len(r.prompt) + sum(map(len, r.responses)) for r in part)
    )


def prompt_rows(shape: str, count: int) -> list[EncodedRow]:
    ids = work.ids_of(count, work.PROMPT, work.SHAPES[shape]["vocab"], seed=7)
    return [EncodedRow({"prompt": work.text_of(row)}, row, ()) for row in ids]


def share_of_even(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
    return work.share_of_even(completions)


def grpo(shape: str, steps: int, mixed: bool = False) -> Step:
    lengths, prompts = work.completion_lengths(mixed, work.ROLLOUT), work.PROMPTS
    force_lengths(lengths)
    config = GRPOConfig(
        steps=steps,
        batch_size=prompts,
        minibatch_size=prompts,
        group_size=work.GROUP,
        max_tokens=work.ROLLOUT,
        lr=1e-6,
    )
    trainer = GRPOTrainer(Policy(transformer(shape)), None, share_of_even, tokenizer(shape), config)
    return over_batches(trainer, prompt_rows(shape, prompts * steps), prompts, lambda part: sum(lengths))


def ppo(shape: str, steps: int, trunk: bool = False) -> Step:
    """Four models, or the value as a head on the policy's trunk. The reward model reads every completion."""
    words, batch = tokenizer(shape), work.BATCH
    policy = Policy(transformer(shape), value_head=trunk)
    config = PPOConfig(
        steps=steps,
        batch_size=batch,
        minibatch_size=batch,
        epochs=4,
        max_tokens=work.ROLLOUT,
        lr=1e-6,
        separate_value_model=not trunk,
    )
    force_lengths([work.ROLLOUT] * batch)
    reward = RewardModelScorer(RewardModel(transformer(shape, seed=1)), words)
    value = None if trunk else ValueModel(transformer(shape, seed=2))
    trainer = PPOTrainer(policy, copy_of(policy), reward, words, config, value_model=value)
    return over_batches(trainer, prompt_rows(shape, batch * steps), batch, lambda part: batch * work.ROLLOUT)


def logps(shape: str, steps: int, fused: bool = False) -> Step:
    """Forward and backward of the log-probs of given tokens, from hidden states."""
    hidden, weight, ids, upstream = work_of_the_head(shape)
    mask = torch.ones_like(ids, dtype=torch.bool)

    def step() -> int:
        hidden.grad = weight.grad = None
        if fused:
            fused_linear_loss(hidden, weight, ids, cross_entropy, mask=mask, count=ids.numel())[0].backward()
        else:
            (linear_token_logps(hidden, weight, ids) * upstream).sum().backward()
        return ids.numel()

    return step


def work_of_the_head(shape: str) -> tuple[torch.Tensor, ...]:
    """-> hidden [1, N, D], weight [V, D], ids [1, N], and the gradient of each log-prob [1, N]."""
    spec, torch_seed = work.SHAPES[shape], torch.manual_seed(8)
    hidden = torch.randn(1, spec["tokens"], spec["hidden"], generator=torch_seed).requires_grad_()
    weight = torch.randn(spec["vocab"], spec["hidden"], generator=torch_seed).mul_(0.02).requires_grad_()
    ids = torch.randint(spec["vocab"], (1, spec["tokens"]), generator=torch_seed)
    return hidden, weight, ids, torch.randn(1, spec["tokens"], generator=torch_seed) / spec["tokens"]


def decode(shape: str, steps: int) -> Step:
    """Forwards of one token for each of 16 rows, with 128 tokens in the cache."""
    from minirlhf.generation.decoder import Decoder

    model = transformer(shape).requires_grad_(False)
    decoder, cache = Decoder(model, torch.float32), SlotCache(model.config, work.BATCH, 256, model.device)
    cache.width = 129
    lengths = torch.full((work.BATCH,), 128)
    tokens = torch.arange(work.BATCH)

    @torch.inference_mode()
    def step() -> int:
        for _ in range(work.CALLS):
            decoder(tokens, lengths, cache)
        return work.CALLS * work.BATCH

    return step


if __name__ == "__main__":
    import speed

    name, steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    row = speed.TABLE[name]
    work.take_turns(globals()[row.ours](row.shape, steps, **row.options))
