"""A tokenizer, a tiny model, rows and environments for the tests of this folder."""

import time

import tokenizers
import torch

from minirlhf.data.encoding import EncodedRow
from minirlhf.environments import Observation
from minirlhf.model import ModelConfig, Transformer
from minirlhf.text.tokenizer import BOS, EOS, PAD, Tokenizer

LETTERS = "abcdefghijklmnop"


def tokenizer(letters, *merges):
    """A token for each letter, and merged tokens."""
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, *letters, *map("".join, merges), "Ġ"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[*merges]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([PAD, BOS, EOS])
    return Tokenizer(backend)


TOKENIZER = tokenizer(LETTERS, ("a", "b"), ("c", "d"))  # most samples are not as the encoder writes them
SIZE = TOKENIZER.vocab_size


def model_of(dtype=torch.float32, scale=4.0, **shape):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"vocab_size": SIZE, "intermediate_size": 32, "max_position_embeddings": 48}
    model = Transformer(ModelConfig(**sizes | shape)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(scale)
    return model


def rows(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    texts = ["".join(LETTERS[i] for i in torch.randint(0, 16, (1 + i % 7,), generator=generator)) for i in range(n)]
    return [EncodedRow({"prompt": text, "number": i}, [], ()) for i, text in enumerate(texts)]


class Echo:
    """Answers with a few of the letters that it got; the number of turns depends on the row; is slow at times."""

    def reset(self, row):
        self.left, self.number = row["number"] % 5, row["number"]
        return row["prompt"]

    def step(self, action):
        if self.number % 4 == 3:
            time.sleep(0.002)
        self.left -= 1
        letters = "".join(letter for letter in action if letter in LETTERS)[: self.number % 6]
        return Observation("".join(sorted(letters)) + "ab" * (self.number % 2), len(action) / 8, self.left < 0)


class Endless(Echo):
    def step(self, action):
        return super().step(action)._replace(done=False)
