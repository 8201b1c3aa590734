"""Text <-> ids: a byte-level BPE of our own, in which nothing is ever unknown, or the tokenizer of a checkpoint.

Prompt and response are encoded apart and their ids joined, both when sampling and when training: the boundary cannot
differ. Text is encoded as plain text: a "<|eos|>" inside the data is seven characters, never the special token. A text
that a checkpoint's chat template wrote is the exception: there special tokens are meant, even inside a turn's content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import tokenizers

from minirlhf.errors import InputError
from minirlhf.text.chat import answer_spans, render_chat
from minirlhf.text.checkpoint_tokenizer.folder import (
    CONFIG,
    GENERATION,
    MODEL,
    NAMES,
    TokenizerFolder,
    choose_pad,
    name_pad,
    read_folder,
    write_templates,
)
from minirlhf.text.checkpoint_tokenizer.layouts import LAYOUTS
from minirlhf.text.checkpoint_tokenizer.template import ChatTemplate

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"


class Tokenizer:
    """A `tokenizers` tokenizer with the ids of padding, beginning and end.

    pad_id:  what fills the right of a row, never the end token. Masks come from lengths, not from this id, so a
             checkpoint without a padding token of its own, or with its end token as such, gets an unused special token,
             else any ordinary one (`special["pad"]` is None).
    bos_id:  None if the checkpoint has none (Qwen).
    eos_id:  what ends a response; `eos_ids` are all that end one when sampling, `eos_id` first.
    Raises: InputError if a tokenizer made here is told to pad with its end token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, pad: str = PAD, bos: str = BOS, eos: str = EOS) -> None:
        for role, token in (("pad", pad), ("bos", bos), ("eos", eos)):
            if backend.token_to_id(token) is None:
                raise InputError(f"Tokenizer: {role} token {token!r} is not in the vocabulary; name one that is")
        if backend.token_to_id(pad) == backend.token_to_id(eos):
            raise InputError(
                f"Tokenizer: pad and EOS must be two tokens, got {pad!r} for both: a model trained so never learns to "
                "stop; add a pad token"
            )
        # other tools, which read tokenizer.json alone, then begin a text with BOS as `encode_prompts` does
        bos_first = tokenizers.processors.TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
        backend.post_processor = bos_first
        special = {"pad_token": pad, "bos_token": bos, "eos_token": eos}
        config = special | {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True}
        self._take(TokenizerFolder(backend, config, special, pad, (backend.token_to_id(eos),)))

    def _take(self, source: TokenizerFolder) -> None:
        backend = source.backend
        self.source, self.backend = source, backend
        self.backend.encode_special_tokens = True  # special tokens inside text are text
        self.special = {"pad": source.pad, "bos": source.special.get("bos_token"), "eos": source.special["eos_token"]}
        self.eos_ids, self.eos_id = source.eos_ids, source.eos_ids[0]
        self.bos_id = None if self.special["bos"] is None else backend.token_to_id(self.special["bos"])
        fill = 0 if self.eos_id != 0 else 1
        self.pad_id = fill if source.pad is None else backend.token_to_id(source.pad)
        # what tokenizer.json puts before a text (other tools, given that file, do not look at the config for it)
        some = backend.encode("a", add_special_tokens=True)
        added = some.special_tokens_mask
        self.prefix = some.ids[: added.index(0) if 0 in added else 0]
        self.templates = {name: ChatTemplate(text, source.special) for name, text in source.templates.items()}

    @classmethod
    def _of(cls, source: TokenizerFolder) -> Tokenizer:
        tokenizer = cls.__new__(cls)
        tokenizer._take(source)
        return tokenizer

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
        """Read a tokenizer's folder, ours or a checkpoint's; see `read_folder`.

        Its chat template is tried out in a child process first. Raises: InputError if anything is missing or broken.
        """
        source = read_folder(folder)
        try:
            return cls._of(source)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Write into `folder` what was read or made, as other tools read it.

        generation_config.json keeps what it had; several end tokens go there. The token that we pad with is named, if
        it is one that other tools too may leave out of training.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / MODEL))
        pad, read = self.special["pad"], self.source.files
        files = {CONFIG: write_templates(folder, name_pad(self.source.config, pad), self.source.templates)}
        if NAMES in read:
            files[NAMES] = name_pad(json.loads(read[NAMES]), pad)
        ends = list(self.eos_ids) if len(self.eos_ids) > 1 else self.eos_id
        files[GENERATION] = self.token_ids | json.loads(read.get(GENERATION, "{}")) | {"eos_token_id": ends}
        (folder / NAMES).unlink(missing_ok=True)  # another tokenizer's would be read beside ours
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def with_template(self, template: str) -> Tokenizer:
        """The same vocabulary with another chat template: the name of a built-in (see `LAYOUTS`), or Jinja.

        A built-in whose turns end with a token of their own makes that the end token. Raises: InputError if the
        vocabulary lacks a token that it needs, or the template does harm.
        """
        if template not in LAYOUTS and "{" not in template:
            raise InputError(f"chat template: needed one of {', '.join(LAYOUTS)} or Jinja text, got {template!r}")
        layout = LAYOUTS.get(template)
        missing = [token for token in layout.needs if self.backend.token_to_id(token) is None] if layout else []
        if missing:
            raise InputError(
                f"chat template {template!r} needs {', '.join(missing)}, which the vocabulary lacks; choose one of "
                f"{', '.join(name for name, other in LAYOUTS.items() if not other.needs)}"
            )
        # other tools must now read special tokens inside text as such, or they would not see those of the template
        config = {key: value for key, value in self.source.config.items() if key != "split_special_tokens"}
        special, eos_ids, files = self.source.special, self.eos_ids, self.source.files
        if layout and layout.turn_end:
            special = special | {"eos_token": layout.turn_end}
            eos_ids = tuple(dict.fromkeys([self.backend.token_to_id(layout.turn_end), *eos_ids]))
            config = config | special
            files = {name: text for name, text in files.items() if name != NAMES}  # which would still tell the old one
        changed = replace(
            self.source,
            config=config,
            special=special,
            pad=choose_pad(self.backend, special),
            eos_ids=eos_ids,
            templates={"default": layout.template if layout else template},
            files=files,
        )
        return self._of(changed)

    def with_special_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """The same tokenizer with these special tokens too, one id each; one that is there keeps its id.

        New ids come last and no other moves. A model needs a row for each: `resize_embeddings`. Inside plain text they
        are text, like every special token; a chat template is what writes them. Raises: InputError if a token is empty.
        """
        if isinstance(tokens, str) or not all(isinstance(token, str) and token for token in tokens):
            raise InputError(f"with_special_tokens: needed a list of strings that are not empty, got {tokens!r}")
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_special_tokens(list(tokens))
        return self._of(replace(self.source, backend=backend, pad=choose_pad(backend, self.source.special)))

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Plain text -> ids, without any special token."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Text, each, after BOS if the tokenizer puts one first. An empty prompt too leaves a token to predict from."""
        alone = [self.eos_id if self.bos_id is None else self.bos_id]  # a text begins where another ended
        return [[*self.prefix, *encoding.ids] or alone for encoding in self._encode_batch(texts)]

    def encode_responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Text + EOS, each."""
        return [[*encoding.ids, self.eos_id] for encoding in self._encode_batch(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def decode_completions(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """What a policy wrote: its last EOS is left out, any other special token shows, so that rewards can see it."""
        rows = [ids[:-1] if ids and ids[-1] in self.eos_ids else ids for ids in rows]
        return self.backend.decode_batch([list(ids) for ids in rows], skip_special_tokens=False)

    @property
    def token_ids(self) -> dict[str, int | None]:
        """pad, bos and eos as a model's config.json names them; None where the tokenizer has no such token."""
        pad_id = None if self.special["pad"] is None else self.pad_id
        return {"pad_token_id": pad_id, "bos_token_id": self.bos_id, "eos_token_id": self.eos_id}

    def apply_chat_template(
        self,
        messages: list[dict],
        add_generation_prompt: bool = False,
        tools: list[dict] | None = None,
        variables: dict | None = None,
    ) -> str:
        """Turns -> one text, by the checkpoint's template, or in the plain layout if there is none.

        Args: see `ChatTemplate.render` and `render_chat`, which reads neither tools nor variables.
        """
        return self._render(messages, add_generation_prompt, tools, variables)[0]

    def encode_rendered(self, text: str) -> list[int]:
        """A text from `apply_chat_template` -> the ids that a model reads: the template's special tokens are tokens."""
        return self._encode_rendered(text)[0]

    def encode_chat(
        self,
        messages: list[dict],
        add_generation_prompt: bool = False,
        tools: list[dict] | None = None,
        variables: dict | None = None,
    ) -> tuple[list[int], list[bool]]:
        """Turns -> ids, and which of them the assistant says, the end of its turn included.

        The text is encoded as a whole, as other tools do it: where an answer's first characters merge with what stands
        before them, that token counts as the assistant's. The mask follows the template's {% generation %} blocks; a
        template without them is rendered up to each answer, see `answer_spans`.

        Raises: InputError if the template refuses the turns, or rewrites earlier ones so that an answer is not found.
        """
        text, spans = self._render(messages, add_generation_prompt, tools, variables)
        if spans is None:
            ends = [self.backend.id_to_token(i) for i in self.eos_ids]
            spans = answer_spans(
                lambda turns, prompt: self._render(turns, prompt, tools, variables)[0], messages, text, ends
            )
        ids, offsets = self._encode_rendered(text)
        # a token without width, such as the "_" that some tokenizers put first, stands at its place
        mask = [any(max(a, start) < min(max(b, a + 1), end) for start, end in spans) for a, b in offsets]
        return ids, mask

    def encode_turns(self, turns: list[dict], answers: Sequence[str] = ()) -> tuple[list[int], list[list[int]]]:
        """Turns that the assistant is to answer -> (ids up to where it speaks, ids of each answer, its end included).

        By the chat template: an answer is what it writes after the prompt, up to the end token, in the ids that the
        whole has. Where the whole's ids do not begin with the prompt's, from which a policy samples, the two are
        encoded apart; where its text does not (some templates write the past in another way), it is text and EOS.
        Raises: InputError if the template refuses the turns.
        """
        prompt = self.apply_chat_template(turns, add_generation_prompt=True)
        ids = self.encode_rendered(prompt)
        return ids, [self._encode_answer(turns, prompt, ids, answer) for answer in answers]

    def _encode_answer(self, turns: list[dict], prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
        whole = self.apply_chat_template([*turns, {"role": "assistant", "content": answer}])
        if not whole.startswith(prompt):
            return self.encode_responses([answer])[0]
        ids, start = self.encode_rendered(whole), len(prompt_ids)
        ids = ids[start:] if ids[:start] == prompt_ids else self.encode_rendered(whole[len(prompt) :])
        ends = [place for place, token in enumerate(ids) if token in self.eos_ids]
        said = sum(token in self.eos_ids for token in self.encode_rendered(answer))  # ends that the answer itself holds
        return ids[: ends[said] + 1] if said < len(ends) else [*ids, self.eos_id]

    def _render(
        self, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None, variables: dict | None
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """The text, and the answers' places where the template marks them."""
        if not self.templates:
            if tools or variables:
                raise InputError("chat: the plain layout has no place for tools or variables; choose another template")
            return render_chat(messages, add_generation_prompt), None
        template = self.templates.get("tool_use") if tools is not None else None
        template = template or self.templates.get("default")
        if template is None:
            raise InputError(
                f"chat template: needed one named default, got {', '.join(sorted(self.templates))}; choose one with "
                "with_template(tokenizer.templates[name].source)"
            )
        text, spans = template.render(messages, add_generation_prompt, tools, variables)
        return text, spans if template.marks_answers else None

    def _encode_rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and their places in the text. Without a template the text is plain text, and begins as prompts do."""
        prefix = [] if self.templates else self.prefix
        self.backend.encode_special_tokens = not self.templates or bool(self.source.config.get("split_special_tokens"))
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = True
        return [*prefix, *encoding.ids], [(-1, -1)] * len(prefix) + encoding.offsets

    def _encode_batch(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        return self.backend.encode_batch(list(texts), add_special_tokens=False)
