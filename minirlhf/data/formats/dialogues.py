"""Dialogues that are text with marks, nested objects, or pairs in a history -> turns."""

from __future__ import annotations

import re

from minirlhf.data.columns import is_empty
from minirlhf.data.formats.turns import alternating, got, parsed, turns_of
from minirlhf.errors import InputError

ROLES = {"Human": "user", "Assistant": "assistant"}
NO_INPUT = re.compile(
    r"\W*(?:no[\s_-]*input(?:\s(?:is\s)?(?:needed|required|necessary|provided|given))?|[无無]需?\s*[输輸]入|没有输入)\W*",
    re.IGNORECASE,
)


def hh_turns(text: str, key: str) -> list[dict]:
    """Turns of an HH-RLHF dialogue. "Human:" begins a turn only after a blank line; elsewhere it is text."""
    head, *pieces = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.lstrip())
    if head.strip() or not pieces:
        raise InputError(f"{key}: needed a dialogue that begins with '\\n\\nHuman:', or a prompt key; got {got(text)}")
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    return [{"role": ROLES[role], "content": content.strip()} for role, content in pairs]


def is_hh(text: str) -> bool:
    return re.match(r"\s*\n\n(Human|Assistant):", "\n\n" + text) is not None


def marked_prompt(text: str) -> list[dict] | None:
    """Turns of a prompt "Human: ... Assistant:", or None for other texts.

    The space before the last mark (a blank line, a newline or a space) stands before the other marks too. If the
    speakers do not take turns then, the marks inside are text.
    """
    stripped = text.strip()
    if not (stripped.startswith("Human:") and stripped.endswith("Assistant:")):
        return None
    space = re.search(r"(\n\n|\n|\s|)\s*Assistant:$", stripped).group(1)
    if space == "\n\n":
        return hh_turns(stripped, "prompt")[:-1]
    pieces = re.split(rf"{space or ' '}[ \t]*(Human|Assistant):", (space or " ") + stripped)[1:]
    roles = pieces[::2]
    if roles != (["Human", "Assistant"] * len(roles))[: len(roles)] or len(roles) % 2:
        return [{"role": "user", "content": stripped.removeprefix("Human:").removesuffix("Assistant:").strip()}]
    return [{"role": ROLES[role], "content": said.strip()} for role, said in zip(roles, pieces[1::2], strict=True)][:-1]


def history_turns(value: object) -> list[dict]:
    """Earlier turns: [[question, answer], ...], a list of texts, or a list of turns."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value, "history")
    if not isinstance(value, list):
        raise InputError(f"history: needed a list of [question, answer] pairs, got {got(value)}")
    if any(isinstance(pair, dict) for pair in value):
        return turns_of(value, "history")
    texts = [text for pair in value for text in (pair if isinstance(pair, list) else [pair])]
    whole = all(isinstance(pair, str) or (isinstance(pair, list) and len(pair) == 2) for pair in value)
    if not whole or len(texts) % 2 or not all(isinstance(text, str) for text in texts):
        raise InputError(f"history: needed pairs of a question and its answer, got {got(value)}")
    return [turn for turn in alternating(texts) if turn["content"]]


def is_no_input(text: object) -> bool:
    """True for an empty input, and for the words that people write instead."""
    return is_empty(text) or (isinstance(text, str) and NO_INPUT.fullmatch(text) is not None)


# ---- MOSS ----

MOSS_MARKS = {  # key -> its mark at the beginning and at the end
    "Human": ("Human", "eoh"),
    "Inner Thoughts": ("Inner Thoughts", "eot"),
    "Commands": ("Commands", "eoc"),
    "Tool Responses": ("Results", "eor"),
    "MOSS": ("MOSS", "eom"),
}


def moss_turns(chat: object, instruction: object, count: object) -> list[dict]:
    """A MOSS conversation, {"turn_1": {"Human": text, ..., "MOSS": text}, ...}, without its marks.

    Inner thoughts become reasoning_content, commands become tool_calls, and tool responses become a tool turn. So a
    turn with commands has two assistant turns: the calls, and the answer.
    """
    names = [f"turn_{number}" for number in range(1, len(chat) + 1)] if isinstance(chat, dict) else None
    if not names or set(names) != chat.keys():
        raise InputError(f"chat: needed turns turn_1, turn_2, ..., got {got(chat)}")
    if count is not None and count != len(names):
        raise InputError(f"num_turns: needed the number of turns in chat, {len(names)}, got {got(count)}")
    if instruction is not None and not isinstance(instruction, str):
        raise InputError(f"meta_instruction: needed text, got {got(instruction)}")
    parameters = dict(re.findall(r"API: (\w+)\((\w+)\)", instruction or ""))
    turns = [{"role": "system", "content": instruction.strip()}] if instruction and instruction.strip() else []
    for name in names:
        turns += _moss_turn(chat[name], f"chat: {name}", parameters)
    return turns


def _moss_turn(turn: object, where: str, parameters: dict[str, str]) -> list[dict]:
    if not isinstance(turn, dict) or not {"Human", "MOSS"} <= turn.keys() <= MOSS_MARKS.keys():
        raise InputError(f"{where}: needed the keys {', '.join(MOSS_MARKS)}, got {got(turn)}")
    texts = {}
    for key, (mark, end) in MOSS_MARKS.items():
        if not isinstance(text := turn.get(key) or "", str):
            raise InputError(f"{where}: {key}: needed text, got {got(text)}")
        text = text.strip().removeprefix(f"<|{mark}|>:").removesuffix(f"<{end}>").strip()
        texts[key] = "" if text in ("None", "") and key not in ("Human", "MOSS") else text
    question, thoughts, commands, results, answer = texts.values()
    thought = {"reasoning_content": thoughts} if thoughts else {}
    user, last = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    if not commands and not results:
        return [user, last | thought]
    calls = {"tool_calls": _moss_calls(commands, parameters)} if commands else {}
    return [user, {"role": "assistant", "content": "", **thought, **calls}, {"role": "tool", "content": results}, last]


def _moss_calls(commands: str, parameters: dict[str, str]) -> list[dict]:
    """'Search("a"), Calculate("1+1")' -> calls. The meta instruction names the parameter of a command."""
    calls = []
    for command in re.split(r",\s*(?=\w+\(|None$)", commands):
        match = re.fullmatch(r"(\w+)\((.*)\)", command.strip(), re.DOTALL)
        name, text = match.groups() if match else ("", command.strip())
        if not match and text == "None":
            continue
        if match and len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
            text = text[1:-1]
        arguments = {parameters.get(name, "input"): text}
        calls.append({"type": "function", "function": {"name": name or "Commands", "arguments": arguments}})
    return calls
