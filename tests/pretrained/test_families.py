"""Settings that differ from layer to layer, worked by hand; model classes; the nearest known name."""

import pytest

from minirlhf.errors import InputError
from minirlhf.model import Policy, RewardModel, Transformer, ValueModel
from minirlhf.model.process_reward import ProcessRewardModel
from minirlhf.nearest import nearest
from minirlhf.pretrained.families import (
    FAMILIES,
    all_sliding,
    all_sliding_if_enabled,
    is_transposed,
    last_full_in_each,
    layers_without_experts,
    layers_without_rope,
    same,
    upper_sliding_if_enabled,
    without_rope_sliding_if_enabled,
)
from minirlhf.pretrained.model_classes import (
    MODEL_CLASSES,
    architecture,
    class_of_architectures,
    class_of_task,
    mark,
    task_of,
)


def letters(layer_types):
    """s: sliding, f: full."""
    return "".join(layer_type[0] for layer_type in layer_types)


def test_which_layers_have_the_window():
    window, enabled = {"sliding_window": 8}, {"sliding_window": 8, "use_sliding_window": True}
    assert letters(all_sliding(window, 3)) == "sss" and all_sliding({"sliding_window": None}, 3) == ()
    assert letters(all_sliding_if_enabled(enabled, 2)) == "ss" and all_sliding_if_enabled(window, 2) == ()
    assert letters(upper_sliding_if_enabled(enabled | {"max_window_layers": 1}, 3)) == "fss"
    assert letters(upper_sliding_if_enabled(enabled, 3)) == "fff" and upper_sliding_if_enabled(window, 3) == ()
    assert letters(without_rope_sliding_if_enabled(enabled, 5)) == "fffsf"
    assert letters(last_full_in_each(2)({}, 5)) == "sfsfs"
    assert letters(last_full_in_each(6, "period")({"period": 3}, 4)) == "ssfs"


def test_which_layers_have_no_rope():
    assert layers_without_rope({}, 9) == (3, 7)
    assert layers_without_rope({"no_rope_layer_interval": 2}, 5) == (1, 3)
    assert layers_without_rope({"no_rope_layers": [1, 0, 0]}, 3) == (1, 2)
    with pytest.raises(InputError, match=r"0 or 1 for each of the 4 layers, got \[1, 0, 0\]"):
        layers_without_rope({"no_rope_layers": [1, 0, 0]}, 4)


def test_which_layers_have_no_experts():
    assert layers_without_experts({}, 3) == ()
    assert layers_without_experts({"mlp_only_layers": None, "decoder_sparse_step": 2}, 4) == (0, 2)
    assert layers_without_experts({"mlp_only_layers": [1, 9]}, 3) == (1,)


def test_a_map_of_equal_names():
    assert same("a", "b") == {"a": "a", "b": "b"}


def test_only_gpt2_has_transposed_weights():
    assert is_transposed("gpt2", "transformer.h.0.mlp.c_fc.weight") and not is_transposed("gpt2", "lm_head.weight")
    assert not is_transposed("llama", "model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_class_is_found_by_its_name_in_both_json_files(make, model_type):
    transformer = make()
    for model_class in MODEL_CLASSES:
        model = transformer if model_class is Transformer else model_class(transformer)
        assert class_of_task({"task_type": task_of(model), **mark(model)}) is model_class
        raw = {"architectures": ["Unknown", architecture(model_type, model_class)], **mark(model)}
        assert class_of_architectures(raw, model_type) is model_class
    assert mark(ValueModel(transformer)) and not mark(ProcessRewardModel(transformer))


def test_a_policy_is_a_language_model_and_so_is_an_unknown_task(make):
    assert task_of(Policy(make())) == "CAUSAL_LM" and task_of(RewardModel(make())) == "SEQ_CLS"
    assert class_of_task({"task_type": "NEW"}) is class_of_task({}) is Transformer


def test_the_nearest_name_is_alike_as_a_whole_and_in_its_last_part():
    assert nearest("gemma", FAMILIES) == "; the nearest is gemma2"
    assert nearest("gmma_beta", ["gamma", "ppo.gamma", "dpo.beta", "kl.gamma_beta"]) == "; the nearest is kl.gamma_beta"
    assert nearest("sft.beta", ["sft.lr", "dpo.beta"]) == "; the nearest is dpo.beta"
