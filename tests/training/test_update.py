"""One update: micro-batches, sums over them, and the state that a checkpoint keeps."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from minirlhf.losses import FixedKLController
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


def test_micro_batches_yields_every_group_once_in_order():
    model = torch.nn.Linear(1, 1)
    assert list(micro_batches([[3, 1], [2], [0]], model, None)) == [[3, 1], [2], [0]]
    assert list(micro_batches([], model)) == []


def test_gradients_are_exchanged_in_the_last_micro_batch_only(monkeypatch):
    calls, models = [], [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]

    def gradient_sync(model, enabled):
        calls.append((model, enabled))
        return torch.enable_grad()

    monkeypatch.setattr("minirlhf.runtime.parallel.wrapping.gradient_sync", gradient_sync)
    monkeypatch.setattr("minirlhf.training.update.world_size", lambda: 2)
    assert list(micro_batches("abc", *models)) == ["a", "b", "c"]
    assert calls == [(model, last) for last in (False, False, True) for model in models]


def test_sums_of_terms_over_micro_batches_are_the_mean_over_the_update():
    # (1 + 2 + 6) / 3 = 3; with a mask (1 + 6) / 2 = 3.5; a term already divided is added as it is: 0.25 + 0.5 = 0.75
    sums = Sums()
    mask = torch.tensor([[True, False]])
    sums.add(3.0, term=torch.tensor([1.0, 2.0]))
    sums.add(3.0, term=torch.tensor([6.0]))
    sums.add(2.0, mask, masked=torch.tensor([[1.0, float("nan")]]))
    sums.add(2.0, mask, masked=torch.tensor([[6.0, 9.0]]))
    sums.add(loss=torch.tensor(0.25, requires_grad=True))
    sums.add(loss=torch.tensor(0.5, requires_grad=True))
    assert_close(dict(sums), {"term": torch.tensor(3.0), "masked": torch.tensor(3.5), "loss": torch.tensor(0.75)})
    assert list(sums) == ["term", "masked", "loss"] and not sums["loss"].requires_grad


def trainer(coef, steps_done, entropy=None):
    return SimpleNamespace(kl=FixedKLController(coef), steps_done=steps_done, entropy=entropy)


def test_the_state_of_a_trainer_goes_into_another_and_keeps_the_names():
    names = ("kl", "steps_done", "entropy")
    state = state_of(trainer(0.3, 7), names)
    assert state == {"kl": {"coef": 0.3}, "steps_done": 7}  # entropy is None: this trainer has none
    fresh = trainer(0.1, 0)
    load_state(fresh, names, state)
    assert fresh.kl.coef == 0.3 and fresh.steps_done == 7 and fresh.entropy is None


def test_a_state_that_lacks_a_part_of_the_trainer_is_refused():
    with pytest.raises(KeyError, match="entropy"):
        load_state(trainer(0.1, 0, entropy=FixedKLController(0.0)), ("entropy",), {"steps_done": 7})
