"""The columns of a row, and the keys of its turns, that no layout reads.

A column is refused if a widespread format gives it a meaning: to drop it would change the row without a word. All other
columns are listed. They stay in the row, and reward functions can read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from minirlhf.errors import InputError, shown

# A column has a meaning if all its words stand in these three lists, and one of them in the first two: chosen_score.
TEXTS = (  # such a column may repeat a text of the row
    "system instruction input output completion context history query question response resp reply text document "
    "passage summary dialog dialogue conversation message chat generation candidate prefix suffix"
)
MARKS = (  # such a column says more than the texts, even if its word stands in them
    "option choice tool function reasoning think thinking thought rationale cot image video audio name "
    "label score rating rank ranking preference preferred winner vote thumb feedback weight reward mask train "
    "trainable training loss desirable correct accept accepted reject step role parent strength"
)
QUALIFIERS = (
    "prompt chosen rejected better best worse worst safer first second left right a b is human user assistant bot gpt "
    "model ai gold overall sample example good bad pos neg positive negative up down list kto tag call parallel "
    "content extra"
)
WHOLE_NAMES = (
    "kto_tag answers answer_a answer_b answer0 answer1 answer2 answer_0 answer_1 answer_2 instances "
    "prompt chosen rejected std_answer parent_id margins better_response_id safer_response_id "
    "input_ids attention_mask chat_template_kwargs tool_call_id a b c d"
)
TURN_KEYS = ("role", "content", "from", "value", "text")
PART_KEYS = ("type", "text", "value")
WEIGHTS = ("weight", "loss_weight", "loss", "train", "trainable", "training")  # of a turn: is it learned?
KNOWN_TURN_KEYS = {*TURN_KEYS, "name", "tool_calls", "tool_call_id", "reasoning_content"}
ANSWER_COLUMNS = ("response", "completion", "output", "answer", "answers", "chosen", "rejected", "messages", "text")
PLACES = ("line", "file")  # of a row: where it comes from
OF_A_WHOLE_ROW = ("name",)  # people name their rows; in a turn the name is the speaker


class Asked(NamedTuple):
    """Columns that the user names, and columns of a source."""

    absent: dict[str, list[str]]  # the option that names columns -> those of them that the source lacks
    names: tuple[str, ...]  # the columns of the source


def check_asked(found: Mapping[str, Asked]) -> None:
    """Raise InputError for a column that the user names and no source has.

    found: source -> its columns. The sources are read with the same options.
    """
    names = list(dict.fromkeys(name for asked in found.values() for name in asked.names))
    files = "file" if len(found) == 1 else "files"
    for option in next(iter(found.values())).absent if found else ():
        if absent := [name for name in next(iter(found.values())).absent[option] if name not in names]:
            raise InputError(
                f"{names_of(found)}: {option}: needed columns of the {files}, got {names_of(absent)}; the {files} "
                f"{'has' if len(found) == 1 else 'have'} {names_of(names) or 'none'}"
            )


class Columns:
    """Collects the columns of all rows of a file that no layout reads."""

    def __init__(self) -> None:
        self.listed: dict[str, None] = {}  # in the order of the file
        self.meant: dict[str, str] = {}  # name -> where it stands first
        self.beside: dict[str, None] = {}  # another reading of the row, or a copy of its texts
        self.used: dict[str, None] = {}  # columns that a layout reads
        self.names: dict[str, None] = {}  # of all columns, and of all keys of turns
        self.turns_after = self.no_inputs = self.more_answers = self.bad = 0  # rows

    def look(self, row: Any, layout: Any, wanted: str | None, found: list[dict], where: str) -> None:
        """Note the columns of a row that its layout does not read, and the turns and inputs that it leaves out.

        Args:
            row:    a `Row` after reading.   found: the canonical rows made of it.
            wanted: the kind that the user asked for; then other answers of the row may stay unread.
        """
        self.used |= {name: None for name in row.read if name in row.columns}
        self.turns_after += row.turns_after
        self.no_inputs += row.no_input
        self.more_answers += row.more_answers
        self.names |= row.inside
        for name in row.inside:
            if name not in row.ignored:
                self.meant.setdefault(name, where) if has_meaning(name) else self.listed.setdefault(name)
        for name, value in row.columns.items():
            if name in row.read:
                self._look_at_turns(value)
            elif is_empty(value) or (name in WEIGHTS and value == 1 and value is not True):
                continue
            elif not has_meaning(name) or name.lower() in OF_A_WHOLE_ROW:
                self.listed.setdefault(name)
            elif (
                name in layout.beside.split("|") or (wanted and name in ANSWER_COLUMNS) or _is_copy(name, value, found)
            ):
                self.beside.setdefault(name)
            else:
                self.meant.setdefault(name, where)

    def _look_at_turns(self, value: object) -> None:
        for turn in value if isinstance(value, list) else [value]:
            if isinstance(turn, dict) and turn.keys() & {"role", "from"}:
                self._list(turn, KNOWN_TURN_KEYS)
                content = turn.get("content", turn.get("value"))
                for part in content if isinstance(content, list) else ():
                    if isinstance(part, dict):
                        self._list(part, {*PART_KEYS, str(part.get("type"))})

    def _list(self, keys: dict, known: set[str]) -> None:
        """Note the keys of a turn or a part that have no meaning. Turns keep their other keys."""
        for name in keys.keys() - known:
            self.names.setdefault(name)
            if not has_meaning(name) and not is_empty(keys[name]):
                self.listed.setdefault(name)

    def asked(self, ignored: tuple[str, ...], renamed: list[str]) -> Asked:
        """The columns that the user names, as far as the rows lack them."""
        absent = {"ignore_columns": ignored, "map": renamed}
        absent = {option: [name for name in names if name not in self.names] for option, names in absent.items()}
        return Asked(absent, tuple(self.names))

    def check(self, path: str) -> None:
        """Raise InputError for a column with a meaning that nothing reads."""
        if left := list(self.meant):
            it = "it" if len(left) == 1 else "them"
            raise InputError(
                f"{path}: {self.meant[left[0]]}: needed only columns that are used as they are meant, got "
                f"{names_of(left)}; remove {it}, or train without {it}: --ignore_columns {','.join(left[:20])}"
            )

    def notes(self, kind: str) -> list[str]:
        """Lines for the user: columns and turns of the file that have no effect."""
        unread = [name for name in (*self.meant, *self.listed) if name not in PLACES]
        notes = [f"not read: {names_of(unread)} (only your own reward functions read columns)"] if unread else []
        if hidden := [name for name in self.listed if name in PLACES]:
            notes.append(f"left out: {names_of(hidden)} (a row has its own line and file under these names)")
        if self.beside:
            notes.append(f"not read: {names_of(self.beside)} (the row has its answer in other columns)")
        if kind == "preference" and "margin" in self.names:
            notes.append("margin: only the training of a reward model reads it")
        if self.bad:
            notes.append(f"{self.bad:,} rows with a bad label are left out")
        if self.no_inputs:
            notes.append(f"{self.no_inputs:,} inputs say that they are empty: they are left out")
        if self.more_answers:
            notes.append(f"{self.more_answers:,} rows have more than two answers: the best and the worst make a pair")
        if self.turns_after:
            notes.append(f"{self.turns_after:,} dialogues go on after the last assistant turn: that part is not used")
        return notes


def _is_copy(name: str, value: object, found: list[dict]) -> bool:
    """True if a text stands in the prompt or an answer of a row, or is a whole dialogue that holds an answer."""
    if not isinstance(value, str) or name == "kto_tag" or not _forms(MARKS).isdisjoint(_words(name)):
        return False
    answers = [row[key].strip() for row in found for key in ("response", "chosen") if key in row]
    texts = [*answers, *(row[key] for row in found for key in ("prompt", "rejected") if key in row)]
    holds = name in ("text", "messages") and any(text and text in value for text in answers)
    return holds or any(value.strip() in text for text in texts)


def names_of(names: Iterable[str]) -> str:
    """The first twenty names, and the number of the others."""
    names = list(names)
    first = [name if name.isprintable() and len(name) <= 60 else shown(name, 60) for name in names[:20]]
    return ", ".join([*first, *([f"and {len(names) - 20:,} more"] if len(names) > 20 else [])])


@cache
def has_meaning(name: str) -> bool:
    """True if a widespread format gives a meaning to a column of this name."""
    if name.lower() in WHOLE_NAMES.split():
        return True
    words, meanings = _words(name), _forms(TEXTS) | _forms(MARKS)
    return not meanings.isdisjoint(words) and meanings | _forms(QUALIFIERS) >= words


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}


@cache
def _forms(words: str) -> set[str]:
    """The words in the singular and in the plural."""
    return {form for word in words.split() for form in (word, f"{word}s", f"{word.removesuffix('y')}ies")}


def is_empty(value: object) -> bool:
    text = value.strip() if isinstance(value, str) else value
    return text is None or (isinstance(text, str | list | dict) and text in ("", "[]", "{}", [], {}))
