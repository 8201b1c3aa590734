"""Logits tile by tile, against logits in the open, for every shape of tile. N tokens, V vocabulary, D width."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from minirlhf.losses import linear_logps_and_entropy, linear_token_logps, token_entropy, token_logps
from minirlhf.losses.tiles import chunks_of, tiles_of, within

N, V, D = 9, 11, 3


@pytest.fixture
def tile(monkeypatch):
    """tile(tokens, columns) sets the size of the tiles."""

    def set_size(tokens, columns):
        monkeypatch.setattr("minirlhf.losses.tiles.COLUMNS", columns)
        monkeypatch.setattr("minirlhf.losses.tiles.CHUNK_NUMBERS", tokens * min(columns, V))

    return set_size


def head(dtype=torch.float64):
    """hidden [1, N, D], weight [V, D], bias [V], all with gradient, and input_ids [1, N]."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, N, D), (V, D), (V,)
    parts = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    return *parts, torch.randint(V, (1, N), generator=generator)


def plain(hidden, weight, input_ids, temperature, bias, softcap):
    logits = F.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return token_logps(logits, input_ids, temperature), token_entropy(logits, temperature)


@pytest.mark.parametrize("columns", [1, 4, V, 100])
@pytest.mark.parametrize("tokens", [1, 4, 100])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, 0.8)])
@pytest.mark.parametrize("reads", ["logps", "entropy", "both"])
def test_tiles_equal_the_open_logits_in_value_and_gradient(tile, columns, tokens, temperature, softcap, reads):
    tile(tokens, columns)
    noise = torch.randn(2, 1, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = noise * torch.tensor({"logps": [1.0, 0.0], "entropy": [0.0, 1.0], "both": [1.0, 1.0]}[reads])[:, None, None]
    found = []
    for function in (linear_logps_and_entropy, plain):
        *leaves, ids = head()
        outputs = function(*leaves[:2], ids, temperature, leaves[2], softcap)
        used = [(w * x).sum() for w, x in zip(noise, outputs, strict=True) if w.any()]
        found.append((*outputs, *torch.autograd.grad(sum(used), leaves)))
    assert_close(*found, rtol=1e-10, atol=1e-12)


def test_log_probs_alone_are_those_beside_the_entropy(tile):
    tile(4, 2)
    hidden, weight, _, ids = head(torch.float32)
    assert torch.equal(linear_token_logps(hidden, weight, ids), linear_logps_and_entropy(hidden, weight, ids)[0])


@pytest.mark.parametrize("columns", [1, 3, V])
def test_an_offset_of_all_logits_costs_no_digits(tile, columns):
    # in fp32 a logsumexp of 1e4 has steps of 1e-3. Multiples of 1/8 have exact products
    tile(4, columns)
    hidden, weight, _, ids = head(torch.float32)
    hidden, weight = ((x.detach() * 8).round() / 8 for x in (hidden, weight))
    outputs = linear_logps_and_entropy(F.pad(hidden, (0, 1), value=1e4), F.pad(weight, (0, 1), value=1.0), ids)
    assert_close(outputs, plain(hidden, weight, ids, 1.0, None, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 3])
def test_a_tile_of_banned_tokens_adds_nothing(tile, columns):
    tile(4, columns)
    hidden, weight, bias, ids = head()
    ids = ids.clamp(max=4)
    banned = torch.where(torch.arange(V) < 6, bias.detach(), -math.inf)
    got = linear_token_logps(hidden, weight, ids, bias=banned)
    assert_close(got, linear_token_logps(hidden, weight[:6], ids, bias=bias[:6]))
    grads = [torch.autograd.grad(linear_token_logps(hidden, weight[:n], ids, bias=b).sum(), hidden)[0]
             for n, b in ((V, banned), (6, bias[:6]))]  # fmt: skip
    assert_close(*grads)


def test_without_tokens_the_gradient_is_0():
    weight, mask = torch.ones(V, D, requires_grad=True), torch.zeros(1, 2, dtype=torch.bool)
    logps = linear_token_logps(torch.ones(1, 2, D), weight, torch.zeros(1, 2, dtype=torch.long), mask=mask)
    assert torch.autograd.grad(logps.sum(), weight)[0].eq(0).all()


def test_tiles_cover_every_token_and_column_once(tile):
    tile(4, 4)
    assert chunks_of(N, 4) == [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert tiles_of(V) == [slice(0, 4), slice(4, 8), slice(8, 11)]
    ids = torch.arange(V)
    assert [ids[within(ids, columns)[1]].tolist() for columns in tiles_of(V)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]
    assert within(ids, slice(8, 11))[0].tolist() == [0] * 9 + [1, 2]


class HostReads(TorchDispatchMode):
    """Names of operations whose result the host reads."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_local_scalar_dense" in func.__name__ or "nonzero" in func.__name__:
            self.reads.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_the_host_reads_nothing_between_the_tiles(tile):
    tile(4, 4)
    *leaves, ids = head()
    with HostReads() as seen:
        logps, entropy = linear_logps_and_entropy(*leaves[:2], ids, bias=leaves[2])
        (logps + entropy).sum().backward()
    assert seen.reads == []
