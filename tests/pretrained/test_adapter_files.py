"""Adapters as PEFT writes them: ranks and alphas by pattern, an embedding and a head of the adapter's own."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from minirlhf.adapters import LoRAConfig, adapter_view, apply_lora, merge_lora, plain
from minirlhf.errors import InputError
from minirlhf.model import Policy, RewardModel, load_pretrained, quantise_linears, resize_embeddings, save_pretrained
from minirlhf.pretrained import load_adapter, save_adapter
from minirlhf.pretrained.adapter_config import NEUTRAL, NO_EFFECT, READ, REFUSED, read_settings
from minirlhf.pretrained.adapter_files import update_sizes

V, D = 37, 24
Q, UP = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def refuses(*parts):
    return pytest.raises(InputError, match=".*".join(map(re.escape, parts)))


@pytest.fixture
def write(tmp_path):
    """write(weights, **config): an adapter's folder as PEFT writes it."""

    def write(weights, **config):
        raw = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
        (tmp_path / "adapter_config.json").write_text(json.dumps(raw | config))
        save_file(
            {f"base_model.model.{name}": w for name, w in weights.items()}, tmp_path / "adapter_model.safetensors"
        )
        return tmp_path

    return write


def lora(name, ins, out, r=4, seed=0):
    return {f"{name}.lora_A.weight": normal(r, ins, seed=seed), f"{name}.lora_B.weight": normal(out, r, seed=seed + 1)}


def changed(model, changes):
    """The model with other weights: name of a module -> weight."""
    with torch.no_grad():
        for name, weight in changes.items():
            model.get_submodule(name).weight.copy_(weight)
    return model


def close(first, second):
    assert_close(first, second, atol=1e-4 * second.abs().max().item(), rtol=1e-4)


# Patterns


PATTERNS = [
    ({"q_proj": 2}, {}, (2, 8), (2, 8)),
    ({Q.format(1): 2}, {"q_proj": 3}, (4, 3), (2, 3)),
    ({r"^model\.layers\.0\.self_attn\.q_proj": 1}, {r".*\.1\..*_proj": 5.5}, (1, 8), (4, 5.5)),
    ({"layers.0.self_attn.q_proj": 1, "q_proj": 2}, {"proj": 3, "1.self_attn.q_proj": 9}, (1, 8), (2, 9)),
    ({"up_proj": 2, "_proj": 2}, {"layers": 3}, (4, 8), (4, 8)),
]


@pytest.mark.parametrize(("ranks", "alphas", "first", "second"), PATTERNS)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_module_has_the_rank_and_the_alpha_of_the_first_pattern_that_fits_it(
    make, write, tmp_path, ids, ranks, alphas, first, second, use_rslora
):
    weights, updates = {}, {}
    for layer, (r, alpha) in enumerate((first, second)):
        matrices = lora(Q.format(layer), D, D, r, seed=10 * layer)
        A, B = matrices.values()
        updates[Q.format(layer)] = alpha / (r**0.5 if use_rslora else r) * B @ A
        weights |= matrices
    folder = write(weights, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=use_rslora)
    model, plain_model = make(), make()
    load_adapter(model, folder)
    expected = changed(plain_model, {n: plain_model.get_submodule(n).weight + delta for n, delta in updates.items()})
    close(model(ids), expected(ids))
    for name, (shape, norm) in update_sizes(folder).items():
        assert shape == (D, D) and norm == pytest.approx(updates[name].norm().item(), rel=1e-5)
    save_adapter(model, tmp_path / "again")
    again = make()
    load_adapter(again, tmp_path / "again")
    assert torch.equal(again(ids), model(ids))
    with refuses("differs from the adapter 'default' on the model"):  # the same shapes, another scale
        load_adapter(again, write(weights, rank_pattern=ranks, alpha_pattern={Q.format(0): 77}, use_rslora=use_rslora))


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        ({"rank_pattern": {"q_proj": 3}}, f"{Q.format(0)}.lora_A.weight must be (3, 24)"),
        ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern of 'q_proj' must be a whole number, got '2'"),
        ({"rank_pattern": {"q_proj": True}}, "rank_pattern of 'q_proj' must be a whole number, got True"),
        ({"rank_pattern": {"q_proj": 0}}, "r must be at least 1, got 0"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "1,000,000,000, got nan"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha must be above 0, got -1"),
        ({"alpha_pattern": {"(q_proj": 1}}, "needed patterns of module names"),
        ({"alpha_pattern": {"(a*)*q": 1}}, "cost too much to match"),
        ({"alpha_pattern": {"(.*.*.*.*.*)q": 1}}, "cost too much to match"),
        ({"rank_pattern": {"q*" * 3_000_000: 1}}, "cost too much to match"),
        ({"lora_alpha": True}, "lora_alpha must be a finite number, got True"),
        ({"lora_alpha": float("inf")}, "1,000,000,000, got inf"),
        ({"r": True}, "r must be a whole number, got True"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number from"),
        ({"lora_dropout": "0.1"}, "lora_dropout must be a finite number, got '0.1'"),
        ({"lora_dropout": 1.5}, "dropout must be at least 0 and at most 0.999"),
        ({"target_modules": 5}, "target_modules must be a list, got 5"),
        ({"target_modules": ["q_proj", 5]}, "each entry of target_modules must be text, got 5"),
        ({"modules_to_save": "score"}, "modules_to_save must be a list, got 'score'"),
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens in modules_to_save, but the file has no weight of it"),
        ({"modules_to_save": ["classifier", "norm"]}, "norm in modules_to_save, but the file has no weight of it"),
        ({"use_rslora": "false"}, "use_rslora must be true or false, got 'false'"),
        ({"use_dora": 1}, "use_dora must be true or false, got 1"),
    ],
)
def test_patterns_and_numbers_that_cannot_be_meant_are_refused(make, write, patterns, text):
    with refuses(text):
        load_adapter(make(), write(lora(Q.format(0), D, D), **patterns))


# Keys


@pytest.mark.parametrize("key", sorted(REFUSED | {"a_new_key"}))
def test_a_key_that_changes_the_function_is_refused_by_name(make, write, key):
    with refuses(f"{key} is not supported and must be unset, got [1]"):
        load_adapter(make(), write(lora(Q.format(0), D, D), **{key: [1]}))
    load_adapter(make(), write(lora(Q.format(0), D, D), **{key: None}))


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_a_start_that_changes_the_base_is_refused(make, write, value):
    with refuses(f"init_lora_weights is not supported and must be unset, got '{value}'"):
        load_adapter(make(), write(lora(Q.format(0), D, D), init_lora_weights=value))


def test_a_key_without_effect_is_accepted(write):
    for key in NO_EFFECT - {"target_modules"}:
        read_settings(write({}, **{key: [1]}))
    for key, values in NEUTRAL.items():
        for value in values:
            read_settings(write({}, **{key: value}))
    assert not READ & NO_EFFECT and not REFUSED & (READ | NO_EFFECT | NEUTRAL.keys())


# An embedding and a head of the adapter's own


WHOLE = [(EMBEDDING,), (HEAD,), (EMBEDDING, HEAD)]


@pytest.fixture
def whole(write):
    """whole(names): an adapter for q_proj with weights [V, D] of its own for these modules -> (folder, changes)."""

    def whole(names):
        changes = {name: normal(V, D, seed=len(name)) for name in names}
        weights = {f"{name}.weight": weight for name, weight in changes.items()} | lora(Q.format(0), D, D)
        A, B = lora(Q.format(0), D, D).values()
        return write(weights, modules_to_save=[n.split(".")[-1] for n in names]), changes, {Q.format(0): 2 * B @ A}

    return whole


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("names", WHOLE)
@pytest.mark.parametrize("kind", ["transformer", "policy"])
def test_weights_that_peft_saved_whole_are_read(make, whole, tmp_path, ids, names, tied, kind):
    folder, changes, updates = whole(names)
    base = make(tie_word_embeddings=tied)
    model = Policy(base) if kind == "policy" else base
    before = base(ids)
    load_adapter(model, folder)
    # a head of its own for a tied base, with the base's numbers where the adapter has none
    expected = make(tie_word_embeddings=False)
    source = make(tie_word_embeddings=tied)
    expected.load_state_dict(source.state_dict() | {"lm_head.weight": source.head_weight})
    updated = {name: expected.get_submodule(name).weight + delta for name, delta in updates.items()}
    changed(expected, changes | updated)
    close(base(ids), expected(ids))
    assert torch.equal(adapter_view(base, None)(ids), before)  # the base is as it was: a reference
    trained = {name.removeprefix("transformer.") for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{Q.format(0)}.adapters.default.{part}" for part in "AB"} | {
        f"{name}.adapters.default.weight" for name in names
    }
    save_adapter(model, tmp_path / "again")
    again = make(tie_word_embeddings=tied)
    load_adapter(again, tmp_path / "again")
    assert torch.equal(again(ids), base(ids))
    load_adapter(again, folder)  # a second time: into the adapter that is there
    for merged in (plain(model), merge_lora(model)):
        save_pretrained(merged, tmp_path / "merged")
        loaded = load_pretrained(tmp_path / "merged")
        assert loaded.config.tie_word_embeddings is False
        close(loaded(ids), expected(ids))


def test_a_model_with_an_embedding_of_an_adapter_learns_and_generates(make, whole, ids, mask):
    model = make()
    load_adapter(model, whole((EMBEDDING,))[0])
    policy = Policy(model)
    policy(ids, mask).logps.sum().backward()
    frozen = [name for name, p in policy.named_parameters() if p.grad is None]
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    assert "transformer.model.embed_tokens.base.weight" in frozen and "transformer.lm_head.weight" in frozen


def test_half_precision_bases_keep_their_outputs_dtype(make, whole, ids):
    model = make().bfloat16()
    load_adapter(model, whole((EMBEDDING, HEAD))[0])
    assert model(ids).dtype == torch.bfloat16 and model.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_a_reward_model_takes_an_embedding_and_refuses_a_head(make, whole, tmp_path, ids, mask):
    model = RewardModel(make())
    folder, *_ = whole((EMBEDDING,))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.score.weight": torch.ones(1, D)}, folder / "adapter_model.safetensors")
    before = model(ids, mask)
    load_adapter(model, folder)
    assert not torch.allclose(model(ids, mask), before)
    save_adapter(model, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["modules_to_save"] == [
        "embed_tokens",
        "score",
    ]
    again = RewardModel(make())
    load_adapter(again, tmp_path / "again")
    assert torch.equal(again(ids, mask), model(ids, mask))
    save_file(
        weights
        | {"base_model.model.lm_head.weight": torch.ones(V, D), "base_model.model.score.weight": torch.ones(1, D)},
        folder / "adapter_model.safetensors",
    )
    with refuses("1 weights do not belong to the model: lm_head.weight"):
        load_adapter(RewardModel(make()), folder)


@pytest.mark.parametrize("name", ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.mlp.up_proj"])
def test_other_modules_to_save_are_refused_by_name(make, write, name):
    model = make()
    weights = lora(Q.format(0), D, D) | {f"{name}.weight": torch.zeros_like(model.get_submodule(name).weight)}
    with refuses("1 weights do not belong to the model", f"{name}.weight", "modules_to_save"):
        load_adapter(model, write(weights, modules_to_save=[name.split(".")[-1]]))
    assert model.config.tie_word_embeddings and not [n for n, _ in model.named_parameters() if "adapters" in n]


def test_more_rows_than_the_model_has_are_refused_until_it_has_grown(make, write, ids):
    rows = {f"{name}.weight": normal(V + 3, D) for name in (EMBEDDING, HEAD)}
    folder, model = write(rows | lora(Q.format(0), D, D)), make()
    with refuses(f"must be ({V}, {D})", f"got ({V + 3}, {D})", f"resize_embeddings(model, {V + 3}) first"):
        load_adapter(model, folder)
    load_adapter(resize_embeddings(model, V + 3), folder)
    assert model(ids + 3).shape[-1] == V + 3
    with refuses("resize_embeddings: the embedding or the head has adapters"):
        resize_embeddings(model, V + 4)


@pytest.mark.parametrize("shape", [(), (0,), (V - 1, D), (V + 3, D + 1), (V, D, 1)], ids=str)
def test_a_whole_weight_of_another_shape_is_of_another_base(make, write, shape):
    weights = {f"{name}.weight": normal(V, D) for name in (EMBEDDING, HEAD)} | {f"{HEAD}.weight": torch.ones(shape)}
    with refuses(f"{HEAD}.weight must be ({V}, {D})", f"got {shape}; is the adapter for another base?"):
        load_adapter(make(), write(weights | lora(Q.format(0), D, D)))


def test_a_refused_name_or_another_adapter_leaves_a_tied_model_tied(make, whole, ids):
    folder, *_ = whole((HEAD,))
    model = apply_lora(make(), LoRAConfig(r=2), "other")
    before = model(ids)
    for name, text in (("a.b", "an adapter cannot be named 'a.b'"), ("other", "differs from the adapter 'other'")):
        with refuses(text):
            load_adapter(model, folder, name)
    assert model.config.tie_word_embeddings and torch.equal(model(ids), before)


# LoRA on the embedding


def embedding_lora(r=4):
    return {
        f"{EMBEDDING}.lora_embedding_A": normal(r, V, seed=5),
        f"{EMBEDDING}.lora_embedding_B": normal(D, r, seed=6),
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_lora_on_the_embedding_is_read_as_the_embedding_that_it_makes(make, write, tmp_path, ids, tied, alone):
    source = make(tie_word_embeddings=tied)
    base = {f"{EMBEDDING}.base_layer.weight": source.model.embed_tokens.weight.detach()}
    weights = embedding_lora(2) | base | ({} if alone else lora(Q.format(0), D, D))
    folder = write(weights, rank_pattern={"embed_tokens": 2}, alpha_pattern={"embed_tokens": 6})
    model = make(tie_word_embeddings=tied)
    load_adapter(model, folder)
    A, B = embedding_lora(2).values()
    expected = make(tie_word_embeddings=False)
    expected.load_state_dict(source.state_dict() | {"lm_head.weight": source.head_weight})
    changed(expected, {EMBEDDING: source.model.embed_tokens.weight + 3 * (B @ A).T})
    if not alone:
        A, B = lora(Q.format(0), D, D).values()
        changed(expected, {Q.format(0): expected.get_submodule(Q.format(0)).weight + 2 * B @ A})
    close(model(ids), expected(ids))
    assert f"{EMBEDDING}" in update_sizes(folder)
    save_adapter(model, tmp_path / "again")
    again = make(tie_word_embeddings=tied)
    load_adapter(again, tmp_path / "again")
    assert torch.equal(again(ids), model(ids))


def test_a_broken_lora_on_the_embedding_is_refused(make, write):
    good = embedding_lora() | lora(Q.format(0), D, D)
    A, B = (f"{EMBEDDING}.lora_embedding_{part}" for part in "AB")
    with refuses(f"{B} must be (24, 4)", "got no such weight"):
        load_adapter(make(), write({name: w for name, w in good.items() if name != B}))
    with refuses(f"{A} must be (4, 37)", "got (4, 36)"):
        load_adapter(make(), write(good | {A: torch.zeros(4, 36)}))
    magnitudes = {f"{name}.lora_magnitude_vector": torch.ones(D) for name in (EMBEDDING, Q.format(0))}
    with refuses("DoRA on the embedding model.embed_tokens is not supported"):
        load_adapter(make(), write(good | magnitudes, use_dora=True))
    with refuses("LoRA beside modules_to_save on the embedding model.embed_tokens"):
        load_adapter(make(), write(good | {f"{EMBEDDING}.weight": torch.zeros(V, D)}))
    with refuses("model.embed_tokens.base_layer.weight is not the weight of the model"):
        load_adapter(make(), write(good | {f"{EMBEDDING}.base_layer.weight": torch.zeros(V, D)}))
    with refuses("not in the model, such as model.embed_tokens"):
        load_adapter(make(), write(lora(EMBEDDING, D, V) | lora(Q.format(0), D, D)))
    with refuses("not in the model, such as lm_head"):
        load_adapter(make(), write(lora(HEAD, D, V) | {"lm_head.weight": torch.zeros(V, D)}))


def test_lora_on_a_tied_head_gives_the_model_a_head(make, write, ids):
    model, source = make(), make()
    load_adapter(model, write(lora(HEAD, D, V)))
    A, B = lora(HEAD, D, V).values()
    expected = make(tie_word_embeddings=False)
    expected.load_state_dict(source.state_dict() | {"lm_head.weight": source.head_weight + 2 * B @ A})
    close(model(ids), expected(ids))
    assert torch.equal(adapter_view(model, None)(ids), source(ids))


# Saving


def test_a_model_with_adapters_is_not_saved_as_a_plain_model(make, tmp_path):
    with refuses("save_pretrained: the model has adapters", "merge_lora", "save_adapter"):
        save_pretrained(apply_lora(make(), LoRAConfig(r=2)), tmp_path / "model")
    with refuses("save_pretrained: the model has weights in 4 bits", "plain(model)"):
        save_pretrained(quantise_linears(make()), tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_numbers_of_other_types_are_refused(make, write, dtype):
    weights = lora(Q.format(0), D, D)
    name = f"{Q.format(0)}.lora_A.weight"
    with refuses("needed weights in F64, F32, F16, BF16, got another type for base_model.model." + name):
        load_adapter(make(), write(weights | {name: weights[name].to(dtype)}))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_names_with_the_prefixes_of_wrappers_are_read(make, write, ids, prefix):
    weights, model, other = lora(Q.format(0), D, D), make(), make()
    load_adapter(model, write(weights))
    load_adapter(other, write({prefix + name: weight for name, weight in weights.items()}))
    assert torch.equal(other(ids), model(ids))
    with refuses("two weights have one name"):
        load_adapter(make(), write(weights | {prefix + name: weight + 1 for name, weight in weights.items()}))


@pytest.mark.parametrize("shape", [(4,), (4, D, 1), (3, D), ()])
def test_matrices_of_other_shapes_are_refused_with_and_without_a_model(make, write, shape):
    name = f"{Q.format(0)}.lora_A.weight"
    folder = write(lora(Q.format(0), D, D) | {name: torch.zeros(shape)})
    with refuses(f"{name} must be (4, {D})", f"got {shape}"):
        load_adapter(make(), folder)
    with refuses("needed A [r, in] and B [out, r]", str(shape)):
        update_sizes(folder)
