"""Turns of a dialogue as text and as ids, by a chat template or in the plain layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlhf.errors import InputError
from minirlhf.text.chat import answer_spans, render_chat

# Each function takes a `Tokenizer`.


def render(
    tokenizer: Any, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None, variables: dict | None
) -> tuple[str, list[tuple[int, int]] | None]:
    """(text, spans of the answers); None for the spans if the template does not mark them."""
    templates = tokenizer.templates
    if not templates:
        if tools or variables:
            raise InputError("chat: the plain layout reads neither tools nor variables; choose another template")
        return render_chat(messages, add_generation_prompt), None
    template = templates.get("tool_use") if tools is not None else None
    template = template or templates.get("default")
    if template is None:
        raise InputError(
            f"chat template: needed a template named default, got {', '.join(sorted(templates))}; choose one with "
            "with_template(tokenizer.templates[name].source)"
        )
    text, spans = template.render(messages, add_generation_prompt, tools, variables)
    return text, spans if template.marks_answers else None


def encode_with_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """A rendered text -> (ids, (start, end) of each id in the text).

    Special tokens that the template writes are tokens. Without a template the text is plain, after BOS as in prompts.
    """
    backend, plain = tokenizer.backend, not tokenizer.templates
    prefix = tokenizer.prefix if plain else []
    backend.encode_special_tokens = plain or bool(tokenizer.parts.config.get("split_special_tokens"))
    try:
        encoding = backend.encode(text, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = True
    return [*prefix, *encoding.ids], [(-1, -1)] * len(prefix) + encoding.offsets


def encode_turns(tokenizer: Any, turns: list[dict], answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Turns for the assistant to answer -> (ids of the prompt, ids of each answer, its end token included).

    This is how training reads a row of turns. Render prompt and answer, encode the text, cut off the prompt's ids, and
    cut after the answer's end token. If a token spans the boundary, encode the answer separately. If the template
    changes the prompt's text once an answer follows, use the plain answer and EOS.
    """
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    ids = tokenizer.encode_rendered(prompt)
    return ids, [_encode_answer(tokenizer, turns, prompt, ids, answer) for answer in answers]


def _encode_answer(tokenizer: Any, turns: list[dict], prompt: str, prompt_ids: list[int], answer: str) -> list[int]:
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}])
    if not whole.startswith(prompt):
        return tokenizer.encode_responses([answer])[0]
    ids, start = tokenizer.encode_rendered(whole), len(prompt_ids)
    ids = ids[start:] if ids[:start] == prompt_ids else tokenizer.encode_rendered(whole[len(prompt) :])
    ends = [position for position, token in enumerate(ids) if token in tokenizer.eos_ids]
    # end tokens in the answer's own text
    inside = sum(token in tokenizer.eos_ids for token in tokenizer.encode_rendered(answer))
    return ids[: ends[inside] + 1] if inside < len(ends) else [*ids, tokenizer.eos_id]


def encode_chat(
    tokenizer: Any,
    messages: list[dict],
    add_generation_prompt: bool = False,
    tools: list[dict] | None = None,
    variables: dict | None = None,
) -> tuple[list[int], list[bool]]:
    """Turns -> (ids, mask of the assistant's tokens). The end token of each assistant turn is in the mask.

    No trainer here uses this mask: SFT learns the last answer of a row, see `encode_turns`. Use the mask to train on
    every answer of a dialogue.

    The text is encoded as a whole, as other tools do it. A token that spans the beginning of an answer counts as the
    assistant's. The mask follows the template's {% generation %} blocks, or `answer_spans` without them.
    Raises: InputError if the template refuses the turns, or changes earlier turns so that an answer is not found.
    """
    text, spans = render(tokenizer, messages, add_generation_prompt, tools, variables)
    if spans is None:

        def render_part(turns: list[dict], prompt: bool) -> str:
            return tokenizer.apply_chat_template(turns, prompt, tools, variables)

        ends = [tokenizer.backend.id_to_token(i) for i in tokenizer.eos_ids]
        spans = answer_spans(render_part, messages, text, ends)
    ids, offsets = encode_with_offsets(tokenizer, text)
    # A token without width, such as the "_" that some tokenizers put first, counts as one character.
    mask = [any(max(a, start) < min(max(b, a + 1), end) for start, end in spans) for a, b in offsets]
    return ids, mask
