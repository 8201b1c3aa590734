"""Every trainer refuses to train weights in half precision; heads and adapters on such a base are fp32."""

import pytest
import tiny
import torch

from minirlhf.algorithms import PPOConfig, PPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from minirlhf.errors import InputError
from minirlhf.model import LoRAConfig, Policy, RewardModel, ValueModel, apply_lora, copy_of, load_policy
from minirlhf.model.policy import trainable
from minirlhf.pretrained import save_pretrained

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
TRAINERS = [tiny.sft, tiny.reward, tiny.ppo, tiny.grpo, tiny.dpo, tiny.unpaired, tiny.online_dpo, tiny.distillation]


@HALF
@pytest.mark.parametrize("make", [*TRAINERS, tiny.process_reward], ids=lambda make: make.__name__)
def test_a_model_in_half_precision_is_refused(make, dtype):
    with pytest.raises(
        InputError, match=f"^Optimizer: trained weights must be fp32, got .*{dtype}.* dtype=torch.float32"
    ):
        make(dtype)


@HALF
def test_adapters_and_heads_on_a_base_in_half_precision_are_fp32_and_learn(dtype):
    words, batch = tiny.tokenizer(), tiny.batches(8)[0]
    policy = apply_lora(Policy(tiny.transformer(dtype=dtype)), LoRAConfig(r=2))
    reward = apply_lora(RewardModel(tiny.transformer(dtype=dtype)), LoRAConfig(r=2))
    headed = apply_lora(Policy(tiny.transformer(dtype=dtype), value_head=True), LoRAConfig(r=2))
    ppo = PPOConfig(steps=1, batch_size=8, minibatch_size=8, max_tokens=4)
    for trainer in (
        SFTTrainer(policy, words, SFTConfig(lr=0.1), 2),
        RewardTrainer(reward, words, RewardConfig(lr=0.1), 2),
        PPOTrainer(headed, copy_of(headed), tiny.likes_e, words, ppo),
    ):
        before = tiny.weights(trainer)
        trainer.step(batch)
        trained = trainer.optimizer.parameters
        assert {p.dtype for p in trained.values()} == {torch.float32}
        after = tiny.weights(trainer)
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved and moved <= trained.keys()


@HALF
def test_new_heads_on_a_base_in_half_precision_are_fp32(dtype):
    base = tiny.transformer(dtype=dtype)
    heads = RewardModel(base).score, ValueModel(base).value_head, Policy(base, value_head=True).value_head
    assert {head.weight.dtype for head in heads} == {torch.float32} == {trainable(dtype)}


def test_a_folder_in_bf16_is_refused_as_it_is_and_learns_once_it_is_loaded_as_fp32(tmp_path):
    save_pretrained(tiny.transformer(dtype=torch.bfloat16), tmp_path)
    batch = tiny.batches(8)[0]
    with pytest.raises(InputError, match="^Optimizer: trained weights must be fp32"):
        SFTTrainer(load_policy(tmp_path), tiny.tokenizer(), SFTConfig(), 3)
    trainer = SFTTrainer(load_policy(tmp_path, dtype=torch.float32), tiny.tokenizer(), SFTConfig(lr=3e-3), 9)
    losses = [trainer.step(batch)["loss"] for _ in range(9)]
    assert losses[-1] < losses[0] - 0.1
