"""Names of weights in the files of each family. We use the names of the Hugging Face Llama. A family with other names
has a row in NAMES.
"""

from __future__ import annotations

import re

from torch import nn

from minirlhf.model.policy import Policy

GEMMA = {
    ".post_attention_layernorm.": ".pre_feedforward_layernorm.",
    ".attention_output_norm.": ".post_attention_layernorm.",
    ".mlp_output_norm.": ".post_feedforward_layernorm.",
}
# model_type -> {part of our name: the same part of the name in the family's files}
NAMES: dict[str, dict[str, str]] = {
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "olmo2": {key: GEMMA[key] for key in (".attention_output_norm.", ".mlp_output_norm.")},
    "gpt2": {
        "model.embed_tokens.": "transformer.wte.",
        "model.embed_positions.": "transformer.wpe.",
        "model.layers.": "transformer.h.",
        "model.norm.": "transformer.ln_f.",
        ".input_layernorm.": ".ln_1.",
        ".post_attention_layernorm.": ".ln_2.",
        ".self_attn.qkv_proj.": ".attn.c_attn.",
        ".self_attn.o_proj.": ".attn.c_proj.",
        ".mlp.up_proj.": ".mlp.c_fc.",
        ".mlp.down_proj.": ".mlp.c_proj.",
    },
}


def core_of(model: nn.Module) -> nn.Module:
    """The part whose module names are the names in a checkpoint: a policy's transformer, any other model itself."""
    return model.transformer if isinstance(model, Policy) else model


def name_in_family(model_type: str, name: str) -> str:
    """Our name of a weight -> its name in the family's files."""
    return _replaced(name, NAMES.get(model_type, {}))


def name_here(model_type: str, name: str) -> str:
    """The name of a weight in a family's files -> our name."""
    return _replaced(name, {in_files: ours for ours, in_files in NAMES.get(model_type, {}).items()})


def _replaced(name: str, table: dict[str, str]) -> str:
    if not table:
        return name
    return re.sub("|".join(map(re.escape, table)), lambda match: table[match[0]], name)
