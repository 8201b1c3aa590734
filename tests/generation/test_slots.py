"""Sampling in slots gives the completions of the plain loop, for every kind of model, batch and end."""

import pytest
import torch

from minirlhf.adapters import LoRAConfig, apply_lora, quantise_linears
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.generation import slots as slots_module
from minirlhf.generation.decoder import Decoder
from minirlhf.generation.room import with_room
from minirlhf.generation.slot_cache import SlotCache
from minirlhf.model import KVCache, ModelConfig, Policy, Transformer
from minirlhf.model.config import FULL, SLIDING
from minirlhf.text import Tokenizer

EOS = 2
SHAPE = {"vocab_size": 23, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 48}
KINDS = {
    "llama": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "output_bias": True, "mlp_bias": True},
    "fused": {"fused_projections": True, "attention_bias": True},
    "gpt2": {
        "norm": "layer",
        "positions": "learned",
        "gated_mlp": False,
        "hidden_act": "gelu_tanh",
        "mlp_bias": True,
        "fused_projections": True,
    },
    "gemma": {
        "norm": "rms_plus_one",
        "norm_after": True,
        "embedding_scale": True,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 5.0,
        "layer_types": (SLIDING, FULL),
        "sliding_window": 5,
    },
    "local rope": {"layer_types": (SLIDING, FULL), "sliding_window": 3, "rope_local_theta": 100.0},
    "no rope": {"no_rope_layers": (1,)},
    "olmo": {"qk_norm": "width", "norm_before": False, "norm_after": True},
    "qwen3": {"qk_norm": "head", "head_dim": 8},
    "experts": {"num_experts": 4, "moe_intermediate_size": 16, "mlp_only_layers": (0,)},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
}


def model_of(dtype=torch.float32, **kind):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SHAPE | kind)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def prompts():
    """Ragged prompts, some of them three times."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (12,), generator=generator).tolist()
    distinct = [torch.randint(3, 23, (n,), generator=generator).tolist() for n in lengths]
    return [*distinct, *distinct[:6], *distinct[:6]]


def same(model, prompts, config, within=1e-5, **options):
    plain = generate(model, prompts, config, plain=True, **options)
    completions = generate(model, prompts, config, **options)
    assert [(c.ids, c.finish) for c in completions] == [(c.ids, c.finish) for c in plain]
    for ours, theirs in zip(completions, plain, strict=True):
        assert ours.logps == pytest.approx(theirs.logps, abs=within, rel=within)
        assert ours.mass_kept == pytest.approx(theirs.mass_kept, abs=within)
    return completions


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(kind, prompts):
    config = SamplingConfig(max_tokens=20, stop_ids=(EOS,), batch_size=7)
    completions = same(model_of(**KINDS[kind]), prompts, config)
    assert {c.finish for c in completions} == {"stop", "length"}


def test_in_float64_the_log_probs_agree_to_1e_6(prompts):  # they are kept in fp32
    same(model_of(torch.float64), prompts, SamplingConfig(max_tokens=9, stop_ids=(EOS,), batch_size=5), within=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decode_step_gives_the_logits_of_the_whole_text(kind):
    model = model_of(torch.float64, **KINDS[kind])
    config, lengths, ids = model.config, torch.tensor([3, 9, 6]), torch.randint(3, 23, (3, 12))
    cache = SlotCache(config, 5, 16, model.device, torch.float64)
    with torch.inference_mode():
        whole, read = model(ids), KVCache(config, 3, 12, model.device, torch.float64)
        model(ids, cache=read)
        cache.adopt([2, 0, 1], read)  # row k stands in slot (2, 0, 1)[k]
        cache.copy(torch.tensor([3]), torch.tensor([2]))
        cache.grow(20)
        cache.width, decoder, order = 11, Decoder(model, torch.float64), torch.tensor([1, 2, 0, 0])
        for step in range(2):  # a new token each, where other tokens stood in the cache
            at = lengths[order] + step
            logits = decoder(ids[order, at], at, cache)
            torch.testing.assert_close(logits, whole[order, at], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 8, 24, 100])
@pytest.mark.parametrize("tokens", [1, 2, 40])  # 40: longest prompts fill the context
def test_every_size_of_batch_and_length(batch_size, tokens, prompts):
    config = SamplingConfig(max_tokens=tokens, stop_ids=(EOS, 5), batch_size=batch_size, microbatch_tokens=32)
    keys = [(3, i % 12, i // 12) for i in range(24)]
    same(model_of(), prompts, config, seed=4, stream="x", keys=keys)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 4}, {"top_p": 0.6}])
def test_every_way_to_sample(options, prompts):
    same(model_of(), prompts, SamplingConfig(max_tokens=12, stop_ids=(EOS,), batch_size=6, **options))


def test_an_end_at_the_first_token_gives_the_slot_to_the_next_prompt(prompts):
    every_token = tuple(range(23))
    completions = same(model_of(), prompts, SamplingConfig(max_tokens=5, stop_ids=every_token, batch_size=3))
    assert all(len(c.ids) == 1 and c.finish == "stop" for c in completions)


@pytest.mark.parametrize("first", [1, 4])
def test_the_cache_grows_with_long_completions(prompts, monkeypatch, first):
    monkeypatch.setattr(slots_module, "FIRST_COLUMNS", first)
    model, seen = model_of(), []
    reserve = slots_module.Slots._reserve
    monkeypatch.setattr(
        slots_module.Slots,
        "_reserve",
        lambda self, columns: [reserve(self, columns), seen.append(self.cache.columns)],
    )
    same(model, prompts, SamplingConfig(max_tokens=40, stop_ids=(EOS,), batch_size=7))
    assert len(set(seen)) > 2 and seen == sorted(seen) and seen[-1] <= 48


def test_a_host_that_looks_seldom(prompts, monkeypatch):
    """As on a GPU: finished completions run on for some tokens."""
    monkeypatch.setattr(slots_module, "LOOK_EVERY", 5)
    monkeypatch.setattr(slots_module, "waits_for_a_look", lambda device: True)
    same(model_of(), prompts, SamplingConfig(max_tokens=17, stop_ids=(EOS,), batch_size=7))


def test_stop_strings_and_on_token(prompts):
    tokenizer = Tokenizer.train(["the end of the end", "the word stops here"] * 4, 290)
    model = model_of(vocab_size=290)
    config = SamplingConfig(max_tokens=20, stop_strings=("e", "st"), batch_size=4)
    heard = {}
    completions = same(model, prompts, config, tokenizer=tokenizer)
    generate(
        model, prompts, config, tokenizer=tokenizer, on_token=lambda i, token: heard.setdefault(i, []).append(token)
    )
    assert heard == {i: c.ids for i, c in enumerate(completions)}
    assert "stop" in {c.finish for c in completions}


def test_adapters_are_merged_and_stay_apart(prompts):
    policy = Policy(model_of())
    apply_lora(policy, LoRAConfig(r=3))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if name.endswith(".B"):
                p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    before = [p.clone() for p in policy.parameters()]
    same(policy.transformer, prompts, SamplingConfig(max_tokens=12, stop_ids=(EOS,)))
    assert all(torch.equal(p, q) for p, q in zip(before, policy.parameters(), strict=True))


def test_four_bits(prompts):
    policy = quantise_linears(Policy(model_of(hidden_size=64, intermediate_size=64)))
    # the weights of this model are large: at temperature 2 the rounding of its logits counts half
    same(policy.transformer, prompts, SamplingConfig(max_tokens=12, stop_ids=(EOS,), temperature=2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights(kind, prompts, monkeypatch):
    """Only large weights are packed, so the other tests of this file see none."""
    model = model_of(**KINDS[kind])
    assert not Decoder(model, torch.float32).head.packed
    monkeypatch.setattr("minirlhf.generation.decoder.PACKED", 0)
    assert Decoder(model, torch.float32).head.packed
    same(model, prompts, SamplingConfig(max_tokens=12, stop_ids=(EOS,)))


@pytest.mark.parametrize("joined", [True, False])
def test_separate_products_in_a_large_model(joined, prompts, monkeypatch):
    monkeypatch.setattr("minirlhf.generation.decoder.JOINED", 10**9 if joined else 0)
    same(model_of(attention_bias=True), prompts, SamplingConfig(max_tokens=12, stop_ids=(EOS,)))


def test_no_cache_outlives_an_update(prompts):
    model, config = model_of(), SamplingConfig(max_tokens=12, stop_ids=(EOS,))
    before = same(model, prompts, config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    assert same(model, prompts, config) != before


def test_each_prompt_is_read_once_and_no_finished_row_is_computed(prompts, monkeypatch):
    model, config = model_of(), SamplingConfig(max_tokens=20, stop_ids=(EOS,), batch_size=5)
    read, decoded = [], []
    forward, step = model.model.forward, slots_module.Decoder.__call__
    monkeypatch.setattr(model.model, "forward", lambda ids, *more: read.append(len(ids)) or forward(ids, *more))
    monkeypatch.setattr(
        slots_module.Decoder, "__call__", lambda self, ids, *more: decoded.append(len(ids)) or step(self, ids, *more)
    )
    completions = generate(model, prompts, config)
    # a copy of a prompt that has left its slot is read again, so a few more reads than the 12 distinct prompts
    assert 12 <= sum(read) <= 16
    assert sum(decoded) == sum(len(c.ids) - 1 for c in completions)  # the first token comes from reading


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_in_bf16_the_log_probs_stay_close(precision, prompts):
    model, config = model_of(), SamplingConfig(max_tokens=12, stop_ids=(EOS,), batch_size=6)
    with torch.autocast("cpu", dtype=precision, cache_enabled=False):
        completions = generate(model, prompts, config)
        ids, mask = torch.zeros(24, 48, dtype=torch.long), torch.zeros(24, 48, dtype=torch.bool)
        for row, (prompt, c) in enumerate(zip(prompts, completions, strict=True)):
            ids[row, : len(prompt) + len(c.ids)] = torch.tensor([*prompt, *c.ids])
            mask[row, : len(prompt) + len(c.ids)] = True
        with torch.no_grad():
            logps = Policy(model)(ids, mask).logps
    for row, (prompt, c) in enumerate(zip(prompts, completions, strict=True)):
        scored = logps[row, len(prompt) : len(prompt) + len(c.ids)]
        assert float((scored - torch.tensor(c.logps)).abs().max()) < 0.2


def test_prompts_that_fill_the_context_are_left_out_and_counted():
    rows = [EncodedRow({}, [1] * length, ()) for length in (3, 4, 5)]
    with pytest.warns(UserWarning, match="2 of 3 prompts leave no room in the context of 4"):
        assert with_room(4, rows) == rows[:1]


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"temperature": 1e-4}, {"top_k": -1}, {"top_p": 0.0}])
def test_settings_of_sampling_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match="temperature 0 or from 0.001 up"):
        SamplingConfig(**settings)
