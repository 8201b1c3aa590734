"""A token from a uniform number: worked by hand, at the edges, and on average."""

import pytest
import torch
from torch.testing import assert_close

from minirlhf.generation.cumulative import first_exceeding
from minirlhf.generation.sampling import sample
from minirlhf.generation.truncation import truncate
from minirlhf.runtime.randomness import keyed_uniforms

P = torch.tensor([[0.1, 0.2, 0.3, 0.4]])  # cumulative 0.1, 0.3, 0.6, 1.0
LARGEST_UNIFORM = 1 - 2.0**-53


def draw(uniforms, probs=P, **settings):
    uniforms = torch.tensor(uniforms, dtype=torch.float64)
    return sample(probs.log().expand(len(uniforms), -1), uniforms, **settings)


def test_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform():
    tokens, logps, mass_kept = draw([0.05, 0.15, 0.29, 0.31, 0.59, 0.61, 0.95])
    assert tokens.tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert_close(logps, torch.tensor([0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4]).log())
    assert_close(mass_kept, torch.ones(7))


def test_a_uniform_on_the_boundary_belongs_to_the_next_token():
    # quarters are exact in binary: cumulative 0.25, 0.5, 0.75, 1
    assert first_exceeding(torch.tensor([[0.25] * 4]).expand(4, -1), torch.tensor([0.0, 0.25, 0.5, 0.75])).tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_the_ends_of_the_unit_interval_stay_in_range():
    assert draw([0.0, LARGEST_UNIFORM])[0].tolist() == [0, 3]
    logits = torch.randn(64, 999, generator=torch.Generator().manual_seed(0))
    u = torch.full((64,), LARGEST_UNIFORM, dtype=torch.float64)
    assert (sample(logits, u)[0] == 998).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, LARGEST_UNIFORM])
def test_tokens_without_probability_are_never_drawn(uniform):
    # banned first, last and between: u = 0 must not take the first, u near 1 not the last
    logits = torch.tensor([[-torch.inf, 0.3, -torch.inf, 1.0, -torch.inf]])
    token, logp, _ = sample(logits, torch.tensor([uniform], dtype=torch.float64))
    assert token.item() in (1, 3) and logp.isfinite()


def test_cumulative_sum_is_taken_in_float64():
    # 2^20 equal tokens: in fp32 the steps of the running sum near 1 are wrong by more than half a token
    n = 2**20
    indices = torch.tensor([1, n // 3, n // 2 + 1, n - 2])
    tokens = first_exceeding(torch.ones(1, n).expand(4, -1), (indices.double() + 0.5) / n)
    assert tokens.tolist() == indices.tolist()


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 128, 999, 50_257])
def test_the_search_by_blocks_finds_the_token_of_one_running_sum(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    probs = (3 * torch.randn(40, vocabulary, generator=generator)).softmax(-1)
    probs[torch.rand(probs.shape, generator=generator) < 0.3] = 0  # whole blocks too, below
    probs[:20, 64:256], probs[:, vocabulary // 2] = 0, 1e-3
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    uniforms[:3] = torch.tensor([0.0, LARGEST_UNIFORM, 0.5])
    ends = probs.double().cumsum(-1)
    tokens = first_exceeding(probs, uniforms)
    threshold = (uniforms * ends[:, -1])[:, None]
    start, end = (ends - probs).gather(1, tokens[:, None]), ends.gather(1, tokens[:, None])
    assert (probs.gather(1, tokens[:, None]) > 0).all()
    assert ((start - 1e-6 <= threshold) & (threshold <= end + 1e-6)).all()  # blocks are summed in fp32


def test_top_k_by_hand():
    # 0.3 and 0.4 are left, of mass 0.7: 3/7 and 4/7; 3/7 = 0.4286
    tokens, logps, mass_kept = draw([0.0, 0.42, 0.43, 0.99], top_k=2)
    assert tokens.tolist() == [2, 2, 3, 3]
    assert_close(logps, torch.tensor([3 / 7, 3 / 7, 4 / 7, 4 / 7]).log())
    assert_close(mass_kept, torch.full((4,), 0.7))


def test_top_p_by_hand():
    # likeliest first 0.4, 0.3, 0.2, 0.1: 0.4 < 0.65, so 0.3 joins; 0.7 >= 0.65, so 0.2 does not
    tokens, logps, mass_kept = draw([0.0, 0.42, 0.43, 0.99], top_p=0.65)
    assert tokens.tolist() == [2, 2, 3, 3]
    assert_close(logps, torch.tensor([3 / 7, 3 / 7, 4 / 7, 4 / 7]).log())
    assert_close(mass_kept, torch.full((4,), 0.7))


@pytest.mark.parametrize(
    ("top_k", "top_p", "left"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (4, 1.0, [0, 1, 2, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (3, 1.0, [1, 2, 3]),
        (1, 1.0, [3]),
        (0, 0.95, [0, 1, 2, 3]),
        (0, 0.85, [1, 2, 3]),
        (0, 0.45, [2, 3]),
        (0, 0.35, [3]),
        (0, 1e-9, [3]),
        (1, 0.95, [3]),  # the stricter of the two decides
        (3, 0.45, [2, 3]),
    ],
)
def test_what_truncation_leaves(top_k, top_p, left):
    logps, mass_kept = truncate(P.log(), top_k, top_p)
    assert logps.isfinite().squeeze(0).nonzero().squeeze(1).tolist() == left
    assert_close(logps.exp().sum(), torch.tensor(1.0))
    assert_close(mass_kept, P[:, left].sum(-1))
    assert_close(logps[:, left].exp(), P[:, left] / P[:, left].sum())


def test_top_k_keeps_the_first_of_equals():
    assert truncate(torch.zeros(1, 4).log_softmax(-1), 2, 1.0)[0].isfinite().tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 1.0), (0, 0.3), (0, 0.9), (0, 0.999), (40, 0.9), (3000, 0.999)])
@pytest.mark.parametrize("spread", [0.2, 3.0])  # nearly equal tokens: thousands in the nucleus; or some tens
def test_truncation_is_the_cut_of_a_full_sort(top_k, top_p, spread):
    """Whole numbers among the logits give many ties."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(6, 4000, generator=generator)
    logits[::2] = logits[::2].round()
    logps = logits.log_softmax(-1)
    ordered, order = logps.sort(dim=-1, descending=True, stable=True)
    keep = ordered.exp().cumsum(-1) - ordered.exp() < top_p if top_p < 1 else torch.ones_like(ordered, dtype=torch.bool)
    keep[:, top_k or 4000 :] = False
    expected = torch.zeros_like(keep).scatter(-1, order, keep)
    cut, mass_kept = truncate(logps, top_k, top_p)
    assert torch.equal(cut.isfinite(), expected)
    assert_close(mass_kept, torch.where(expected, logps.exp(), 0).sum(-1))


@pytest.mark.parametrize("top_k", [0, -1, 5000, 9999])
def test_without_truncation_every_bit_of_the_log_probs_stays(top_k):
    # a running sum in fp32 reaches 1 long before the last of these tokens, and would drop the rest
    logps = torch.linspace(0, -30, 5000)[None].log_softmax(-1)
    kept, mass_kept = truncate(logps, top_k, 1.0)
    assert torch.equal(kept, logps) and mass_kept.tolist() == [1.0]


def test_temperature_divides_the_logits_before_truncation():
    # T = 0.5 squares: 1, 4, 9, 16 over 30; top-2 leaves 9 and 16 of 25
    tokens, logps, mass_kept = draw([0.1, 0.5, 0.9], temperature=0.5)
    assert tokens.tolist() == [1, 3, 3]
    assert_close(logps, torch.tensor([4 / 30, 16 / 30, 16 / 30]).log())
    tokens, logps, mass_kept = draw([0.1, 0.5], temperature=0.5, top_k=2)
    assert tokens.tolist() == [2, 3]
    assert_close(logps, torch.tensor([9 / 25, 16 / 25]).log())
    assert_close(mass_kept, torch.full((2,), 25 / 30))


def test_greedy_takes_the_largest_logit_whatever_the_uniform():
    tokens, logps, mass_kept = draw([0.0, 0.5, LARGEST_UNIFORM], temperature=0)
    assert tokens.tolist() == [3, 3, 3]
    assert not logps.any() and mass_kept.tolist() == [1, 1, 1]


@pytest.mark.parametrize("settings", [{"temperature": 0}, {}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.5}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_row_with_a_broken_logit_has_no_finite_log_prob(settings, dtype):
    broken = [[torch.nan, 0, 1], [0, 1, torch.nan], [torch.inf, 0, 0], [0, torch.inf, torch.inf], [-torch.inf] * 3]
    logits = torch.tensor([*broken, [0, 2, 1], [-torch.inf, 0, -torch.inf]], dtype=dtype)
    tokens, logps, _ = sample(logits, torch.full((7,), 0.5), **settings)
    assert logps.isfinite().tolist() == [False] * 5 + [True] * 2  # -inf forbids a token and breaks nothing
    assert tokens[5:].tolist() == [1, 1] and logps[6] == 0


@pytest.mark.parametrize(
    ("settings", "left"), [({}, [0, 1, 2, 3]), ({"top_k": 3}, [1, 2, 3]), ({"top_p": 0.65}, [2, 3])]
)
def test_frequencies_are_the_probabilities(settings, left):
    n = 40_000
    uniforms = keyed_uniforms(0, "frequencies", torch.arange(n))
    tokens = sample(P.log().expand(n, -1), uniforms, **settings)[0]
    p = torch.zeros(4)
    p[left] = P[0, left] / P[0, left].sum()
    error = (p * (1 - p) / n).sqrt()
    assert ((tokens.bincount(minlength=4) / n - p).abs() <= 4 * error).all()


def test_rows_are_drawn_apart():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)) * 3
    uniforms = keyed_uniforms(0, "rows", torch.arange(50))
    together = sample(logits, uniforms, temperature=0.7, top_k=7, top_p=0.9)
    for i in range(50):
        alone = sample(logits[i : i + 1], uniforms[i : i + 1], temperature=0.7, top_k=7, top_p=0.9)
        for all_rows, single in zip(together, alone, strict=True):
            assert_close(all_rows[i], single[0])
