"""The names of minirlhf.losses: each leaf's file loads when one of its names is first used."""

import importlib

import pytest

from minirlhf import losses


def test_every_listed_name_is_in_its_file_and_in_dir():
    for module, names in losses.LEAVES.items():
        for name in names.split():
            assert getattr(losses, name) is getattr(importlib.import_module(module), name)
            assert name in dir(losses)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'minirlhf.losses' has no attribute 'no_loss'$"):
        losses.no_loss  # noqa: B018


def test_importing_the_losses_loads_no_leaf(forks):
    code = "import sys, minirlhf.losses as L; L.gae; print([name for name in L.LEAVES if name in sys.modules])"
    (done,) = forks.run(["-c", code])
    assert done.stdout.strip() == "[]"
