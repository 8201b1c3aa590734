"""LoRA: a fresh adapter changes nothing; a view without adapter is the exact base; merging and saving keep outputs."""

import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from minirlhf.adapters.lora import (
    LoRAConfig,
    LoRALinear,
    active_adapter,
    adapter_names,
    adapter_view,
    apply_lora,
    merge_lora,
    reference_of,
    select_linears,
)
from minirlhf.adapters.select import count_parameters, fits, freeze
from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.model import (
    Policy,
    RewardModel,
    Transformer,
    ValueModel,
    load_pretrained,
    quantise_linears,
    resize_embeddings,
    save_pretrained,
)
from minirlhf.model.names import core_of
from minirlhf.model.policy import disable_dropout
from minirlhf.pretrained.adapter_config import read_settings
from minirlhf.pretrained.adapter_files import load_adapter, read_adapter, save_adapter
from minirlhf.pretrained.config_json import config_from

KINDS = {
    "LoRA": LoRAConfig(r=3, alpha=6.0),
    "rsLoRA": LoRAConfig(r=3, alpha=6.0, use_rslora=True),
    "DoRA": LoRAConfig(r=3, alpha=6.0, use_dora=True),
}
each_kind = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def refuses(text):
    return pytest.raises(InputError, match=re.escape(text))


def stir(model, seed=0):
    """Add noise to every trained parameter, so that adapters change the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


@pytest.fixture
def adapted(make):
    """adapted(config): a transformer with an adapter that changes its output."""
    return lambda config=KINDS["LoRA"], **changes: stir(apply_lora(make(**changes), config)).eval()


def same(first, second):
    assert_close(first, second, atol=1e-5 * second.abs().max().item(), rtol=1e-5)


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


# What an adapter computes


def single(config, weight, bias=None):
    linear = nn.Linear(2, 2, bias=bias is not None).double()
    linear.weight.data = torch.tensor(weight, dtype=torch.float64)
    if bias is not None:
        linear.bias.data = torch.tensor(bias, dtype=torch.float64)
    model = apply_lora(nn.Sequential(linear), config)
    adapter = model[0].adapters["default"]
    adapter.A.data, adapter.B.data = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([[1.0], [0.0]]).double()
    return model, adapter


def test_lora_by_hand():
    # W = 3 I, x = (1, 2): A x = 3, B A x = (3, 0), scale 4 / 1; W x + b = (3 + 10, 6): together (25, 6)
    model, _ = single(LoRAConfig(r=1, alpha=4.0), [[3.0, 0.0], [0.0, 3.0]], [10.0, 0.0])
    assert_close(model(torch.tensor([[1.0, 2.0]]).double()), torch.tensor([[25.0, 6.0]]).double())


def test_rslora_divides_by_the_root_of_the_rank():
    assert LoRAConfig(r=16, alpha=8.0).scale == 0.5 and LoRAConfig(r=16, alpha=8.0, use_rslora=True).scale == 2.0


def test_dora_by_hand():
    # W = [[3, 0], [0, 3]], B A = [[1, 1], [0, 0]]: W + B A has the first row (4, 1) of length root 17.
    # The magnitudes start at W's lengths 3 and 3. x = (1, 2): first output 3 / root 17 * (4 + 2), second 6, plus bias.
    model, adapter = single(LoRAConfig(r=1, alpha=1.0, use_dora=True), [[3.0, 0.0], [0.0, 3.0]], [10.0, 0.0])
    assert_close(adapter.magnitude.data, torch.tensor([3.0, 3.0]).double())
    x = torch.tensor([[1.0, 2.0]]).double()
    assert_close(model(x), torch.tensor([[10 + 18 / 17**0.5, 6.0]]).double())
    # the length is a constant to the gradient: d out_0 / d B_0 = 3 / root 17 * A x
    model(x)[0, 0].backward()
    assert adapter.B.grad[0, 0].item() == pytest.approx(9 / 17**0.5)
    assert adapter.magnitude.grad[0].item() == pytest.approx(6 / 17**0.5)


def test_dora_scales_the_dropped_out_input_too():
    # B = 0 and a doubled magnitude: W x + (2 - 1) W dropout(x). Here dropout makes x 0: W x = 3; in evaluation 2 * 3
    model = apply_lora(nn.Sequential(nn.Linear(1, 2, bias=False)), LoRAConfig(r=1, dropout=0.999, use_dora=True))
    model[0].base.weight.data = torch.tensor([[3.0], [0.0]])
    model[0].adapters["default"].magnitude.data = torch.tensor([6.0, 0.0])
    torch.manual_seed(0)
    assert_close(model(torch.ones(1, 1)), torch.tensor([[3.0, 0.0]]))
    assert_close(model.eval()(torch.ones(1, 1)), torch.tensor([[6.0, 0.0]]))  # a row of zeros gives no nan


@each_kind
@pytest.mark.parametrize("bias", [None, [0.3, -2.0]])
def test_gradients_numerically(config, bias):
    torch.manual_seed(0)
    model, adapter = single(replace(config, r=1), [[0.3, -1.0], [0.7, 2.0]], bias)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    # DoRA's length is a constant to the gradient of A and B, so gradcheck would find other slopes
    parts = [adapter.A, adapter.B] if adapter.magnitude is None else [adapter.magnitude]

    def out(x, *parts):
        return model(x)

    assert torch.autograd.gradcheck(out, (x, *parts))


@each_kind
def test_a_fresh_adapter_changes_no_logit(make, ids, config):
    model = make()
    before = model(ids)
    assert torch.equal(apply_lora(model, config)(ids), before)


def test_matrix_a_starts_as_in_peft_and_b_at_0(make):
    # kaiming-uniform with a = root 5 is uniform on +- 1 / root(in), with standard deviation 1 / root(3 in)
    torch.manual_seed(0)
    model = apply_lora(nn.Sequential(nn.Linear(64, 8)), LoRAConfig(r=64))
    adapter = model[0].adapters["default"]
    assert adapter.A.abs().max().item() == pytest.approx(1 / 8, rel=0.01) and not adapter.B.any()
    assert adapter.A.std().item() == pytest.approx(1 / 192**0.5, rel=0.05)


def test_dropout_acts_in_training_only_and_on_the_adapter_only(make, ids):
    for config in (LoRAConfig(r=3, dropout=0.5), LoRAConfig(r=3, dropout=0.5, use_dora=True)):
        model = stir(apply_lora(make(), config))
        assert not torch.equal(model.train()(ids), model(ids))
        assert torch.equal(model.eval()(ids), model(ids))
        model = stir(apply_lora(make().eval(), config))  # a new adapter takes the model's mode
        assert torch.equal(model(ids), model(ids))
    model = apply_lora(make(), LoRAConfig(r=3, dropout=0.5)).train()
    assert torch.equal(model(ids), make()(ids))


def test_a_base_in_bfloat16_has_adapters_in_fp32_and_outputs_in_bfloat16(make, ids):
    for config in KINDS.values():
        model = apply_lora(make().bfloat16(), config)
        before = model(ids)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert before.dtype == torch.bfloat16 and not torch.equal(stir(model)(ids), before)
        assert_close(merge_lora(model)(ids), model(ids))


# Which layers get adapters


def test_all_linear_takes_the_seven_linears_of_a_block_and_no_head(make):
    model = apply_lora(RewardModel(make(tie_word_embeddings=False)), LoRAConfig(r=2))
    found = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert sorted(n.split(".")[-1] for n in found) == sorted(2 * SEVEN)
    assert all(".adapters.default." in n for n in trained(model) - {"score.weight"}) and "score.weight" in trained(
        model
    )


def test_all_linear_leaves_out_linears_with_one_output():
    assert list(select_linears(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), ("all-linear",))) == ["0"]


@pytest.mark.parametrize(
    "patterns, count",
    [(("q_proj",), 2), (("q_proj", "mlp.up_proj"), 4), (("layers.1.*",), 7), (("model.layers.0.self_attn.?_proj",), 4)],
)
def test_patterns_choose_linears(make, patterns, count):
    for model in (make(), Policy(make())):  # names begin inside the transformer
        assert len(select_linears(model, patterns)) == count
        assert len(select_linears(apply_lora(model, LoRAConfig(target_modules=patterns)), patterns)) == count


def test_a_pattern_that_fits_nothing_or_a_head_is_refused(make):
    with refuses("pattern 'c_attn' fits no Linear of the model; its Linears are down_proj, gate_proj, k_proj"):
        apply_lora(make(), LoRAConfig(target_modules=("q_proj", "c_attn")))
    for pattern in ("score", "*"):
        with refuses(f"pattern '{pattern}' fits the head score: this head is trained whole; leave it out"):
            apply_lora(RewardModel(make()), LoRAConfig(target_modules=(pattern,)))


@each_kind
def test_an_adapter_on_the_head_acts_in_every_loss_and_not_on_the_reference(make, ids, mask, config):
    """Losses read the head's weight and do not call it: it must be W + scale B A, with gradient to A and B."""
    base = Policy(make(tie_word_embeddings=False))
    policy = apply_lora(Policy(make(tie_word_embeddings=False)), replace(config, target_modules=("lm_head",)))
    assert torch.equal(policy.transformer(ids, mask), base.transformer(ids, mask))  # B is 0
    adapter = stir(policy).transformer.lm_head.adapters["default"].double()
    base.double(), policy.double()
    head = base.transformer.lm_head.weight
    moved = head + config.scale * adapter.B @ adapter.A
    if config.use_dora:
        moved = adapter.magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True).detach()
    logits = base.transformer.model(ids, mask) @ moved.T
    assert_close(policy.transformer(ids, mask), logits)
    wanted = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)[mask[:, 1:]].sum()
    got = policy(ids, mask).logps.sum()
    assert_close(got, wanted)
    for first, second in zip(*(torch.autograd.grad(x, [adapter.A, adapter.B]) for x in (got, wanted)), strict=True):
        assert first.abs().max() > 1e-3
        assert_close(first, second)
    assert torch.equal(reference_of(policy).transformer(ids, mask), base.transformer(ids, mask))
    assert_close(merge_lora(policy).transformer(ids, mask), logits)
    assert_close(policy.transformer.lm_head.weight, moved)


def test_a_head_with_adapters_cannot_grow_or_be_quantised(make):
    model = apply_lora(make(tie_word_embeddings=False), LoRAConfig(r=2, target_modules=("lm_head",)))
    with refuses("resize_embeddings: the embedding or the head has adapters of the old size; resize before apply_lora"):
        resize_embeddings(model, 40)
    with refuses("quantise_linears: lm_head must stay unquantised, because the losses read its weight; leave it out"):
        quantise_linears(make(tie_word_embeddings=False), ("q_proj", "lm_head"))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"r": 0}, "LoRAConfig: r must be at least 1, got 0"),
        ({"alpha": 0.0}, "LoRAConfig: alpha must be above 0, got 0"),
        ({"dropout": 1.0}, "LoRAConfig: dropout must be at least 0 and at most 0.999, got 1.0"),
        ({"target_modules": ()}, "LoRAConfig: target_modules must be a list of patterns, got ()"),
        ({"target_modules": "q_proj"}, "LoRAConfig: target_modules must be a list of patterns, got 'q_proj'"),
    ],
)
def test_bad_settings_are_refused(changes, text):
    with refuses(text):
        LoRAConfig(**changes)


def test_names_must_be_new_plain_and_known(make):
    model = apply_lora(make(), LoRAConfig(r=1), "policy")
    with refuses("the model has an adapter 'policy' already"):
        apply_lora(model, LoRAConfig(r=1), "policy")
    for name in ("", "a.b", "keys"):
        with refuses(f"an adapter cannot be named {name!r}"):
            apply_lora(model, LoRAConfig(r=1), name)
    with refuses("adapter 'valeu' is not on the model; its adapters: policy"):
        adapter_view(model, "valeu")
    with refuses("adapter 'x' is not on the model; its adapters: none"):
        adapter_view(make(), "x")


# Views: an adapter alone, no adapter, several on one base


@each_kind
def test_a_view_without_adapter_computes_the_bases_logits_bit_for_bit(make, adapted, ids, mask, config):
    model, base = adapted(config), make()
    before = model(ids, mask)
    assert not torch.equal(before, base(ids, mask))
    assert torch.equal(adapter_view(model, None)(ids, mask), base(ids, mask))
    assert torch.equal(model(ids, mask), before)  # the view left the model as it was


def test_a_model_computes_with_the_adapter_that_was_put_on_last(make, ids):
    model = make()
    assert active_adapter(model) is None
    for name in ("one", "two"):
        stir(apply_lora(model, LoRAConfig(r=2), name))
    assert active_adapter(model) == "two" and torch.equal(model(ids), adapter_view(model, "two")(ids))
    view = adapter_view(model, "one")
    assert active_adapter(view) == "one" and adapter_names(view) == ["one"]
    assert not torch.equal(model(ids), view(ids))


def test_an_adapter_that_comes_later_is_not_in_a_view(make, ids):
    model = stir(apply_lora(make(), LoRAConfig(r=2), "one"))
    view = adapter_view(model, "one")
    before = view(ids)
    stir(apply_lora(model, LoRAConfig(r=2), "two"))
    assert adapter_names(view) == ["one"] and adapter_names(model) == ["one", "two"]
    view = adapter_view(model, "one")
    stir(apply_lora(view, LoRAConfig(r=2), "three"))  # nor does the model see an adapter that is put on a view
    assert adapter_names(model) == ["one", "two"] and not torch.equal(view(ids), before)


def test_named_adapters_do_not_disturb_one_another(make, ids):
    outputs = {}
    for name, config in KINDS.items():  # alone
        model = make()
        torch.manual_seed(1)
        outputs[name] = stir(apply_lora(model, config), seed=len(name))(ids)
    model = make()
    for name, config in KINDS.items():  # together
        torch.manual_seed(1)
        apply_lora(model, config, name)
        stir(adapter_view(model, name), seed=len(name))
    assert adapter_names(model) == list(KINDS)
    for name in KINDS:
        assert torch.equal(adapter_view(model, name)(ids), outputs[name])


def test_layers_without_the_adapter_compute_the_base(make, ids):
    model = apply_lora(make(), LoRAConfig(r=2), "wide")
    apply_lora(model, LoRAConfig(r=2, target_modules=("layers.1.*",)), "narrow")
    stir(model)
    narrow = adapter_view(model, "narrow")
    assert len([m for m in narrow.modules() if isinstance(m, LoRALinear)]) == 7
    assert torch.equal(model(ids), narrow(ids))  # "narrow" was put on last
    same(merge_lora(narrow)(ids), adapter_view(model, "narrow")(ids))


def test_policy_value_and_reward_are_views_of_the_same_base_and_train_separately(make, ids, mask):
    base = make()
    for name in ("policy", "value", "reward"):
        apply_lora(base, KINDS["LoRA"], name)
    stir(base)
    policy, value = Policy(adapter_view(base, "policy")), ValueModel(adapter_view(base, "value"))
    reward = RewardModel(adapter_view(base, "reward")).requires_grad_(False)
    assert trained(policy) and all(".adapters.policy." in name for name in trained(policy))
    assert trained(value) - {"value_head.weight", "value_head.bias"}
    assert {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in reward.parameters()}  # one base
    before = {name: p.clone() for name, p in base.named_parameters()}
    optimizer = torch.optim.SGD([p for p in (*policy.parameters(), *value.parameters()) if p.requires_grad], lr=1.0)
    nn.init.ones_(value.value_head.weight)
    (policy(ids, mask).logps.sum() + value(ids, mask).sum()).backward()
    optimizer.step()
    moved = {name for name, p in base.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".adapters.")[1].split(".")[0] for name in moved} == {"policy", "value"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_view_has_the_right_gradient_under_gradient_checkpointing(make, ids, mask, checkpointing):
    # blocks run again in the backward pass, after another view has run
    base = make()
    for name in ("value", "policy"):  # the base itself computes with "policy"
        apply_lora(base, KINDS["LoRA"], name)
    stir(base)
    base.model.gradient_checkpointing = checkpointing
    policy, other = Policy(adapter_view(base, "policy")), adapter_view(base, "value")
    logps = policy(ids, mask).logps
    other(ids, mask)
    grads = torch.autograd.grad(logps.sum(), [p for p in policy.parameters() if p.requires_grad])
    base.model.gradient_checkpointing = False
    adapter = [p for name, p in base.named_parameters() if ".adapters.policy." in name]
    wanted = torch.autograd.grad(Policy(base)(ids, mask).logps.sum(), adapter)
    for got, want in zip(grads, wanted, strict=True):
        assert_close(got, want)


def test_the_reference_is_the_policy_without_its_adapter(make, ids, mask):
    plain = Policy(make())(ids, mask)
    policy = apply_lora(Policy(make(), value_head=True), KINDS["DoRA"])
    reference = reference_of(policy)
    stir(policy)
    reference.requires_grad_(False)  # as the trainers do
    assert trained(policy) and not trained(reference) and reference.value_head is None and not reference.training
    assert reference.transformer.head_weight is policy.transformer.head_weight
    assert torch.equal(reference(ids, mask).logps, plain.logps)
    assert not torch.equal(policy(ids, mask).logps, plain.logps)
    assert not {id(p) for p in policy.parameters() if p.requires_grad} & {id(p) for p in reference.parameters()}


def test_a_reference_of_a_policy_whose_base_is_trained_is_refused(make):
    with refuses("reference_of: needed a policy with a frozen base, but"):
        reference_of(Policy(make()))


def test_generation_runs_with_adapters_merged_or_not(adapted):
    model = adapted(KINDS["DoRA"])
    prompts, config = [[1, 2, 3], [4]], SamplingConfig(max_tokens=8)
    wanted = [c.ids for c in generate(model, prompts, config)]
    assert [c.ids for c in generate(adapter_view(model, None), prompts, config)] != wanted
    assert [c.ids for c in generate(merge_lora(model), prompts, config)] == wanted


# Merging


@each_kind
def test_a_merged_view_computes_the_same_and_leaves_the_model_alone_bit_for_bit(adapted, make, ids, config):
    model = adapted(config)
    with torch.no_grad():
        before, weights = model(ids), {n: p.clone() for n, p in model.state_dict().items()}
        merged = merge_lora(adapter_view(model, "default"))
        same(merged(ids), before)
        assert not torch.equal(merged(ids), before)
        assert torch.equal(model(ids), before) and torch.equal(adapter_view(model, None)(ids), make()(ids))
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(p, weights[n]) for n, p in model.state_dict().items())


def test_several_adapters_merge_with_weights():
    # W = 0 and scale 2. First delta 2 [[1, 1], [0, 0]], second 2 [[0, 0], [3, 0]]: 0.5 first - 1 second
    linear = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(linear.weight)
    model = nn.Sequential(linear)
    for name, A, B in (("one", [[1.0, 1.0]], [[1.0], [0.0]]), ("two", [[1.0, 0.0]], [[0.0], [3.0]])):
        apply_lora(model, LoRAConfig(r=1, alpha=2.0), name)
        model[0].adapters[name].A.data, model[0].adapters[name].B.data = torch.tensor(A), torch.tensor(B)
    merged = merge_lora(model, {"one": 0.5, "two": -1.0})
    assert type(merged[0]) is nn.Linear
    assert_close(merged[0].weight.data, torch.tensor([[1.0, 1.0], [-6.0, 0.0]]))


@each_kind
def test_a_merged_model_is_saved_like_any_model(tmp_path, adapted, ids, config):
    model = adapted(config, tie_word_embeddings=False)
    before = model(ids)
    save_pretrained(merge_lora(model), tmp_path)
    same(load_pretrained(tmp_path)(ids), before)


def test_after_one_view_is_merged_the_other_adapter_still_learns(make, ids):
    model = apply_lora(apply_lora(make(), LoRAConfig(r=2), "one"), LoRAConfig(r=2), "two")
    merged, other = merge_lora(adapter_view(model, "two")), adapter_view(model, "one")
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())
    other(ids).sum().backward()
    assert trained(other) == {name for name, p in other.named_parameters() if p.grad is not None} != set()


def test_weights_name_the_adapters_to_merge_whichever_is_active(make, ids):
    model = make()
    for name in ("one", "two"):
        stir(apply_lora(model, LoRAConfig(r=2), name))
    wanted = adapter_view(model, "one")(ids)
    assert active_adapter(model) == "two"
    same(merge_lora(model, {"one": 1.0})(ids), wanted)


def test_merging_an_adapter_that_the_model_lacks_is_refused(make, adapted):
    with refuses("merge_lora: needed a model with an adapter, got none; use apply_lora or load_adapter"):
        merge_lora(make())
    with refuses("adapter 'x' is not on the model; its adapters: default"):
        merge_lora(adapted(), {"x": 1.0})


# Freezing


def test_freezing_by_pattern(make):
    policy = Policy(make(), value_head=True)
    before, total = count_parameters(policy)
    assert before == total
    # embed_tokens has 37 * 24 numbers, an MLP 3 * 24 * 40
    assert freeze(policy, ["embed_tokens", "layers.0.mlp"]) == 37 * 24 + 3 * 24 * 40
    assert count_parameters(policy) == (total - 37 * 24 - 3 * 24 * 40, total)
    frozen = {name for name, _ in policy.named_parameters()} - trained(policy)
    assert frozen == {
        "transformer.model.embed_tokens.weight",
        *(f"transformer.model.layers.0.mlp.{name}.weight" for name in SEVEN[4:]),
    }
    with refuses("freeze: pattern 'wte' fits no parameter"):
        freeze(policy, ["wte"])


def test_freezing_by_the_familys_own_names():
    gpt2 = Transformer(config_from({"model_type": "gpt2", "vocab_size": 37, "n_embd": 16, "n_layer": 2, "n_head": 2}))
    for pattern, parameters in (("wte", 1), ("h.0", 12), ("c_attn", 4), ("transformer.h.1.mlp", 4)):
        freeze(gpt2.requires_grad_(True), [pattern])
        assert sum(not p.requires_grad for p in gpt2.parameters()) == parameters


def test_lora_trains_adapters_and_heads_only(make):
    policy = apply_lora(Policy(make(), value_head=True), LoRAConfig(r=2, target_modules=("q_proj",)))
    # two layers with A [2, 24] and B [24, 2] each; the value head has 24 + 1
    assert count_parameters(policy)[0] == 2 * (2 * 24 + 24 * 2) + 25


# Files


@each_kind
@pytest.mark.parametrize("kind", [Transformer, Policy, RewardModel, ValueModel])
def test_a_saved_adapter_comes_back(tmp_path, make, ids, mask, kind, config):
    def build():
        torch.manual_seed(7)
        return kind(make(), value_head=True) if kind is Policy else make() if kind is Transformer else kind(make())

    model = stir(apply_lora(build(), replace(config, target_modules=("q_proj", "layers.1.*"))))
    save_adapter(model, tmp_path / "a" / "b", base="some/base")
    loaded = build()
    assert load_adapter(loaded, tmp_path / "a" / "b", "other").r == 3
    for first, second in zip([*loaded(ids, mask)], [*model(ids, mask)], strict=True):
        assert torch.equal(first, second)
    assert trained(loaded) == {name.replace(".default.", ".other.") for name in trained(model)}
    described = json.loads((tmp_path / "a" / "b" / "adapter_config.json").read_text())
    assert described["task_type"] == {RewardModel: "SEQ_CLS", ValueModel: "TOKEN_CLS"}.get(kind, "CAUSAL_LM")
    assert described["base_model_name_or_path"] == "some/base" and len(described["target_modules"]) == 8


def test_names_in_the_files_are_pefts(tmp_path, adapted):
    save_adapter(adapted(KINDS["DoRA"]), tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.mlp.down_proj."
    shapes = {name.removeprefix(first): tuple(w.shape) for name, w in weights.items() if name.startswith(first)}
    assert shapes == {"lora_A.weight": (3, 40), "lora_B.weight": (24, 3), "lora_magnitude_vector": (24,)}
    assert len(weights) == 2 * 7 * 3
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert described["peft_type"] == "LORA" and described["target_modules"] == sorted(SEVEN)
    assert described["lora_alpha"] == 6 and described["use_dora"] is True and described["modules_to_save"] is None


def test_modules_have_the_names_of_the_familys_own_files(tmp_path, ids):
    def make():
        torch.manual_seed(0)
        raw = {"model_type": "gpt2", "vocab_size": 37, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16}
        return Transformer(config_from(raw)).eval()

    model = stir(apply_lora(make(), KINDS["LoRA"])).eval()
    save_adapter(model, tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert described["target_modules"] == ["c_attn", "c_fc", "c_proj"] and described["fan_in_fan_out"]
    assert "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight" in load_file(
        tmp_path / "adapter_model.safetensors"
    )
    loaded = make()
    load_adapter(loaded, tmp_path)
    assert torch.equal(loaded(ids), model(ids))


def test_an_adapter_of_another_family_is_refused(tmp_path, make, adapted):
    save_adapter(adapted(), tmp_path)
    raw = {"model_type": "gpt2", "vocab_size": 37, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16}
    with refuses("found 14 not in the model, such as model.layers.0.mlp.down_proj; is the adapter for another base?"):
        load_adapter(Transformer(config_from(raw)), tmp_path)


def test_loading_fills_an_existing_adapter_in_place(tmp_path, make, adapted, ids):
    model = adapted()
    save_adapter(model, tmp_path)
    fresh = apply_lora(make(), KINDS["LoRA"])
    before = list(fresh.parameters())
    load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(ids), model(ids))
    assert all(p is q for p, q in zip(fresh.parameters(), before, strict=True))  # an optimizer may hold them
    for config in (replace(KINDS["LoRA"], alpha=7.0), KINDS["DoRA"], LoRAConfig(r=3, target_modules=("q_proj",))):
        with refuses("differs from the adapter 'default' on the model; load it under another name"):
            load_adapter(apply_lora(make(), config), tmp_path)


def test_a_new_adapter_becomes_active_and_new_weights_for_an_older_one_do_not_change_which_is_active(
    tmp_path, adapted, make, ids
):
    save_adapter(adapted(), tmp_path)
    model = stir(apply_lora(make(), KINDS["LoRA"], "old"))
    load_adapter(model, tmp_path, "new")
    assert active_adapter(model) == "new" and torch.equal(model(ids), adapted()(ids))
    model = stir(apply_lora(apply_lora(make(), KINDS["LoRA"], "old"), LoRAConfig(r=2), "newer"))
    before = model(ids)
    load_adapter(model, tmp_path, "old")
    assert active_adapter(model) == "newer" and torch.equal(model(ids), before)
    assert torch.equal(adapter_view(model, "old")(ids), adapted()(ids))


def test_a_value_head_is_loaded_if_the_policy_has_one_and_the_file_has_one(tmp_path, make, loud):
    policy = apply_lora(Policy(make(), value_head=True), LoRAConfig(r=2))
    save_adapter(stir(policy), tmp_path / "with")
    load_adapter(Policy(make()), tmp_path / "with")
    save_adapter(policy.transformer, tmp_path / "without")
    other = loud(Policy(make(), value_head=True))
    before = other.value_head.weight.clone()
    load_adapter(other, tmp_path / "without")
    assert torch.equal(other.value_head.weight, before)
    load_adapter(other, tmp_path / "with")
    assert torch.equal(other.value_head.weight, policy.value_head.weight)


# Bad input


@pytest.fixture
def folder(tmp_path, adapted):
    save_adapter(adapted(), tmp_path)
    return tmp_path


def rewrite(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, no other type is supported; got 'IA3'"),
        ({"r": 0}, "LoRAConfig: r must be at least 1, got 0"),
        ({"r": "many"}, "needed JSON with peft_type, r and lora_alpha"),
        ({"lora_alpha": None}, "needed JSON with peft_type, r and lora_alpha"),
        ({"bias": "all"}, "bias is not supported and must be unset, got 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is not supported and must be unset, got 'pissa'"),
        ({"rank_pattern": {"q_proj": 9}}, "q_proj.lora_A.weight must be (9, 24) for the model and adapter_config.json"),
        ({"something_new": 1}, "something_new is not supported and must be unset, got 1"),
    ],
)
def test_a_config_that_means_something_else_is_refused(folder, make, changes, text):
    rewrite(folder, **changes)
    with refuses(text):
        load_adapter(make(), folder)


def test_a_folder_without_config_or_with_a_broken_one_is_refused(folder, make):
    for text in ("{", "[]", "{}"):
        (folder / "adapter_config.json").write_text(text)
        with refuses("needed JSON with peft_type, r and lora_alpha"):
            read_settings(folder)
    with refuses("needed an adapter folder with adapter_config.json, found none; check the path"):
        load_adapter(make(), folder / "nowhere")


def test_a_pickle_is_refused_and_the_error_converts_it(folder, make, adapted, ids, monkeypatch):
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()
    with refuses("found adapter_model.bin; a pickle can run any program and is not read") as caught:
        load_adapter(make(), folder)
    monkeypatch.chdir(folder)
    python, flag, code = shlex.split(str(caught.value).split("run in that folder: ")[1])
    assert (python, flag) == ("python", "-c")
    exec(code, {})
    model = make()
    load_adapter(model, folder)
    assert torch.equal(model(ids), adapted()(ids))


def test_broken_or_missing_weights_are_refused(folder, make):
    path = folder / "adapter_model.safetensors"
    whole, weights = path.read_bytes(), load_file(path)
    path.write_bytes(whole[:-100])
    with refuses("needed a complete safetensors file"):
        load_adapter(make(), folder)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with refuses("1 weights are missing: model.layers.0.mlp.up_proj.lora_B.weight; save it again"):
        load_adapter(make(), folder)
    save_file({**weights, "base_model.model.score.weight": torch.zeros(1, 24)}, path)
    with refuses("1 weights do not belong to the model: score.weight; is it an adapter of another model class?"):
        load_adapter(make(), folder)
    save_file({}, path)
    with refuses("needed lora_A and lora_B for modules of the model, found none"):
        load_adapter(make(), folder)
    path.unlink()
    with refuses("needed this file, found no weights"):
        load_adapter(make(), folder)


def test_a_reward_models_adapter_needs_its_head(folder, make):
    with refuses("1 weights are missing: score.weight"):
        load_adapter(RewardModel(make()), folder)


def test_an_adapter_for_another_base_is_refused_and_changes_nothing(folder, make, ids):
    for model in (make(num_hidden_layers=1), make(hidden_size=32)):
        before, names = model(ids), trained(model)
        with refuses("is the adapter for another base?"):
            load_adapter(model, folder)
        assert torch.equal(model(ids), before) and trained(model) == names
    rewrite(folder, r=4)
    with refuses(
        "model.layers.0.mlp.down_proj.lora_A.weight must be (4, 40) for the model and adapter_config.json, got (3, 40)"
    ):
        load_adapter(make(), folder)


# Dropout and autocast


def test_dropout_acts_only_with_gradients_on(make, ids):
    model = stir(apply_lora(make(), LoRAConfig(r=3, dropout=0.5, use_dora=True))).train()
    assert not torch.equal(model(ids), model(ids))
    with torch.no_grad():  # sampling, scoring and evaluation compute the same function every time, as in eval mode
        assert torch.equal(model(ids), model(ids)) and torch.equal(model(ids), model.eval()(ids))
    model.train()
    disable_dropout(model)
    assert torch.equal(model(ids), model(ids))


def test_merging_under_bf16_autocast_adds_up_in_fp32(make, adapted):
    for config in KINDS.values():
        layer = adapted(config).model.layers[0].self_attn.q_proj
        wanted = layer.merged_weight({"default": 1.0})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer.merged_weight({"default": 1.0}), wanted)


def test_a_value_models_adapter_is_recognised_and_does_not_fit_a_language_model(tmp_path, make, ids, mask):
    value = stir(apply_lora(ValueModel(make()), LoRAConfig(r=2))).eval()
    save_adapter(value, tmp_path)
    assert read_adapter(tmp_path).model_class is ValueModel
    back = ValueModel(make()).eval()
    load_adapter(back, tmp_path)
    assert torch.equal(back(ids, mask), value(ids, mask)) and value(ids, mask).abs().max() > 0
    with refuses("2 weights do not belong to the model: score.bias, score.weight; is it an adapter of another model"):
        load_adapter(make(), tmp_path)


def test_patterns_may_use_the_names_of_the_familys_files(make):
    raw = {"model_type": "gpt2", "vocab_size": 37, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 16}
    gpt2 = Transformer(config_from(raw))
    assert list(select_linears(gpt2, ["c_attn"])) == list(select_linears(gpt2, ["qkv_proj"]))
    assert len(select_linears(gpt2, ["transformer.h.1"])) == len(select_linears(gpt2, ["layers.1"])) == 4
    assert {name.split(".")[-1] for name in select_linears(make(), ["self_attn"])} == {*SEVEN[:4]}


def test_a_pattern_fits_a_name_its_last_parts_or_a_module_around_it_but_no_part_of_a_word(make):
    model = make()
    name = "model.layers.1.self_attn.q_proj"
    for pattern in (name, "q_proj", "layers.1", "self_attn", "model.layers.?.self_attn", "*_proj"):
        assert fits(model, name, pattern)
    for pattern in ("proj", "layers.11", "attn", "k_proj", "layer"):
        assert not fits(model, name, pattern)


def test_the_core_of_a_policy_is_its_transformer(make):
    model, reward = make(), RewardModel(make())
    assert core_of(Policy(model)) is core_of(model) is model and core_of(reward) is reward
