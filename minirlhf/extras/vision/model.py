"""A decoder that reads images: an id beyond the vocabulary of the text is a patch of an image in a gallery.

    BOS | V + n P, V + n P + 1, ..., V + n P + P - 1 | ids of the text        a prompt with image n

The embedding turns an id below V into its row of the table, and any other id into the feature of its patch. All else is
the decoder as it is: positions, masks, packing, cache, sampling, log-probs. A forward encodes each of its images once,
however many rows contain the image.

V ids of text, P patches of an image, S pixels a side, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from minirlhf.errors import InputError
from minirlhf.extras.vision.encoder import CHANNELS, PatchEncoder, VisionConfig
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy, TokenOutputs
from minirlhf.model.transformer import Transformer

MODEL_TYPE = "minirlhf_vision"
MOST_IDS = 2**24  # of text and patches, the bound of ModelConfig


class Gallery:
    """The images of a program, in the order in which they came. Equal images have one number."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []  # [3, S, S] bytes each
        self.numbers: dict[bytes, int] = {}

    def add(self, image: Tensor) -> int:
        """-> the number of the image [3, S, S]."""
        number = self.numbers.setdefault(image.numpy().tobytes(), len(self.images))
        if number == len(self.images):
            self.images.append(image)
        return number

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, numbers: Sequence[int]) -> Tensor:
        return torch.stack([self.images[number] for number in numbers])

    def __deepcopy__(self, memo: dict) -> Gallery:
        return self  # a reference policy reads the images of its policy


class ImageEmbedding(nn.Embedding):
    """ids [...] -> [..., D]: rows of the table for text, features for patches."""

    def __init__(self, config: ModelConfig, vision: VisionConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.weight, std=0.02)
        self.encoder, self.gallery = PatchEncoder(vision, config.hidden_size), Gallery()

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight" and "weight" in self._parameters and len(value) != self.num_embeddings:
            raise InputError(
                "VisionModel: the vocabulary cannot grow, because ids of images follow it; make a new model"
            )
        super().__setattr__(name, value)

    def forward(self, ids: Tensor) -> Tensor:
        patches = ids >= self.num_embeddings
        if not bool(patches.any()):
            return super().forward(ids)
        P, places = self.encoder.config.patches, ids[patches] - self.num_embeddings
        numbers, rows = (places // P).unique(return_inverse=True)
        features = self.encoder(self.gallery[numbers.tolist()].to(ids.device))[rows, places % P]
        x = super().forward(ids.masked_fill(patches, 0))
        return x.masked_scatter(patches[..., None], features.to(x.dtype))


class VisionModel(Transformer):
    """A transformer with an `ImageEmbedding`, trained from scratch."""

    def __init__(self, config: ModelConfig, vision: VisionConfig | None = None) -> None:
        super().__init__(config)
        self.model.embed_tokens = ImageEmbedding(config, vision or VisionConfig())

    @property
    def config(self) -> ModelConfig:
        """The decoder's config with two changes: vocab_size counts the ids of patches too, and model_type is no family.

        So `save_pretrained` refuses the model, instead of writing a decoder that lacks its eyes.
        """
        text, images = self.model.config, self.model.embed_tokens
        ids = text.vocab_size + len(images.gallery) * images.encoder.config.patches
        return replace(text, vocab_size=ids, model_type=MODEL_TYPE)

    @property
    def vision(self) -> VisionConfig:
        return self.model.embed_tokens.encoder.config

    def ids_of(self, image: Tensor) -> list[int]:
        """Add an image [3, S, S] of bytes to the gallery -> its ids.   Raises: InputError for another shape."""
        S, P, gallery = self.vision.image_size, self.vision.patches, self.model.embed_tokens.gallery
        if image.shape != (CHANNELS, S, S) or image.dtype != torch.uint8:
            came = f"{list(image.shape)} of {image.dtype}"
            raise InputError(f"VisionModel: needed images [{CHANNELS}, {S}, {S}] of torch.uint8, got {came}")
        first = self.model.config.vocab_size + gallery.add(image) * P
        if first + P > MOST_IDS:
            raise InputError(f"VisionModel: needed at most {MOST_IDS // P:,} images, got more; use larger patches")
        return list(range(first, first + P))


class VisionPolicy(Policy):
    """A `Policy` whose prompts contain images. Patches have no log-prob: their columns are 0."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, *args, wanted: Tensor | None = None, **options
    ) -> TokenOutputs:
        text = input_ids < self.transformer.model.config.vocab_size
        wanted = text & (attention_mask if wanted is None else wanted)
        return super().forward(input_ids, attention_mask, *args, wanted=wanted, **options)
