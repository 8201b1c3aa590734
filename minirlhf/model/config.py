"""The shape of a model. Settings that are also in Hugging Face's config.json have the same names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minirlhf.errors import InputError, check_range

FULL, SLIDING = "full_attention", "sliding_attention"  # layer types: see all earlier tokens, or a window of them
MOST_LAYERS = 2**14  # and heads


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int = 2048  # [tokens] rows of the embedding; a new model takes the tokenizer's size
    hidden_size: int = 64  # [numbers] width of the residual stream
    num_hidden_layers: int = 2  # [blocks] attention + MLP pairs
    num_attention_heads: int = 4  # [heads] query heads
    num_key_value_heads: int = 2  # [heads] key-value heads; each serves a group of query heads
    head_dim: int | None = None  # [numbers] width of a head; none: hidden_size / num_attention_heads
    intermediate_size: int = 192  # [numbers] width inside the MLP
    max_position_embeddings: int = 1024  # [tokens] the context: prompt and response together
    tie_word_embeddings: bool = True  # [-] the head uses the weight of the embedding
    model_type: str = "llama"  # [-] family of the saved files: a row of FAMILIES in pretrained/families.py

    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"  # [-] RMSNorm, RMSNorm with 1 + weight, or LayerNorm
    rms_norm_eps: float = 1e-6  # [-] added to the mean square before the root
    norm_before: bool = True  # [-] norms on the inputs of attention and MLP
    norm_after: bool = False  # [-] norms on the outputs of attention and MLP
    qk_norm: Literal["none", "head", "width"] = "none"  # [-] norm on queries and keys: per head, or over all heads

    hidden_act: Literal["silu", "gelu", "gelu_tanh"] = "silu"  # [-] the MLP's activation
    gated_mlp: bool = True  # [-] true: activation(gate) * up; false: activation(up)
    fused_projections: bool = False  # [-] one matrix for query, key and value, and one for gate and up
    attention_bias: bool = False  # [-] biases of query, key and value
    output_bias: bool = False  # [-] bias of attention's output
    mlp_bias: bool = False  # [-] biases of the MLP
    num_experts: int = 0  # [experts] MLPs per layer; a router chooses among them; 0: one MLP, no router
    num_experts_per_tok: int = 2  # [experts] chosen for each token
    moe_intermediate_size: int = 64  # [numbers] width inside an expert
    norm_topk_prob: bool = True  # [-] scale the weights of a token's experts to a sum of 1
    mlp_only_layers: tuple[int, ...] = ()  # [-] layers with one MLP instead of experts, counted from 0
    router_aux_loss_coef: float = 0.001  # [-] weight of the router loss in SFT
    embedding_scale: bool = False  # [-] multiply embeddings by the square root of hidden_size
    final_logit_softcapping: float | None = None  # [logits] c of c tanh(z / c) on the head's output z; none: no cap
    attn_logit_softcapping: float | None = None  # [logits] c of the same cap on attention scores; none: no cap
    query_pre_attn_scalar: float | None = None  # [-] divide attention scores by its square root; none: head_dim

    sliding_window: int | None = None  # [tokens] tokens that a sliding layer sees, the current token included
    layer_types: tuple[str, ...] = ()  # [-] full_attention or sliding_attention per layer; empty: all full
    no_rope_layers: tuple[int, ...] = ()  # [-] layers without rotary positions, counted from 0

    positions: Literal["rope", "learned"] = "rope"  # [-] rotary positions, or a learned embedding per position
    rope_theta: float = 10_000.0  # [-] base of the rotary wavelengths
    rope_local_theta: float | None = None  # [-] base in sliding layers (unscaled); none: as in full layers
    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"  # [-] how to lengthen the context
    rope_factor: float = 1.0  # [ratio] context / context trained for
    rope_original_context: int | None = None  # [tokens] context trained for; none: max_position_embeddings
    rope_low_freq_factor: float = 1.0  # [-] llama3: slow down waves longer than original context / this
    rope_high_freq_factor: float = 4.0  # [-] llama3: keep waves shorter than original context / this
    rope_beta_fast: float = 32.0  # [turns] yarn: keep waves with more turns in the original context
    rope_beta_slow: float = 1.0  # [turns] yarn: slow down waves with fewer turns in the original context
    rope_attention_factor: float | None = None  # [-] yarn: factor on cos and sin; none: 0.1 ln(rope_factor) + 1
    rope_truncate: bool = True  # [-] yarn: round both limits to whole pairs

    def __post_init__(self) -> None:
        # no known model is near the upper bounds; beyond them, sizes of tensors would overflow
        check_range(
            self, "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", least=1, most=2**24
        )
        check_range(self, "num_hidden_layers", "num_attention_heads", "num_key_value_heads", least=1, most=MOST_LAYERS)
        check_range(self, "head_dim", "num_experts_per_tok", least=1, most=2**14)
        check_range(self, "num_experts", "router_aux_loss_coef", "rms_norm_eps", least=0, most=2**14)
        check_range(self, "max_position_embeddings", "sliding_window", least=1, most=2**31)
        check_range(self, "final_logit_softcapping", "attn_logit_softcapping", above=0, most=1e15)
        check_range(self, "query_pre_attn_scalar", "rope_theta", "rope_local_theta", above=0, most=1e15)
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"ModelConfig: hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}; or set head_dim"
            )
        if self.positions == "rope" and (self.head_width < 2 or self.head_width % 2):
            raise InputError(f"ModelConfig: head_dim must be even for rotary positions, got {self.head_width}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"ModelConfig: num_attention_heads must be a multiple of num_key_value_heads, got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}"
            )
        if self.num_experts or self.layer_types or self.rope_type != "default":
            from minirlhf.model.config_checks import check_experts_layers_and_scaling

            check_experts_layers_and_scaling(self)

    @property
    def head_width(self) -> int:
        """`head_dim`, or its default."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def attention_scale(self) -> float | None:
        """The factor on attention scores; None: the usual head_width^-0.5."""
        return None if self.query_pre_attn_scalar is None else self.query_pre_attn_scalar**-0.5

    def has_experts(self, layer: int) -> bool:
        return self.num_experts > 0 and layer not in self.mlp_only_layers

    def uses_rope(self, layer: int) -> bool:
        return self.positions == "rope" and layer not in self.no_rope_layers

    def layer_type(self, layer: int) -> str:
        return self.layer_types[layer] if self.layer_types else FULL
