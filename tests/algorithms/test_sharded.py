"""FSDP2 (fully_shard) on two gloo processes, with a tied head: gradients equal those of one process on all rows.

python test_sharded.py FOLDER   one of the processes that RANK and WORLD_SIZE describe
"""

import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close

from minirlhf.data.batches import pad_sequences
from minirlhf.losses import cross_entropy, fused_linear_loss, masked_mean, ppo_policy_loss
from minirlhf.model import Policy, quantise_linears
from minirlhf.runtime.distributed import all_sum, backward, barrier, local_rows, process_group, rank


def sft(policy, batch, old_logps, advantages, count):
    now = policy(batch.input_ids, batch.attention_mask)
    return masked_mean(cross_entropy(now.logps), batch.completion_mask, count)


def sft_fused(policy, batch, old_logps, advantages, count):
    options = {"token_loss": cross_entropy, "mask": batch.completion_mask, "count": count}
    head = partial(fused_linear_loss, input_ids=batch.input_ids, **options)
    return policy(batch.input_ids, batch.attention_mask, head=head)[0]


def grpo(policy, batch, old_logps, advantages, count):
    now = policy(batch.input_ids, batch.attention_mask, temperature=0.7)
    losses = ppo_policy_loss(now.logps, old_logps=old_logps, advantages=advantages) - 0.1 * now.entropy
    return masked_mean(losses, batch.completion_mask, count)


def grpo_fused(policy, batch, old_logps, advantages, count):
    options = {"mask": batch.completion_mask, "count": count, "temperature": 0.7}
    inputs = {"old_logps": old_logps, "advantages": advantages}
    head = partial(fused_linear_loss, input_ids=batch.input_ids, token_loss=ppo_policy_loss, inputs=inputs, **options)
    return policy(batch.input_ids, batch.attention_mask, head=head)[0]


CASES = {case.__name__: case for case in (sft, sft_fused, grpo, grpo_fused)}
# adapters on frozen weights, on frozen 4-bit weights, and on the head too
ADAPTED = {"lora": grpo, "qlora": grpo_fused, "head": grpo, "head_fused": grpo_fused}
CASES |= ADAPTED


def model(case):
    if case.startswith("head"):
        policy = Policy(tiny.transformer(layers=2, tie_word_embeddings=False))
        return tiny.adapted(policy, targets=("all-linear", "lm_head"))
    policy = Policy(tiny.transformer(layers=2))
    assert policy.transformer.head_weight is policy.transformer.model.embed_tokens.weight
    policy = quantise_linears(policy) if case == "qlora" else policy
    return tiny.adapted(policy) if case in ADAPTED else policy


def gradients(policy, case):
    """Gradients of one update on this process's rows of eight, in two micro-batches."""
    rows = local_rows([(i, row) for i, row in enumerate(tiny.rows(8))])
    count = all_sum(torch.tensor(float(sum(len(row.responses[0]) for _, row in rows))))
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        batch = pad_sequences([row.prompt for _, row in part], [row.responses[0] for _, row in part], 0)
        width = batch.input_ids.shape[1]
        old_logps, advantages = torch.zeros(2, len(part), width, dtype=torch.float64)
        for k, (i, _) in enumerate(part):  # the noise depends on the row alone, not on its batch
            generator = torch.Generator().manual_seed(i)
            old_logps[k] = -3 + 0.3 * torch.randn(64, generator=generator, dtype=torch.float64)[:width]
            advantages[k] = torch.randn(1, generator=generator, dtype=torch.float64)
        backward(CASES[case](policy, batch, old_logps, advantages, count))
    found = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
    assert case not in ADAPTED or all(".adapters." in name for name in found)
    policy.zero_grad()
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


@pytest.fixture(scope="module")
def sharded(forks, tmp_path_factory):
    """case -> the gathered gradients of two processes."""
    folder = tmp_path_factory.mktemp("sharded")
    done = forks.ranks(__file__, folder)
    assert [process.returncode for process in done] == [0, 0], done
    return {case: load_file(folder / f"{case}.safetensors") for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_a_sharded_policy_equal_the_gradients_of_one_process(sharded, case):
    expected = gradients(model(case), case)
    bound = 1e-6 if case == "qlora" else 1e-9  # 4-bit weights are read as fp32, so their adapters are rounded too
    assert_close(sharded[case], expected, rtol=bound, atol=bound)
    assert all(g.abs().max() > 1e-3 for g in expected.values())


def test_the_weights_were_really_sharded(sharded):
    for case in CASES.keys() - ADAPTED.keys():  # of 30 x 16 embedding weights each process holds 15 x 16
        assert sharded[case]["transformer.model.embed_tokens.weight"].shape == (30, 16)


def run(folder):
    with process_group(torch.device("cpu")):
        mesh = init_device_mesh("cpu", (2,))
        for case in CASES:
            policy = model(case)
            for block in policy.transformer.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(policy, mesh=mesh)  # embedding and head in one unit, so that the head is gathered for the loss
            assert policy.transformer.head_weight.to_local().shape == (15, 16)
            found = gradients(policy, case)
            if rank() == 0:
                save_file({name: g.contiguous() for name, g in found.items()}, folder / f"{case}.safetensors")
        barrier()  # leaving the group while the other process still writes would end gloo's threads


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
