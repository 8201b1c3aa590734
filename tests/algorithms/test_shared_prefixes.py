"""Trainers learn the same whether rows share the computation of their beginnings or not, on any number of processes."""

import pytest
import tiny
from conftest import train_as_ranks
from test_two_processes import check_case
from torch.testing import assert_close

from minirlhf.model.prefix_tree import TreeAttention

FEW = ("grpo", "dpo")
MANY = ("ppo_lora", "sft", "reward", "gspo", "kto", "nash_md", "gkd")


@pytest.mark.parametrize("case", [*FEW, *(pytest.param(case, marks=pytest.mark.slow) for case in MANY)])
def test_a_trainer_learns_the_same_with_shared_beginnings(case, monkeypatch):
    apart = tiny.CASES[case]()
    log = tiny.train(apart, tiny.batches(8))
    tiny.share_short_prefixes(monkeypatch.setattr)
    calls, forward = [], TreeAttention.forward
    monkeypatch.setattr(TreeAttention, "forward", lambda *args: calls.append(1) or forward(*args))
    together = tiny.CASES[case]()
    for found, expected in zip(tiny.train(together, tiny.batches(8)), log, strict=True):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert calls  # some rows did share their beginning
    assert_close(tiny.weights(together), tiny.weights(apart), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def ranks_with_shared_beginnings(forks, tmp_path_factory):
    cases = ",".join(tiny.CASES)
    return train_as_ranks(forks, tmp_path_factory.mktemp("ranks"), SHARDED=cases, FEW="kto", PREFIXES="1")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["", "-fsdp"])
@pytest.mark.parametrize("case", tiny.CASES)
def test_two_processes_with_shared_beginnings_train_as_one_process(ranks_with_shared_beginnings, case, strategy):
    check_case(ranks_with_shared_beginnings, case, case + strategy)
