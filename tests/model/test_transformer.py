"""The forward against the equations written as loops; with a cache against without; no influence of padding.

B sequences, T tokens.
"""

import math
import re

import pytest
import torch
from torch.testing import assert_close

from minirlhf.errors import InputError
from minirlhf.model import KVCache, ModelConfig, Transformer
from minirlhf.model.config import FULL
from minirlhf.model.context import check_right_padding
from minirlhf.model.rope import rope_tables, rotate


def plain_forward(model, tokens):
    """Logits [T, V] of one sequence: the Llama equations (arXiv:2302.13971), one position and one head at a time."""
    config, weights = model.config, model.state_dict()
    T, E, heads = len(tokens), config.head_width, config.num_attention_heads

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weights[f"model.{name}.weight"]

    def turn(x, position):  # pairs (i, i + E/2), each by its own angle
        out = x.clone()
        for i in range(E // 2):
            angle = position * config.rope_theta ** (-2 * i / E)
            a, b = x[i], x[i + E // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + E // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    x = weights["model.embed_tokens.weight"][tokens]
    for n in range(config.num_hidden_layers):
        w = {key.split(".")[-2]: value for key, value in weights.items() if key.startswith(f"model.layers.{n}.")}
        h = norm(x, f"layers.{n}.input_layernorm")
        q, k, v = (
            [[row[i * E : (i + 1) * E] for i in range(len(row) // E)] for row in h @ w[name].T]
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = torch.zeros(T, heads * E, dtype=x.dtype)
        for t in range(T):
            for i in range(heads):
                j = i * config.num_key_value_heads // heads  # neighbours share a key-value head
                scores = torch.stack([turn(q[t][i], t) @ turn(k[s][j], s) for s in range(t + 1)]) / E**0.5
                out[t, i * E : (i + 1) * E] = scores.softmax(0) @ torch.stack([v[s][j] for s in range(t + 1)])
        x = x + out @ w["o_proj"].T
        h = norm(x, f"layers.{n}.post_attention_layernorm")
        gate = h @ w["gate_proj"].T
        x = x + (gate * gate.sigmoid() * (h @ w["up_proj"].T)) @ w["down_proj"].T
    head = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return norm(x, "norm") @ head.T


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 1, "tie_word_embeddings": False, "rope_theta": 50.0}])
def test_the_forward_equals_the_equations_written_as_loops(make, ids, changes):
    model = make(**changes).double()
    assert_close(model(ids[:1])[0], plain_forward(model, ids[0]), atol=1e-6, rtol=1e-6)  # rotary tables are fp32


def test_rotary_positions_turn_pairs_of_the_two_halves_by_hand():
    # E = 4, theta = 10,000: pairs (0, 2) and (1, 3) turn by p and p / 100
    config = ModelConfig(head_dim=4, max_position_embeddings=8)
    cos, sin = (table[[0, 3], None] for table in rope_tables(config, FULL, 4, torch.device("cpu")))
    turned = rotate(torch.tensor([1.0, 1, 0, 0]).expand(1, 2, 1, 4), cos, sin)[0, :, 0]
    c3, s3, c03, s03 = math.cos(3), math.sin(3), math.cos(0.03), math.sin(0.03)
    assert_close(turned, torch.tensor([[1.0, 1, 0, 0], [c3, c03, s3, s03]]))


def test_a_token_does_not_see_what_follows(make, ids):
    model, later = make(), ids.clone()
    later[:, 5] = (ids[:, 5] + 1) % 37
    changed = (model(ids) != model(later)).any(-1)
    assert not changed[:, :5].any() and changed[:, 5:].all()


@pytest.mark.parametrize("chunk", [1, 2, 3, 9])
def test_cached_decoding_equals_the_full_forward(make, ids, mask, chunk):
    model = make()
    cache = KVCache(model.config, 4, 9, torch.device("cpu"))
    parts = [model(ids[:, s : s + chunk], mask[:, s : s + chunk], cache) for s in range(0, 9, chunk)]
    assert_close(torch.cat(parts, 1)[mask], model(ids, mask)[mask], atol=1e-5, rtol=1e-5)
    assert cache.lengths.tolist() == [9, 4, 1, 7]


def test_after_ragged_prompts_each_row_continues_at_its_own_end(make, ids, mask):
    # as in generation: prompts of 9, 4, 1 and 7 tokens, then three tokens for every row
    model, more = make(), torch.tensor([[3, 4, 5], [6, 7, 8], [9, 10, 11], [12, 13, 14]])
    cache = KVCache(model.config, 4, 12, torch.device("cpu"))
    model(ids, mask, cache)
    logits = torch.cat([model(more[:, t : t + 1], cache=cache) for t in range(3)], 1)
    for row, n in enumerate(mask.sum(-1)):
        alone = model(torch.cat((ids[row, :n], more[row]))[None])[0, -3:]
        assert_close(logits[row], alone, atol=1e-5, rtol=1e-5)


def test_selected_rows_of_a_cache_continue_as_before(make, ids, mask):
    model, rows = make(), torch.tensor([3, 1])
    whole, some = (KVCache(model.config, 4, 12, torch.device("cpu")) for _ in range(2))
    for cache in (whole, some):
        model(ids, mask, cache)
    some.select(rows)
    token = torch.tensor([[5]])
    assert_close(model(token.expand(2, 1), cache=some), model(token.expand(4, 1), cache=whole)[rows])
    assert some.lengths.tolist() == [8, 5]


def test_junk_in_padding_changes_no_real_output(make, ids, mask, junk):
    model = make()
    assert torch.equal(model(ids, mask)[mask], model(junk, mask)[mask])
    caches = [KVCache(model.config, 4, 12, torch.device("cpu")) for _ in range(2)]
    first, second = (model(x, mask, cache)[mask] for x, cache in zip((ids, junk), caches, strict=True))
    assert torch.equal(first, second)
    token = torch.full((4, 1), 5)
    assert torch.equal(*(model(token, cache=cache) for cache in caches))


def test_width_of_padding_changes_no_real_output(make, ids, mask):
    model = make()
    assert_close(model(ids[1:2, :4])[0], model(ids, mask)[1, :4])


def test_with_a_cache_gradient_checkpointing_changes_nothing(make, ids):
    model = make(num_hidden_layers=3)
    wanted = model(ids)
    model.model.gradient_checkpointing = True  # with gradients on
    cache = KVCache(model.config, 4, 9, torch.device("cpu"))
    parts = [model(part, cache=cache) for part in ids.split(4, dim=1)]
    assert_close(torch.cat(parts, dim=1), wanted)


def test_gradient_checkpointing_gives_the_same_gradients_and_runs_blocks_twice(make, ids, mask):
    gradients, calls = [], []
    for every in (0, 1, 2):
        model = make(num_hidden_layers=3)
        model.model.gradient_checkpointing = every
        runs = []
        for block in model.model.layers:
            block.mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        model(ids, mask).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        calls.append(len(runs))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))
    assert calls == [3, 6, 5]  # the first and the third block run again with every = 2


def test_tied_head_is_the_embedding(make, ids):
    model = make()
    assert model.head_weight is model.model.embed_tokens.weight and "lm_head.weight" not in model.state_dict()
    assert_close(model(ids), model.model(ids) @ model.model.embed_tokens.weight.T)


def test_untied_head_has_weights_of_its_own(make, ids):
    model = make(tie_word_embeddings=False)
    assert model.head_weight is model.lm_head.weight
    assert_close(model(ids), model.model(ids) @ model.lm_head.weight.T)
    before = model.model(ids)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert not model(ids).any() and torch.equal(model.model(ids), before)


def test_grouped_query_attention_is_attention_with_repeated_key_value_heads(make, ids):
    grouped, full = make(), make(num_key_value_heads=4)
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weight.view(2, 6, 24).repeat_interleave(2, 0).flatten(0, 1)  # heads 0 0 1 1
    full.load_state_dict(weights)
    assert_close(grouped(ids), full(ids))


def test_output_projections_start_smaller_in_a_deeper_network():
    torch.manual_seed(0)
    block = Transformer(ModelConfig(num_hidden_layers=8)).model.layers[0]
    # 0.02 / sqrt(2 * 8) = 0.005
    for weight, std in ((block.self_attn.o_proj.weight, 0.005), (block.mlp.down_proj.weight, 0.005)):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert block.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("cached", [False, True])
def test_context_too_long_is_refused(make, cached):
    model = make()
    cache = KVCache(model.config, 1, 17, torch.device("cpu")) if cached else None
    if cached:
        model(torch.zeros(1, 10, dtype=torch.int64), cache=cache)
    text = (
        "Transformer: the context holds 16 tokens, got 17; shorten the prompt or the response, or use a model with a "
        "longer context"
    )
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        model(torch.zeros(1, 7 if cached else 17, dtype=torch.int64), cache=cache)


def test_a_cap_bounds_the_logits(make, ids):
    plain, capped = make()(ids), make(final_logit_softcapping=2.0)(ids)
    assert_close(capped, 2 * torch.tanh(plain / 2))
    assert plain.abs().max() > 3 and capped.abs().max() < 2


def test_context_may_be_filled_to_the_last_token(make):
    assert make()(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 16, 37)


@pytest.mark.parametrize("row", [[False, True, True], [True, False, True]])
def test_padding_before_a_token_is_refused(make, row):
    text = "^Transformer: padding must be on the right, got a mask with a gap or padding on the left$"
    with pytest.raises(ValueError, match=text):
        make()(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([row]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_mask_that_is_not_bool_is_refused(make, dtype):
    text = f"^Transformer: attention_mask must be bool with True = real, got {dtype}$"
    with pytest.raises(ValueError, match=text):
        make()(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=dtype))


def test_full_and_empty_rows_count_as_right_padded():
    check_right_padding(torch.tensor([[True, True], [True, False], [False, False]]), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 3\) like input_ids, got \(2, 2\)"):
        check_right_padding(torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 3))
