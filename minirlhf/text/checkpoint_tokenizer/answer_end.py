"""How a chat template begins and ends an answer.

A trial answer shows it. The token that the template writes after the trial answer ends an answer, whatever the folder's
files name: Qwen2.5's base model names <|endoftext|>, but its template ends an answer with <|im_end|> and a newline.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import tokenizers

from minirlhf.errors import InputError, shown
from minirlhf.text.failures import text_errors
from minirlhf.text.parts import TokenizerParts

TRIAL = "Zebras graze"  # no template writes these words by itself
USER = {"role": "user", "content": "Hi"}
TAG = re.compile(r"<(/?)([A-Za-z_][\w-]*)>")  # <think>, but not <|im_start|>

Render = Callable[[list[dict], bool], str]  # (turns, add_generation_prompt) -> text


class AnswerEnd(NamedTuple):
    text: str  # after the answer's own text, up to the end token and with it
    rest: str  # after the end token: the model does not write it
    token: int | None  # the end token; None if the template writes none
    opening: str | None  # the end of the generation prompt that is missing in a finished dialogue, such as "<think>\n";
    #                      None if prompt and dialogue differ in another way


def with_answer_end(parts: TokenizerParts) -> TokenizerParts:
    """The parts with the end of answers in the default template. Its token becomes the last of the end tokens."""
    template = parts.templates.get("default")
    if template is None:
        return replace(parts, answer_end=None)
    end = find_answer_end(lambda turns, prompt: template.render(turns, prompt)[0], parts, [USER])
    own = [] if end is None or end.token is None else [end.token]
    return replace(parts, answer_end=end, eos_ids=tuple(dict.fromkeys([*parts.eos_ids, *own])))


def lines_about_answers(parts: TokenizerParts) -> list[str]:
    """A line if answers do not end with the end token that the folder's files name."""
    end, own = parts.answer_end, parts.special["eos_token"]
    if "default" not in parts.templates or (end and end.token == parts.backend.token_to_id(own)):
        return []
    if end is None:
        return ["chat template: it leaves a trial answer out, so each row is tried"]
    if end.token is None:
        return [f"chat template: it writes no end token after an answer, so {shown(own)} ends answers"]
    token = parts.backend.id_to_token(end.token)
    return [f"chat template: it ends answers with {shown(token)}, the folder names {shown(own)}; both end answers"]


def find_answer_end(render: Render, parts: TokenizerParts, turns: list[dict]) -> AnswerEnd | None:
    """Render a trial answer to these turns. Returns: None if the template refuses it or leaves the answer out."""
    answer = {"role": "assistant", "content": TRIAL}
    try:
        prompt, whole = render(turns, True), render([*turns, answer], False)
    except InputError:
        return None
    lead, found, tail = whole.rpartition(TRIAL)
    if not found:
        return None
    try:
        _, followed, inner = render([*turns, answer, USER], False).partition(TRIAL)
    except InputError:
        followed, inner = "", ""
    token, end = _end_token(parts, lead, tail, os.path.commonprefix([tail, inner]) if followed else tail)
    return AnswerEnd(tail[:end], tail[end:], token, _opening(prompt, lead))


def _end_token(parts: TokenizerParts, lead: str, tail: str, common: str) -> tuple[int | None, int]:
    """-> (the end token in `tail`, the character after it); (None, 0) without an end token.

    It is the last token of the first run of special tokens. Command R ends an answer with two of them.
    lead, tail: the texts before and after the answer.
    common: the beginning of `tail` that the template also writes if turns follow. Phi-4-mini ends the last answer with
            <|end|><|endoftext|>, an earlier answer with <|end|>; the common token ends an answer.
    """
    starts = [token for token, _ in _special_tokens(parts, lead) if token is not None]
    starts = [token for token in starts if token != parts.backend.token_to_id(parts.special.get("bos_token", ""))]
    tokens = _special_tokens(parts, tail)
    for limit in (len(common), len(tail)):
        within = [(token, end) for token, end in tokens if end <= limit]
        from_first = itertools.dropwhile(lambda pair: pair[0] is None, within)
        run = list(itertools.takewhile(lambda pair: pair[0] is not None, from_first))
        while len(run) > 1 and run[-1][0] in starts[:1]:  # some templates begin the next answer unasked
            run.pop()
        if run:
            return run[-1]
    return None, 0


def _special_tokens(parts: TokenizerParts, text: str) -> list[tuple[int | None, int]]:
    """(id or None for ordinary text, end in the text) of each token."""
    added, encoding = parts.backend.get_added_tokens_decoder(), encode_rendered(parts, text)
    special = {token for token in added if added[token].special or added[token].content.strip()}
    ends = [end for _, end in encoding.offsets]
    return [(token if token in special else None, end) for token, end in zip(encoding.ids, ends, strict=True)]


def encode_rendered(parts: TokenizerParts, text: str) -> tokenizers.Encoding:
    """A text of a chat template: its special tokens are tokens, unless the folder's files say otherwise."""
    backend, plain = parts.backend, parts.backend.encode_special_tokens
    backend.encode_special_tokens = bool(parts.config.get("split_special_tokens"))
    try:
        with text_errors():
            return backend.encode(text, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = plain


def _opening(prompt: str, lead: str) -> str | None:
    """The end of `prompt` that is missing in `lead`, the text before the answer in a finished dialogue."""
    if lead.startswith(prompt):
        return ""
    common = os.path.commonprefix([prompt, lead])
    if common.rfind("<") > common.rfind(">"):  # two tags that begin with the same letters
        common = common[: common.rfind("<")]
    return None if lead[len(common) :].strip() else prompt[len(common) :]


def continuation(answer: str, opening: str, sampled: bool) -> str:
    """The part of an answer that the model writes after a generation prompt that ends with `opening`.

    sampled: a model wrote the answer after such a prompt, so the answer need not be complete.
    Raises: InputError if the answer does not fit after the opening.
    """
    begun = opening.strip()
    if begun and answer.lstrip().startswith(begun):
        return answer.lstrip().removeprefix(begun).removeprefix(opening[len(opening.rstrip()) :])
    names = {True: set(), False: set()}
    for slash, name in TAG.findall(opening):
        names[bool(slash)].add(name)
    unclosed = names[False] - names[True]
    if sampled or (not TAG.sub("", opening).strip() and all(f"</{name}>" in answer for name in unclosed)):
        return answer
    raise InputError(
        f"chat template: its generation prompt begins every answer with {shown(begun)}, and this answer neither begins "
        f"so nor goes on from it; begin the answer with {shown(begun)}, or set a variable of the template"
    )


def begun_tag(prompt: str) -> str:
    """The tag that ends a generation prompt, and the white space after it: "<think>\\n"; "" without such a tag."""
    text = prompt.rstrip()
    tag = TAG.fullmatch(text[text.rfind("<") :]) if text.endswith(">") else None
    return prompt[len(text) - len(tag[0]) :] if tag and not tag[1] else ""


def repeats(rest: str, expected: str, tag: str) -> bool:
    """True if `rest` has the tag, or the end of its element, more often than `expected`."""
    name = TAG.match(tag)[2]
    return any(rest.count(text) > expected.count(text) for text in (f"<{name}>", f"</{name}>"))
