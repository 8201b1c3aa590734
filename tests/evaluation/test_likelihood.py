"""Likelihood of texts: windows by hand, and log-probs of a tiny model."""

import copy
import math

import pytest
import torch

from minirlhf.errors import InputError
from minirlhf.evaluation.likelihood import Likelihood, likelihoods, rolling_windows, window_logps
from minirlhf.losses import token_logps
from minirlhf.model import ModelConfig, Policy, Transformer

CONTEXT = 10


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}
    model = Transformer(ModelConfig(50, 16, **size, max_position_embeddings=CONTEXT)).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return Policy(model)


def row(given, counted):
    """A row that counts its second part."""
    return [*given, *counted], [False] * len(given) + [True] * len(counted)


def windows(text, length, overlap=1):
    """What a model reads and what it predicts."""
    spans = rolling_windows(len(text), length, overlap)
    return [(text[start : stop - 1], text[first:stop]) for start, first, stop in spans]


def test_windows_by_hand():
    # lm-evaluation-harness: tokens 0 to 33 after a prefix, windows of 10, one token of context
    text = [-100, *range(34)]
    assert windows(text, 10) == [
        ([-100, *range(9)], list(range(10))),
        (list(range(9, 19)), list(range(10, 20))),
        (list(range(19, 29)), list(range(20, 30))),
        (list(range(23, 33)), list(range(30, 34))),  # full, because it begins early
    ]
    # its documentation: P and tokens 0 to 8, windows of 3, two tokens of context
    assert windows(["P", *range(9)], 3, 2) == [
        (["P", 0, 1], [0, 1, 2]),
        ([1, 2, 3], [3, 4]),
        ([3, 4, 5], [5, 6]),
        ([5, 6, 7], [7, 8]),
    ]
    assert windows(["P", 0, 1], 5) == [(["P", 0], [0, 1])]
    assert windows(["P"], 5) == []


@pytest.mark.parametrize(("n", "length", "overlap"), [(40, 7, 1), (40, 7, 4), (40, 7, 7), (8, 7, 3), (9, 7, 3)])
def test_each_token_is_predicted_once_from_enough_tokens(n, length, overlap):
    text = list(range(n))
    found = windows(text, length, overlap)
    assert [token for _, predicted in found for token in predicted] == text[1:]
    for read, predicted in found:
        assert len(read) <= length and read[-1] == predicted[-1] - 1  # the last token before the last prediction
        assert read[0] == 0 or predicted[0] - read[0] >= overlap
    for bad in (0, length + 1):
        with pytest.raises(InputError, match="overlap: needed 1 to 7"):
            list(rolling_windows(n, length, bad))


def test_likelihood_is_the_sum_of_log_probs(policy):
    given, counted = [1, 7, 8], [9, 4, 4, 2]
    ids = torch.tensor([given + counted])
    logps = token_logps(policy.transformer(ids), ids)[0]
    ((nll, tokens),) = likelihoods(policy, [row(given, counted)])
    assert tokens == 4 and nll == pytest.approx(-logps[3:].sum().item(), rel=1e-9)


def test_a_long_text_is_the_sum_of_its_windows(policy):
    # 24 tokens after BOS in windows of 10: 1-10, 11-20, 21-24; each window is a forward of its own
    text = [1, *(3 + 7 * i % 40 for i in range(24))]
    expected = 0.0
    for start, first, stop in [(0, 1, 11), (10, 11, 21), (14, 21, 25)]:
        logits = policy.transformer(torch.tensor([text[start : stop - 1]]))[0].log_softmax(-1)
        expected -= sum(logits[i - start - 1, text[i]].item() for i in range(first, stop))
    rows = [row([1], text[1:]), row([1], [5]), row(text[:22], text[22:]), row([1], [])]
    nlls = likelihoods(policy, rows, microbatch_tokens=30)
    assert nlls[0] == (pytest.approx(expected, rel=1e-9), 24)
    logits = policy.transformer(torch.tensor([text[14:24]]))[0].log_softmax(-1)  # the window of tokens 21 to 24
    assert nlls[2] == (pytest.approx(-sum(logits[i - 15, text[i]].item() for i in range(22, 25)), rel=1e-9), 3)
    assert nlls[1][1] == 1 and nlls[3] == (0.0, 0)


def test_more_overlap_gives_more_context(policy):
    text = [1, *(3 + 7 * i % 40 for i in range(24))]
    seen = {overlap: likelihoods(policy, [row([1], text[1:])], overlap=overlap)[0] for overlap in (1, CONTEXT)}
    logits = [policy.transformer(torch.tensor([text[max(0, i - CONTEXT) : i]]))[0, -1] for i in range(1, 25)]
    each = -sum(row.log_softmax(-1)[text[i]].item() for i, row in enumerate(logits, start=1))
    assert seen[CONTEXT] == (pytest.approx(each, rel=1e-9), 24)
    assert seen[1][0] != pytest.approx(each, rel=1e-6)


def test_window_logps_are_those_of_the_policy(policy):
    ids = torch.tensor([[1, 5, 9, 2], [3, 4, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    ours = torch.where(mask, window_logps(policy, ids, mask), 0)
    torch.testing.assert_close(ours, policy(ids, mask).logps)


def test_measures_by_hand():
    # three tokens of probability 1/8, six bytes: 9 bits
    both = Likelihood(2 * math.log(8), 2, 4) + Likelihood(math.log(8), 1, 2)
    assert both.measures() == {"perplexity": pytest.approx(8.0), "bits_per_byte": pytest.approx(1.5)}
    assert Likelihood().measures() == {"perplexity": None, "bits_per_byte": None}
    assert Likelihood(1e6, 1, 1).measures()["perplexity"] == math.exp(700)  # JSON has no infinity


def test_counted_tokens_may_have_gaps(policy):
    ids, counted = [1, 7, 8, 9, 4, 4], [False, True, False, False, True, False]
    logps = token_logps(policy.transformer(torch.tensor([ids])), torch.tensor([ids]))[0]
    assert likelihoods(policy, [(ids, counted)]) == [(pytest.approx(-(logps[1] + logps[4]).item(), rel=1e-9), 2)]


def test_bad_rows_and_broken_weights_are_refused(policy):
    for bad in (([], []), ([1, 2], [True, True])):
        with pytest.raises(InputError, match="needed a token before each text"):
            likelihoods(policy, [bad])
    broken = copy.deepcopy(policy)
    with torch.no_grad():
        broken.transformer.model.norm.weight.fill_(math.nan)
    with pytest.raises(InputError, match="log-probs are not finite"):
        likelihoods(broken, [row([1], [2])])
