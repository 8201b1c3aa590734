"""The shape of a model. Field names are those of the Hugging Face Llama config, so config.json is this, written out."""

from __future__ import annotations

from dataclasses import dataclass

from minirlhf.errors import InputError, check_range


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int = 2048  # [tokens] rows of the embedding; set from the tokenizer when a model is made
    hidden_size: int = 64  # [numbers] width of the residual stream
    num_hidden_layers: int = 2  # [blocks] attention + MLP pairs
    num_attention_heads: int = 4  # [heads] query heads
    num_key_value_heads: int = 2  # [heads] key and value heads, each shared by a group of query heads
    head_dim: int | None = None  # [numbers] width of a head; none means hidden_size / num_attention_heads
    intermediate_size: int = 192  # [numbers] width inside the MLP
    max_position_embeddings: int = 1024  # [tokens] the context: prompt and response together
    rope_theta: float = 10_000.0  # [-] base of the rotary wavelengths
    rms_norm_eps: float = 1e-6  # [-] added to the mean square before the root
    tie_word_embeddings: bool = True  # [-] the head is the embedding, transposed

    def __post_init__(self) -> None:
        check_range(self, "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", least=1)
        check_range(self, "num_key_value_heads", "intermediate_size", "max_position_embeddings", least=1)
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"ModelConfig: hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}; or set head_dim"
            )
        if self.head_width < 2 or self.head_width % 2:
            raise InputError(f"ModelConfig: head_dim must be even for rotary positions, got {self.head_width}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"ModelConfig: num_attention_heads must be a multiple of num_key_value_heads, got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}"
            )

    @property
    def head_width(self) -> int:
        """`head_dim`, given or derived."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim
