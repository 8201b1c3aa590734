"""The shape of an encoder-decoder, and config.json of T5, Flan-T5 and mT5 folders.

Raffel et al. 2020, arXiv:1910.10683 (T5); Shazeer 2020, arXiv:2002.05202 (the gated MLP of T5 1.1 and Flan-T5); Xue et
al. 2021, arXiv:2010.11934 (mT5).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from minirlhf.errors import InputError, check_range, shown
from minirlhf.pretrained.safe import check_type, read_json

FAMILIES = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
# field -> key of config.json
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_attention_heads": "num_heads",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "rms_norm_eps": "layer_norm_epsilon",
    "n_positions": "n_positions",
    "start_id": "decoder_start_token_id",
}
REQUIRED = ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")
# feed_forward_proj -> (activation, gated)
PROJECTIONS = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True)}


@dataclass(frozen=True)
class Seq2SeqConfig:
    vocab_size: int = 2048  # [tokens] rows of the embedding; encoder and decoder share the embedding
    hidden_size: int = 64  # [numbers] width of the residual streams
    num_hidden_layers: int = 2  # [blocks] of the encoder
    num_decoder_layers: int = 2  # [blocks] of the decoder
    num_attention_heads: int = 4  # [heads] of every attention
    head_dim: int = 16  # [numbers] width of a head; heads x head_dim need not be hidden_size
    intermediate_size: int = 192  # [numbers] width inside the MLP
    hidden_act: Literal["relu", "gelu_tanh", "silu"] = "gelu_tanh"  # [-] the MLP's activation
    gated_mlp: bool = True  # [-] true: activation(gate) * up, as in T5 1.1; false: activation(up), as in T5
    num_buckets: int = 32  # [buckets] of relative positions; each bucket and head has a learned bias
    max_distance: int = 128  # [tokens] all distances from here on share a bucket
    rms_norm_eps: float = 1e-6  # [-] added to the mean square before the root
    tie_word_embeddings: bool = True  # [-] the head uses the weight of the embedding
    scale_outputs: bool = True  # [-] divide logits by the square root of hidden_size, as the first T5 does
    n_positions: int = 512  # [tokens] half of the context; a prompt and its completion together may fill the context
    start_id: int = 0  # [id] the decoder reads this token before the first token of the completion
    model_type: str = "t5"  # [-] family of the saved files: t5 or mt5

    # what code for decoders asks of a configuration
    final_logit_softcapping: ClassVar[None] = None
    num_experts: ClassVar[int] = 0

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "head_dim", "intermediate_size", "max_distance", "n_positions")
        check_range(self, *sizes, least=1, most=2**24)
        check_range(self, "num_hidden_layers", "num_decoder_layers", "num_attention_heads", least=1, most=2**14)
        check_range(self, "rms_norm_eps", least=0, most=1)
        if self.num_buckets < 4 or self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise InputError(
                f"Seq2SeqConfig: num_buckets must be a multiple of 4 and max_distance greater than its half, got "
                f"{self.num_buckets} and {self.max_distance}"
            )
        if not 0 <= self.start_id < self.vocab_size:
            raise InputError(f"Seq2SeqConfig: start_id must be an id of the vocabulary, got {self.start_id}")
        if self.model_type not in FAMILIES or (self.model_type == "mt5" and self.scale_outputs):
            raise InputError(
                f"Seq2SeqConfig: model_type must be t5, or mt5 with scale_outputs=False; got {shown(self.model_type)}"
                f" with scale_outputs={self.scale_outputs}"
            )
        if (self.hidden_act, self.gated_mlp) not in PROJECTIONS.values():
            known = ", ".join(map(str, PROJECTIONS.values()))
            raise InputError(
                f"Seq2SeqConfig: (hidden_act, gated_mlp) must be one of {known}, got {self.hidden_act!r} and "
                f"{self.gated_mlp}"
            )

    @property
    def max_position_embeddings(self) -> int:
        """[tokens] The context: prompt and completion together. Relative positions themselves have no end."""
        return 2 * self.n_positions


def read_config(folder: Path) -> Seq2SeqConfig:
    """The configuration in config.json of a T5, Flan-T5 or mT5 folder, with a tied head.

    A key that is null or missing has the default of the family. The weights decide whether the head is tied, because
    transformers 5 writes `tie_word_embeddings: true` for all models.
    Raises: InputError for another model, or a setting of wrong type or size.
    """
    raw = read_json(folder / "config.json", "the settings of an encoder-decoder")
    try:
        _check(raw)
        return _config_from({key: value for key, value in raw.items() if value is not None})
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def _check(raw: dict[str, Any]) -> None:
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"needed an encoder-decoder with model_type {' or '.join(FAMILIES)}, got {shown(family)}; a decoder is "
            "read by load_pretrained"
        )
    names = raw.get("architectures") or [FAMILIES[family]]
    if names != [FAMILIES[family]]:
        raise InputError(f"architectures must be {FAMILIES[family]}, got {shown(names)}; no other class is supported")
    for key in ("quantization_config", "compression_config", "quantization"):
        if raw.get(key):
            raise InputError(f"{key}: the weights are quantised; take the unquantised folder of this model")
    for field, key in KEYS.items():
        if raw.get(key) is not None:
            check_type(key, raw[key], float if field == "rms_norm_eps" else int, 0)
        elif key in REQUIRED:
            raise InputError(f"{key} is missing; a model needs it")
    for key in ("tie_word_embeddings", "scale_decoder_outputs"):
        if raw.get(key) is not None:
            check_type(key, raw[key], bool)
    projection = raw.get("feed_forward_proj")
    if projection is not None and projection not in PROJECTIONS:
        raise InputError(f"feed_forward_proj must be one of {', '.join(PROJECTIONS)}, got {shown(projection)}")


def _config_from(raw: dict[str, Any]) -> Seq2SeqConfig:
    family = raw["model_type"]
    values = {field: raw[key] for field, key in KEYS.items() if key in raw}
    values.setdefault("num_decoder_layers", values["num_hidden_layers"])
    usual = "gated-gelu" if family == "mt5" else "relu"
    values["hidden_act"], values["gated_mlp"] = PROJECTIONS[raw.get("feed_forward_proj", usual)]
    # older folders of T5 have no scale_decoder_outputs: a tied head is a head with scaled outputs
    scaled = raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings", True))
    return Seq2SeqConfig(**values, scale_outputs=family == "t5" and scaled, model_type=family)


def config_to(config: Seq2SeqConfig) -> dict[str, Any]:
    """The configuration -> config.json, as transformers reads it."""
    raw = {key: getattr(config, field) for field, key in KEYS.items()}
    pair = config.hidden_act, config.gated_mlp
    scale = {"scale_decoder_outputs": config.scale_outputs} if config.model_type == "t5" else {}
    # in older versions of transformers, "tied" scales the outputs of a T5
    tied = config.scale_outputs if config.model_type == "t5" else config.tie_word_embeddings
    return {
        "architectures": [FAMILIES[config.model_type]],
        "model_type": config.model_type,
        "is_encoder_decoder": True,
        "feed_forward_proj": next(name for name, found in PROJECTIONS.items() if found == pair),
        "tie_word_embeddings": tied,
        **scale,
        **raw,
    }
