"""Turns of a dialogue as text and as ids, by a chat template or in the plain layout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from minirlhf.errors import InputError, shown
from minirlhf.text.chat import answer_spans, render_chat, turn_text

# Each function takes a `Tokenizer`.


def render(
    tokenizer: Any, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None, variables: dict | None
) -> tuple[str, list[tuple[int, int]] | None]:
    """(text, spans of the answers); None for the spans if the template does not mark them."""
    templates = tokenizer.templates
    if not templates:
        if variables:
            raise InputError("chat: the plain layout reads no variables; choose another template")
        return render_chat(messages, add_generation_prompt, tools), None
    template = templates.get("tool_use") if tools is not None else None
    template = template or templates.get("default")
    if template is None:
        names = ", ".join(map(shown, sorted(templates)))
        raise InputError(
            f"chat template: needed a template named default, got {names}; choose one with "
            "with_template(tokenizer.templates[name].source)"
        )
    text, spans = template.render(messages, add_generation_prompt, tools, variables)
    return text, spans if template.marks_answers else None


def encode_with_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """A rendered text -> (ids, (start, end) of each id in the text).

    Special tokens that the template writes are tokens. Without a template the text is plain, after BOS as in prompts.
    """
    if not tokenizer.templates:
        from minirlhf.text.failures import text_errors

        with text_errors():
            encoding = tokenizer.backend.encode(text, add_special_tokens=False)
        prefix = tokenizer.prefix
        return [*prefix, *encoding.ids], [(-1, -1)] * len(prefix) + encoding.offsets
    from minirlhf.text.checkpoint_tokenizer.answer_end import encode_rendered

    encoding = encode_rendered(tokenizer.parts, text)
    return encoding.ids, encoding.offsets


def encode_turns(
    tokenizer: Any,
    turns: list[dict],
    answers: Sequence[str | dict],
    sampled: bool = False,
    tools: list[dict] | None = None,
) -> tuple[list[int], list[list[int]]]:
    """Turns for the assistant to answer -> (ids of the prompt, ids of each answer, its end token included).

    This is how training reads a row of turns: render prompt and answer, cut after the answer's end token, encode, and
    cut off the prompt's ids. If a token spans the boundary, the answer is encoded separately. An answer to which the
    template adds no end token ends with EOS.

    answers: texts, or whole turns of the assistant.
    sampled: a model wrote the answers after such a prompt, so an answer may be incomplete.
    Raises: InputError if the template refuses the turns, or does not show where an answer begins and ends.
    """
    prompt = tokenizer.apply_chat_template(turns, True, tools)
    ids, encoded = tokenizer.encode_rendered(prompt), []
    for answer in answers:
        turn = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        encoded.append(_encode_answer(tokenizer, turns, prompt, ids, turn, sampled, tools))
    return ids, encoded


def _encode_answer(
    tokenizer: Any, turns: list[dict], prompt: str, prompt_ids: list[int], turn: dict, sampled: bool, tools: Any
) -> list[int]:
    rest, token = answer_text(tokenizer, turns, prompt, turn, sampled, tools)
    if not tokenizer.templates:  # the plain layout of `encode_prompts` and `encode_responses`
        return tokenizer.encode_responses([rest])[0]
    ids, start = tokenizer.encode_rendered(prompt + rest), len(prompt_ids)
    ids = ids[start:] if ids[:start] == prompt_ids else tokenizer.encode_rendered(rest)
    return ids if token is not None else [*ids, tokenizer.eos_id]


def answer_text(
    tokenizer: Any, turns: list[dict], prompt: str, turn: dict, sampled: bool = False, tools: list[dict] | None = None
) -> tuple[str, int | None]:
    """-> (the text that the model writes after `prompt`, its end token or None).

    turns, prompt: the turns before the answer, and their text.   turn: the answer.
    """
    if not tokenizer.templates:
        return turn_text(turn), None
    from minirlhf.text.checkpoint_tokenizer.answer_end import begun_tag, continuation, find_answer_end, repeats

    answer, render = turn["content"], partial(tokenizer.apply_chat_template, tools=tools)
    whole = render([*turns, turn])
    located, tag, end = whole.startswith(prompt), begun_tag(prompt), tokenizer.parts.answer_end

    def opening(end: Any) -> str:
        return next((text for text in (end.opening, tag) if text and whole.startswith(prompt.removesuffix(text))), "")

    def fits(end: Any) -> bool:
        known = end is not None and whole.endswith(end.text + end.rest)
        return known and (located or sampled or opening(end) != "")

    if not fits(end):
        end = find_answer_end(render, tokenizer.parts, turns)  # these turns may differ
    if fits(end) and not located:
        return continuation(answer, opening(end), sampled) + end.text, end.token
    if fits(end):
        rest = whole[len(prompt) : len(whole) - len(end.rest)]
        if tag and (tag.strip() in answer or f"</{tag.strip()[1:]}" in answer):  # the answer has the reasoning
            expected = continuation(answer, tag, sampled) + end.text
            rest = expected if repeats(rest, expected, tag) else rest
        return rest, end.token
    raise InputError(
        f"chat template: its generation prompt ends with {shown(prompt[-20:])}, and it renders these turns differently "
        "once this answer follows, so the answer's tokens cannot be located; begin the answer as the prompt does, set "
        "a variable of the template, or use another template"
    )


def encode_chat(
    tokenizer: Any,
    messages: list[dict],
    add_generation_prompt: bool = False,
    tools: list[dict] | None = None,
    variables: dict | None = None,
) -> tuple[list[int], list[bool]]:
    """Turns -> (ids, mask of the assistant's tokens). The end token of each assistant turn is in the mask.

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
    return ids, mask_of(offsets, spans)


def mask_of(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[bool]:
    """For each token, whether it stands in a span, in whole or in part."""
    # A token without width, such as the "_" that some tokenizers put first, counts as one character.
    return [any(max(a, start) < min(max(b, a + 1), end) for start, end in spans) for a, b in offsets]
