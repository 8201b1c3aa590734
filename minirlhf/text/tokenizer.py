"""Byte-level BPE: text <-> ids. Any text can be written, so nothing is ever unknown.

Prompt and response are encoded apart and their ids joined, both when sampling and when training: the boundary cannot
differ. Text is encoded as plain text: a "<|eos|>" inside the data is seven characters, never the special token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from minirlhf.errors import InputError
from minirlhf.text.chat import render_chat

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
FILES = ("tokenizer.json", "tokenizer_config.json")


class Tokenizer:
    """A `tokenizers` BPE with the ids of padding, beginning and end. Raises: InputError if padding is the end token."""

    def __init__(self, backend: tokenizers.Tokenizer, *, pad: str = PAD, bos: str = BOS, eos: str = EOS) -> None:
        for role, token in (("pad", pad), ("bos", bos), ("eos", eos)):
            if backend.token_to_id(token) is None:
                raise InputError(f"Tokenizer: {role} token {token!r} is not in the vocabulary; name one that is")
        if backend.token_to_id(pad) == backend.token_to_id(eos):
            raise InputError(
                f"Tokenizer: pad and EOS must be two tokens, got {pad!r} for both: a model trained so never learns to "
                "stop; add a pad token"
            )
        self.backend = backend
        self.backend.encode_special_tokens = True  # special tokens inside text are text
        self.special = {"pad": pad, "bos": bos, "eos": eos}
        self.pad_id, self.bos_id, self.eos_id = (backend.token_to_id(token) for token in (pad, bos, eos))
        # other tools, which read tokenizer.json alone, then begin a text with BOS as `encode_prompts` does
        bos_first = tokenizers.processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, self.bos_id)])
        self.backend.post_processor = bos_first

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
        """Learn merges from texts; the vocabulary ends up smaller if they hold fewer pairs. Special ids come first.

        Every digit is a token of its own, as in Llama's first tokenizer: with merged numbers the same sum has a hundred
        spellings, and a model learns them one by one.
        """
        if vocab_size < 256 + 3:
            raise InputError(
                f"Tokenizer.train: vocab_size must be at least 259 (3 specials, 256 bytes), got {vocab_size}"
            )
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json and tokenizer_config.json. Raises: InputError if one is missing or broken."""
        model, config = (Path(folder) / name for name in FILES)
        for path in (model, config):
            if not path.is_file():
                raise InputError(
                    f"{folder}: needed a tokenizer folder with {' and '.join(FILES)}, found no {path.name}"
                )
        try:
            names = json.loads(config.read_text(encoding="utf-8"))
            backend = tokenizers.Tokenizer.from_file(str(model))
            return cls(backend, **{role: names[f"{role}_token"] for role in ("pad", "bos", "eos")})
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None
        except Exception as error:  # the tokenizers library raises plain Exception for a broken file
            raise InputError(f"{folder}: needed a readable tokenizer ({error!r}); save it again") from None

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, as other tools read them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / FILES[0]))
        config = {f"{role}_token": token for role, token in self.special.items()}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
        (folder / FILES[1]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Plain text -> ids, without any special token."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """BOS + text, each: even an empty prompt leaves one token to predict from."""
        return [[self.bos_id, *encoding.ids] for encoding in self._encode_batch(texts)]

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Text + EOS, each."""
        return [[*encoding.ids, self.eos_id] for encoding in self._encode_batch(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def decode_completions(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """What a policy wrote: its last EOS is left out, any other special token shows, so that rewards can see it."""
        rows = [ids[:-1] if ids and ids[-1] == self.eos_id else ids for ids in rows]
        return self.backend.decode_batch([list(ids) for ids in rows], skip_special_tokens=False)

    @property
    def token_ids(self) -> dict[str, int]:
        """pad, bos and eos as a model's config.json names them."""
        return {"pad_token_id": self.pad_id, "bos_token_id": self.bos_id, "eos_token_id": self.eos_id}

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """Turns -> one text in the plain layout; see `render_chat`."""
        return render_chat(messages, add_generation_prompt)

    def _encode_batch(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        return self.backend.encode_batch(list(texts), add_special_tokens=False)
