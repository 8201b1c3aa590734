"""Answers that can be checked: find the final answer in a text, compare two answers, and a reward for right answers."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from minirlhf.errors import InputError, shown

NUMBER = r"(?:(?<![A-Za-z0-9_.)])-)?(?<![A-Za-z0-9_.])\d+(?:,\d{3}(?!\d))*(?:\.\d+)?(?:/\d+(?!\d|[./]))?"
MARK = re.compile(r"####[ \t]*([^\n]+)")  # of GSM8K
PHRASE = re.compile(r"(?:answer\s+is|answer\s*:|答案\s*(?:是|为|:))\s*:?\s*([^\n]+)", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?:\s|$)|[。]")
LONGEST = 100  # digits of a number; a longer number is compared as text


def final_answer(text: str) -> str | None:
    """The answer that a text gives at its end; None if it gives none.

    It takes the first of these that the text has, and of several the last: a line `#### 72`, `\\boxed{72}`, "the answer
    is 72" (or "Answer: 72", "答案是72"), a number.
    """
    marked = marked_answer(text)
    numbers = [] if marked else re.findall(NUMBER, _plain(text))
    return marked or (numbers[-1] if numbers else None)


def marked_answer(text: str) -> str | None:
    """As `final_answer`, but a number without a mark is no answer."""
    text = _plain(text)
    if marks := MARK.findall(text):
        return _trimmed(marks[-1]) or None
    if (boxed := _boxed(text)) is not None:
        return _trimmed(boxed) or None
    if phrases := PHRASE.findall(text):
        return _trimmed(SENTENCE_END.split(phrases[-1])[0]) or None
    return None


def same_answer(a: str, b: str) -> bool:
    """True if two answers are the same number or, without capitals and spaces, the same text.

    1,000 is 1000, 0.50 is 1/2, $72 and "72 apples" are 72: next to a number, a text with exactly one number counts as
    this number.
    """
    a, b = _trimmed(_plain(a)), _trimmed(_plain(b))
    numbers = [_number(a), _number(b)]
    if numbers.count(None) == 1:
        numbers = [_only_number(text) for text in (a, b)]
    if None in numbers:
        return "".join(a.casefold().split()) == "".join(b.casefold().split())
    return numbers[0] == numbers[1]


def is_right(completion: str, answer: object) -> bool:
    """True if a completion ends with the answer of its row: a number, or a text that may hold its own mark."""
    wanted = marked_answer(str(answer)) or str(answer)
    found = marked_answer(completion)
    if found is None:
        found = final_answer(completion) if _number(_trimmed(_plain(wanted))) is not None else completion
    return found is not None and same_answer(found, wanted)


def exact_match(prompts: list[str], completions: list[str], rows: list[dict]) -> list[float | None]:
    """The reward 1 for a right answer and 0 for a wrong answer. None if the row has no answer."""
    answers = [row.get("answer") for row in rows]
    return [
        None if answer is None else float(is_right(text, answer))
        for text, answer in zip(completions, answers, strict=True)
    ]


def check_answers(rows: list[dict]) -> None:
    """Raise InputError unless every row has an answer to check: text or a number under "answer"."""
    for row in rows:
        answer = row.get("answer")
        if not isinstance(answer, str | int | float) or isinstance(answer, bool) or not str(answer).strip():
            where = f"{row.get('file', '')} line {row['line']}".strip() if "line" in row else shown(row["prompt"], 40)
            raise InputError(
                f'exact_match: {where}: needed text or a number under "answer", got {shown(answer)}; add the answers, '
                "or choose another reward"
            )


def _plain(text: str) -> str:
    """Letters and digits of one width, `-` for every minus, and no markup of bold text or dollars."""
    text = unicodedata.normalize("NFKC", text).translate({0x2212: "-", 0x2013: "-"})
    return re.sub(r"\*\*|\\[,!;]|\\\$|\$(?=-?\d)|\\text", "", text).replace("\\left", "").replace("\\right", "")


def _trimmed(text: str) -> str:
    return text.strip().strip("*$\"'` ").rstrip(".。!").strip()


def _boxed(text: str) -> str | None:
    """The content of the last \\boxed{...}, whose braces may hold further braces."""
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[start + 7 : i]
    return None


def _number(text: str) -> Fraction | None:
    """The value of a text that is a number: 1,000 or -3.5 or 1/2 or \\frac{1}{2} or 50%."""
    text = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    text = re.sub(r"\\?%$", "", text.removeprefix("+")).strip()
    if len(text) > LONGEST or not re.fullmatch(r"-?(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d*)?(?:/\d+)?", text):
        return None
    try:
        whole, _, below = text.replace(",", "").partition("/")
        return Fraction(whole) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _only_number(text: str) -> Fraction | None:
    """The value of a number, or of the only number in a text."""
    found = re.findall(NUMBER, text)
    return _number(found[0]) if _number(text) is None and len(found) == 1 else _number(text)
