"""The tokenizer of an encoder-decoder: prompts have no BOS and end with EOS, and sentinels are tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import tokenizers

from minirlhf.text.parts import TokenizerParts
from minirlhf.text.tokenizer import Tokenizer

SENTINEL = re.compile(r"<extra_id_\d+>")  # the blanks of T5's pre-training


class Seq2SeqTokenizer(Tokenizer):
    """A tokenizer.json of T5 (a Unigram model), or a byte-level BPE trained here.

    A sentinel such as <extra_id_0> inside a text is the token: T5 is asked to fill blanks. All other special tokens
    inside a text are text, as everywhere.
    """

    def _take(self, parts: TokenizerParts) -> None:
        special = {key: token for key, token in parts.special.items() if key != "bos_token"}
        super()._take(replace(parts, special=special))
        self.prefix = []
        content = json.loads(parts.backend.to_str())
        for token in content["added_tokens"]:
            token["special"] = token["special"] and not SENTINEL.fullmatch(token["content"])
        self.backend = tokenizers.Tokenizer.from_str(json.dumps(content))  # `parts` keeps the file's own, for `save`
        self.backend.encode_special_tokens = True
        names = [re.escape(token["content"]) for token in content["added_tokens"] if token["special"]]
        # a Unigram model has the name of each special token among its pieces
        self.names = re.compile("|".join(names)) if names and content["model"]["type"] == "Unigram" else None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 2048) -> Seq2SeqTokenizer:
        """As `Tokenizer.train`; tokenizer.json tells other tools to end each text with EOS."""
        trained = Tokenizer.train(texts, vocab_size)
        eos = trained.special["eos"]
        trained.backend.post_processor = tokenizers.processors.TemplateProcessing(
            f"$A {eos}", special_tokens=[(eos, trained.eos_id)]
        )
        config = {key: value for key, value in trained.parts.config.items() if key != "bos_token"}
        return cls.of(replace(trained.parts, config=config))

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as ids, with EOS, as T5 reads it. An empty text is EOS alone."""
        return self.encode_responses(texts)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """A text with the name of a special token is encoded in parts, cut after the first letter of the name."""
        if self.names is None:
            return super()._ids(texts)
        cuts = [[0, *(match.start() + 1 for match in self.names.finditer(text)), len(text)] for text in texts]
        parts = [[text[a:b] for a, b in pairwise(ends)] for text, ends in zip(texts, cuts, strict=True)]
        ids = iter(super()._ids([part for text in parts for part in text]))
        return [[i for _ in text for i in next(ids)] for text in parts]
