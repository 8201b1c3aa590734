"""The peers' side of `speed.py`: a function for each row of its table. It takes the turns of the measurement.

transformers, trl and peft come with `pip install .[parity]`. trl has a PPO trainer up to 1.12 only.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}

import speed_work as work
import torch


def model(shape: str, kind: str = "Qwen2ForCausalLM", seed: int = 0, **changes):
    import transformers

    spec = work.SHAPES[shape]
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        hidden_size=spec["hidden"],
        num_hidden_layers=spec["layers"],
        num_attention_heads=spec["heads"],
        num_key_value_heads=spec["kv_heads"],
        intermediate_size=spec["intermediate"],
        vocab_size=spec["vocab"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=work.PAD,
        bos_token_id=work.BOS,
        eos_token_id=work.EOS,
        **changes,
    )
    return getattr(transformers, kind)(config)


def tokenizer(shape: str):
    from transformers import PreTrainedTokenizerFast

    backend = work.word_tokenizer(work.SHAPES[shape]["vocab"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|eos|>", padding_side="left"
    )


def forced(lengths: list[int], prompt: int) -> Callable:
    """A logits processor: completion i ends with its lengths[i]-th token, and not before."""
    lengths_B = torch.tensor(lengths)

    def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = lengths_B == input_ids.shape[1] - prompt + 1
        scores[:, work.EOS] = -torch.inf
        scores[ends] = -torch.inf
        scores[ends, work.EOS] = 0.0
        return scores

    return process


def sampling(shape: str, steps: int, mixed: bool = False) -> None:
    from transformers import GenerationConfig

    peer = model(shape).eval()
    rows, lengths = work.ids_of(work.BATCH, work.PROMPT, work.SHAPES[shape]["vocab"], seed=1), [work.NEW] * work.BATCH
    config = {"max_new_tokens": work.NEW, "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    options = {}
    if mixed:
        lengths = work.completion_lengths(True, work.NEW)
        rows = [row for row in rows[: work.PROMPTS] for _ in range(work.GROUP)]
        options["logits_processor"] = [forced(lengths, work.PROMPT)]
    else:
        peer.generation_config.eos_token_id = None
    end = work.EOS if mixed else None
    config = GenerationConfig(**config, pad_token_id=work.PAD, eos_token_id=end)
    ids = torch.tensor(rows)

    def step() -> int:
        with torch.no_grad():
            out = peer.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **options)
        assert out.shape[1] == work.PROMPT + work.NEW
        return sum(lengths)

    work.take_turns(step)


def train(trainer, tokens: list[int]) -> None:
    """Run a trainer of trl: each of its steps is a turn.   tokens: of each step."""
    from transformers import TrainerCallback

    turns, left = work.Turns(), iter(tokens)

    class EachStep(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            turns.wait()

        def on_step_end(self, args, state, control, **kwargs):
            turns.answer(next(left))
            if not turns.wait():
                os._exit(0)  # what a trainer does after its last step is no part of the work

    trainer.add_callback(EachStep())
    trainer.train()


def settings(batch: int, steps: int, lr: float) -> dict:
    """fp32 as ours, nothing checkpointed, logged or saved, rows in their order; all else as trl has it."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": lr,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }


def sft(shape: str, steps: int, mixed: bool = False, lora: bool = False) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows, adapters = work.sft_rows(shape, steps, mixed), None
    if lora:
        from peft import LoraConfig

        adapters = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model(shape),
        args=SFTConfig(max_length=work.LENGTH, **settings(work.ROWS, steps, 1e-5)),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tokenizer(shape),
        peft_config=adapters,
    )
    train(trainer, [sum(map(len, rows[i : i + work.ROWS])) for i in range(0, len(rows), work.ROWS)])


def dpo(shape: str, steps: int) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = work.pairs(shape, steps)
    # trl adds the EOS; the space keeps the first word of an answer apart from the prompt
    texts = [(work.text_of(p), " " + work.text_of(c[:-1]), " " + work.text_of(r[:-1])) for p, c, r in rows]
    trainer = DPOTrainer(
        model=model(shape),
        ref_model=model(shape),
        args=DPOConfig(**settings(work.PAIRS, steps, 1e-6)),
        train_dataset=Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), t, strict=True)) for t in texts]),
        processing_class=tokenizer(shape),
    )
    sizes = [2 * len(p) + len(c) + len(r) for p, c, r in rows]
    read = [2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in trainer.train_dataset]
    assert read == sizes
    train(trainer, [sum(sizes[i : i + work.PAIRS]) for i in range(0, len(sizes), work.PAIRS)])


def grpo(shape: str, steps: int, mixed: bool = False) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    count, vocab = work.PROMPTS * work.GROUP, work.SHAPES[shape]["vocab"]
    prompts = [work.text_of(ids) for ids in work.ids_of(work.PROMPTS * steps, work.PROMPT, vocab, seed=7)]
    lengths = work.completion_lengths(mixed, work.ROLLOUT)

    def reward(completions, **_):
        return work.share_of_even(completions)

    options = settings(count, steps, 1e-6)
    del options["train_sampling_strategy"]  # trl has a sampler of its own; all prompts are equally long
    trainer = GRPOTrainer(
        model=model(shape),
        reward_funcs=reward,
        args=GRPOConfig(
            num_generations=work.GROUP, max_completion_length=work.ROLLOUT, beta=0.0, temperature=1.0, **options
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer(shape),
    )
    # a completion that fills its room needs no EOS
    ends = [n if n < work.ROLLOUT else n + 1 for n in lengths]
    inner, processor = trainer.model.generate, forced(ends, work.PROMPT)

    def generate(*arguments, **given):
        out = inner(*arguments, logits_processor=[processor], **given)
        assert out.shape == (count, work.PROMPT + work.ROLLOUT)
        return out

    trainer.model.generate = generate
    train(trainer, [sum(lengths)] * steps)


def ppo(shape: str, steps: int, trunk: bool = False) -> None:
    """trl has four models; our value head on the trunk is compared with them too."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = work.ids_of(work.BATCH * steps, work.PROMPT, work.SHAPES[shape]["vocab"], seed=7)
    options = settings(work.BATCH, steps, 1e-6)
    del options["max_steps"], options["train_sampling_strategy"]
    scalar = {"kind": "Qwen2ForSequenceClassification", "num_labels": 1}
    trainer = PPOTrainer(
        args=PPOConfig(
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=4,
            total_episodes=work.BATCH * steps,
            response_length=work.ROLLOUT,
            temperature=1.0,
            num_sample_generations=0,
            **options,
        ),
        processing_class=tokenizer(shape),
        model=model(shape),
        ref_model=model(shape),
        reward_model=model(shape, seed=1, **scalar),
        value_model=model(shape, seed=2, **scalar),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
    )
    train(trainer, [work.BATCH * work.ROLLOUT] * steps)


# Sides that need torch alone


def logps(shape: str, steps: int, fused: bool = False) -> None:
    """All logits, then log-softmax, then the given tokens."""
    from speed_ours import work_of_the_head

    hidden, weight, ids, upstream = work_of_the_head(shape)

    def step() -> int:
        hidden.grad = weight.grad = None
        logps = torch.nn.functional.linear(hidden, weight).log_softmax(-1)
        (logps.gather(-1, ids[..., None]).squeeze(-1) * upstream).sum().backward()
        return ids.numel()

    work.take_turns(step)


def products_of(shape: str, tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The matrix products of one forward: (x [tokens, in], W [out, in]); projections of one input are one product."""
    spec = work.SHAPES[shape]
    width, inner = spec["hidden"], spec["intermediate"]
    keys = 2 * spec["kv_heads"] * (width // spec["heads"])
    sizes = [(width, width + keys), (width, width), (width, 2 * inner), (inner, width)] * spec["layers"]
    sizes += [(width, spec["vocab"])]
    return [(torch.randn(tokens, i), torch.randn(o, i)) for i, o in sizes]


def training_products(shape: str, steps: int) -> None:
    """Forward, gradient of the input and gradient of the weight of every Linear of an SFT step, and nothing else."""
    pairs = products_of(shape, work.ROWS * work.LENGTH)

    @torch.inference_mode()
    def step() -> int:
        for x, weight in pairs:
            y = x @ weight.T
            _ = y @ weight, y.T @ x
        return work.ROWS * work.LENGTH

    work.take_turns(step)


def decoding_products(shape: str, steps: int) -> None:
    pairs = [(x, weight.T.contiguous()) for x, weight in products_of(shape, work.BATCH)]

    @torch.inference_mode()
    def step() -> int:
        for _ in range(work.CALLS):
            for x, weight in pairs:
                _ = x @ weight
        return work.CALLS * work.BATCH

    work.take_turns(step)


if __name__ == "__main__":
    import speed

    name, steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    row = speed.TABLE[name]
    globals()[row.peer](row.shape, steps, **(row.options if row.peer == row.ours else {}))
