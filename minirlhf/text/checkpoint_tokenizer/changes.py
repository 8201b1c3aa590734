"""A tokenizer's parts with another chat template, or with more special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.text.checkpoint_tokenizer.answer_end import with_answer_end
from minirlhf.text.checkpoint_tokenizer.backend import add_special_tokens
from minirlhf.text.checkpoint_tokenizer.folder import NAMES, choose_pad
from minirlhf.text.checkpoint_tokenizer.layouts import LAYOUTS
from minirlhf.text.checkpoint_tokenizer.template import ChatTemplate
from minirlhf.text.checkpoint_tokenizer.variables import with_variables
from minirlhf.text.parts import TokenizerParts


def changed(parts: TokenizerParts, template: str | None, variables: dict[str, Any] | str | None) -> TokenizerParts:
    """See `Tokenizer.with_template`."""
    parts = with_template(parts, template) if template is not None else parts
    return with_variables(parts, variables) if variables else parts


def with_template(parts: TokenizerParts, template: str) -> TokenizerParts:
    """template: the name of a built-in layout, or Jinja.   Raises: InputError, see `Tokenizer.with_template`."""
    if template not in LAYOUTS and "{" not in template:
        raise InputError(f"chat template: needed one of {', '.join(LAYOUTS)} or Jinja text, got {shown(template)}")
    layout = LAYOUTS.get(template)
    missing = [token for token in layout.needs if parts.backend.token_to_id(token) is None] if layout else []
    if missing:
        possible = [name for name, other in LAYOUTS.items() if not other.needs]
        raise InputError(
            f"chat template {shown(template)}: the vocabulary lacks {', '.join(missing)}; choose one of "
            f"{', '.join(possible)}"
        )
    # With "split_special_tokens" other tools would read the template's own special tokens as text.
    config = {key: value for key, value in parts.config.items() if key != "split_special_tokens"}
    special, eos_ids, files = parts.special, parts.eos_ids, parts.files
    if layout and layout.turn_end:
        special = special | {"eos_token": layout.turn_end}
        eos_ids = tuple(dict.fromkeys([parts.backend.token_to_id(layout.turn_end), *eos_ids]))
        config = config | special
        files = {name: text for name, text in files.items() if name != NAMES}  # NAMES holds the old end token
    source = layout.template if layout else template
    other = replace(
        parts,
        config=config,
        special=special,
        pad=choose_pad(parts.backend, special),
        eos_ids=eos_ids,
        templates={"default": ChatTemplate(source, special)},
        files=files,
    )
    return with_answer_end(other)


def with_special_tokens(parts: TokenizerParts, tokens: Sequence[str]) -> TokenizerParts:
    """Raises: InputError if a token is empty."""
    if isinstance(tokens, str) or not all(isinstance(token, str) and token for token in tokens):
        raise InputError(f"with_special_tokens: needed a list of strings that are not empty, got {shown(tokens)}")
    backend = add_special_tokens(parts.backend, tokens)
    return with_answer_end(replace(parts, backend=backend, pad=choose_pad(backend, parts.special)))
