"""Text <-> ids, with a byte-level BPE trained here or with the tokenizer of a checkpoint.

Prompt and response are encoded separately, in sampling and in training, so both have the same ids at the boundary.
Text is encoded as plain text: a "<|eos|>" inside the data is seven characters, never the special token. Only the text
of a checkpoint's chat template differs: special tokens in it are tokens, even inside a turn's content.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from minirlhf.errors import InputError, shown
from minirlhf.text.parts import TokenizerParts

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"


class Tokenizer:
    """A `tokenizers` tokenizer that knows its tokens for padding, beginning and end.

    pad_id:  pads rows on the right; never the end token. Masks come from lengths, not from this id. A checkpoint
             without a padding token, or with its end token as padding, gets an unused special token. If it has no
             unused special token, an ordinary token pads and `special["pad"]` is None.
    bos_id:  None if the checkpoint has no BOS (Qwen).
    eos_id:  ends a response in training. In sampling every id of `eos_ids` ends it; `eos_id` is the first id.
    Raises: InputError if the padding token is the end token, or a special token is not in the vocabulary.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad: str = PAD, bos: str = BOS, eos: str = EOS) -> None:
        for role, token in (("pad", pad), ("bos", bos), ("eos", eos)):
            if backend.token_to_id(token) is None:
                raise InputError(f"Tokenizer: {role} token {shown(token)} is not in the vocabulary; name another token")
        if backend.token_to_id(pad) == backend.token_to_id(eos):
            raise InputError(
                f"Tokenizer: pad and EOS must be two tokens, got {shown(pad)} for both: a model trained this way never "
                "learns to stop; add a pad token"
            )
        # Some tools read only tokenizer.json. This makes them begin a text with BOS, as `encode_prompts` does.
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
        special = {"pad_token": pad, "bos_token": bos, "eos_token": eos}
        config = special | {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
        self._take(TokenizerParts(backend, config, special, pad, (backend.token_to_id(eos),)))

    def _take(self, parts: TokenizerParts) -> None:
        self.parts, self.backend, self.templates = parts, parts.backend, parts.templates
        self.backend.encode_special_tokens = True  # special tokens inside text are text
        self.special = {"pad": parts.pad, "bos": parts.special.get("bos_token"), "eos": parts.special["eos_token"]}
        self.eos_ids, self.eos_id = parts.eos_ids, parts.eos_ids[0]
        self.bos_id = None if self.special["bos"] is None else self.backend.token_to_id(self.special["bos"])
        any_other = int(self.eos_id == 0)
        self.pad_id = any_other if parts.pad is None else self.backend.token_to_id(parts.pad)
        # The ids that tokenizer.json puts before a text. Other tools follow that file, not the config.
        encoding = self.backend.encode("a", add_special_tokens=True)
        added = encoding.special_tokens_mask
        self.prefix = encoding.ids[: added.index(0) if 0 in added else 0]

    @classmethod
    def of(cls, parts: TokenizerParts) -> Tokenizer:
        """A tokenizer made of these parts."""
        tokenizer = cls.__new__(cls)
        tokenizer._take(parts)
        return tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
        """Learn merges from texts. With too few pairs in them the vocabulary is smaller. Special ids come first.

        Every digit is a token, as in Llama's first tokenizer: with merged digits a sum has a hundred spellings, and a
        model must learn each spelling.
        """
        if not 256 + 3 <= vocab_size <= 1 << 20:  # the trainer claims memory for all of them at once
            raise InputError(
                f"Tokenizer.train: vocab_size must be 259 (3 specials, 256 bytes) to 1,048,576, got {vocab_size}"
            )
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        before = tokenizers.pre_tokenizers
        parts = [before.Digits(individual_digits=True), before.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = before.Sequence(parts)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(before.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    # Only the next four methods need checkpoint_tokenizer/, so they import it themselves.

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a tokenizer's folder, written here or by another tool; see `read_folder`.

        Raises: InputError if a file is missing or broken, or the chat template does harm.
        """
        from minirlhf.text.checkpoint_tokenizer.folder import read_folder

        return cls.of(read_folder(folder))

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files, as other tools read them; see `write_folder`."""
        from minirlhf.text.checkpoint_tokenizer.folder import write_folder

        write_folder(folder, self.parts, self.token_ids)

    def with_template(self, template: str | None = None, variables: dict[str, Any] | str | None = None) -> Tokenizer:
        """The same vocabulary with another chat template: the name of a built-in (see `LAYOUTS`), or Jinja.

        If a built-in ends turns with a special token, it becomes the end token. variables: see `with_variables`.
        Raises: InputError if the vocabulary lacks a token that the template needs, or the template does harm.
        """
        from minirlhf.text.checkpoint_tokenizer.changes import changed

        return self.of(changed(self.parts, template, variables))

    def with_special_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """The same tokenizer with more special tokens. A token that is in the vocabulary already keeps its id.

        New ids come last, and no other id changes. A model needs a row for each new id: `resize_embeddings`. Inside
        plain text the new tokens are text, like every special token; a chat template writes them as tokens.
        Raises: InputError if a token is empty.
        """
        from minirlhf.text.checkpoint_tokenizer.changes import with_special_tokens

        return self.of(with_special_tokens(self.parts, tokens))

    @property
    def vocab_size(self) -> int:
        """The largest id + 1: the rows that a model needs. The count of tokens is smaller if ids have holes."""
        return max(self.backend.get_vocab().values()) + 1

    @property
    def token_ids(self) -> dict[str, int | None]:
        """pad, bos and eos as a model's config.json names them; None where the tokenizer has no such token."""
        pad_id = None if self.special["pad"] is None else self.pad_id
        return {"pad_token_id": pad_id, "bos_token_id": self.bos_id, "eos_token_id": self.eos_id}

    def encode(self, text: str) -> list[int]:
        """Plain text -> ids, without any special token."""
        return self._ids([text])[0]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as ids, after BOS if the tokenizer puts BOS first.

        An empty prompt becomes BOS, or EOS in a tokenizer without BOS: a model needs a token to predict from.
        """
        empty = [self.eos_id if self.bos_id is None else self.bos_id]  # after EOS a new text begins
        return [[*self.prefix, *ids] or empty for ids in self._ids(texts)]

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text as ids, with EOS."""
        return [[*ids, self.eos_id] for ids in self._ids(texts)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        from minirlhf.text.failures import text_errors  # here, so that the core loads no leaf

        with text_errors():
            return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def decode_completions(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Completions -> texts without the last EOS. Other special tokens stay, so that rewards can see them."""
        rows = [ids[:-1] if ids and ids[-1] in self.eos_ids else ids for ids in rows]
        return self.backend.decode_batch([list(ids) for ids in rows], skip_special_tokens=False)

    def apply_chat_template(
        self,
        messages: list[dict],
        add_generation_prompt: bool = False,
        tools: list[dict] | None = None,
        variables: dict | None = None,
    ) -> str:
        """Turns -> their text by the chat template, see `ChatTemplate.render`; without a template by `render_chat`."""
        from minirlhf.text.turns import render

        return render(self, messages, add_generation_prompt, tools, variables)[0]

    def encode_rendered(self, text: str) -> list[int]:
        """A text from `apply_chat_template` -> the ids that a model reads: the template's special tokens are tokens."""
        from minirlhf.text.turns import encode_with_offsets

        return encode_with_offsets(self, text)[0]

    def encode_turns(
        self, turns: list[dict], answers: Sequence[str | dict] = (), sampled: bool = False, tools: list | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """Turns -> (ids of the prompt, ids of each answer with its end token); see `text.turns.encode_turns`."""
        from minirlhf.text.turns import encode_turns

        return encode_turns(self, turns, answers, sampled, tools)

    def encode_chat(
        self, messages: list[dict], add_generation_prompt: bool = False, **options: Any
    ) -> tuple[list[int], list[bool]]:
        """Turns -> (ids, mask of the assistant's tokens); see `text.turns.encode_chat`. options: tools, variables."""
        from minirlhf.text.turns import encode_chat

        return encode_chat(self, messages, add_generation_prompt, **options)
