"""The columns of a row, and the keys of its turns, that no layout reads.

A column is refused if a widespread format gives it a meaning: to drop it would change the row without a word. All other
columns are listed. They stay in the row, and reward functions can read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from minirlhf.errors import InputError, shown

# A column has a meaning if all its words stand in these two lists, and one of them in the first: chosen_score.
MEANINGS = (
    "system instruction input output completion context history query question response reply text document passage "
    "summary dialog dialogue conversation message chat generation candidate option choice prefix suffix "
    "tool function reasoning think thinking thought rationale image video audio name "
    "label score rating rank ranking preference preferred winner vote thumb feedback weight reward mask train "
    "trainable training loss desirable step"
)
QUALIFIERS = (
    "prompt chosen rejected better best worse worst safer first second left right a b is human user assistant bot gpt "
    "model ai gold overall sample example good bad up down list kto tag call parallel content extra"
)
WHOLE_NAMES = (
    "kto_tag is_correct correct answers answer_a answer_b answer0 answer1 answer2 answer_0 answer_1 answer_2 instances "
    "margins better_response_id safer_response_id input_ids attention_mask chat_template_kwargs tool_call_id cot"
)
TURN_KEYS = ("role", "content", "from", "value")
PART_KEYS = ("type", "text", "value")
WEIGHTS = ("weight", "loss_weight")
OF_A_WHOLE_ROW = ("name",)  # people name their rows; in a turn the name is the speaker


class Extra(NamedTuple):
    """A key that no layout reads."""

    name: str
    has_meaning: bool


class Columns:
    """Collects the extra keys of all rows of a file."""

    def __init__(self) -> None:
        self.listed: dict[str, None] = {}  # in the order of the file
        self.meant: dict[str, str] = {}  # name -> where it stands first
        self.several_answers = self.turns_after = 0  # rows

    def look(self, row: dict, read: tuple[str, ...], kind: str, where: str) -> None:
        """Note the extra keys of a row.   read: the keys that its layout reads."""
        dialogue = next((row[key] for key in read if key in ("messages", "conversations")), None)
        if kind == "sft" and isinstance(dialogue, list) and dialogue:
            answers = [_is_assistant(turn) for turn in dialogue]
            self.several_answers += sum(answers) > 1
            self.turns_after += not answers[-1]
        for extra in extras(row, read, kind):
            if extra.has_meaning:
                self.meant.setdefault(extra.name, where)
            else:
                self.listed.setdefault(extra.name)

    def check(self, path: str, ignored: tuple[str, ...]) -> None:
        """Raise InputError for a column with a meaning, unless it is ignored, and for an absent ignored column."""
        if absent := [name for name in ignored if name not in self.meant and name not in self.listed]:
            raise InputError(
                f"{path}: ignore_columns: needed columns that nothing reads, got {', '.join(absent)}; the file has "
                f"{names_of([*self.meant, *self.listed]) or 'none'}"
            )
        if left := [name for name in self.meant if name not in ignored]:
            it = "it" if len(left) == 1 else "them"
            raise InputError(
                f"{path}: {self.meant[left[0]]}: needed only columns that are used as they are meant, got "
                f"{names_of(left)}; remove {it}, or train without {it}: --ignore_columns {','.join(left[:20])}"
            )

    def notes(self, kind: str) -> list[str]:
        """Lines for the user: columns and turns of the file that have no effect."""
        listed = [name for name in self.listed if not (name == "margin" and kind == "preference")]
        unread = [*self.meant, *listed]
        notes = [f"not read: {names_of(unread)} (only your own reward functions read columns)"] if unread else []
        if kind == "preference" and "margin" in self.listed:
            notes.append("margin: only the training of a reward model reads it")
        if self.several_answers:
            notes.append(f"{self.several_answers:,} dialogues have several assistant turns: only the last is learned")
        if self.turns_after:
            notes.append(f"{self.turns_after:,} dialogues go on after the last assistant turn: that part is not used")
        return notes


def names_of(names: Iterable[str]) -> str:
    """The first twenty names, and the number of the others."""
    names = list(names)
    first = [name if name.isprintable() and len(name) <= 60 else shown(name, 60) for name in names[:20]]
    return ", ".join([*first, *([f"and {len(names) - 20:,} more"] if len(names) > 20 else [])])


def extras(row: dict, read: tuple[str, ...], kind: str = "") -> Iterator[Extra]:
    """The keys of a row, its turns and their parts, that no layout reads. A key without a value is absent."""
    for name, value in row.items():
        if name not in read and not _is_empty(value) and not (name in WEIGHTS and value == 1):
            yield Extra(name, has_meaning(name) and name.lower() not in OF_A_WHOLE_ROW)
    for key in read:
        turns = row[key] if isinstance(row[key], list) else [row[key]]
        turns = [turn for turn in turns if isinstance(turn, dict)]
        last = max((number for number, turn in enumerate(turns) if _is_assistant(turn)), default=-1)
        for number, turn in enumerate(turns):
            answers = number == last and (
                key in ("chosen", "rejected", "response") or kind == "sft" and key != "prompt"
            )
            yield from _extras_of_turn(turn, answers)


def _extras_of_turn(turn: dict, answers: bool) -> Iterator[Extra]:
    """answers: the turn is learned."""
    for name, value in turn.items():
        # every answer is learned whole, and no other turn is learned; an earlier answer may ask to be learned
        as_it_is = value == 1 if answers else value == 0 or (value == 1 and _is_assistant(turn))
        if name not in TURN_KEYS and not _is_empty(value) and not (name in WEIGHTS and as_it_is):
            yield Extra(name, has_meaning(name))
    content = turn.get("content", turn.get("value"))
    for part in content if isinstance(content, list) else ():
        for name, value in part.items() if isinstance(part, dict) else ():
            if name not in PART_KEYS and not _is_empty(value):
                yield Extra(name, has_meaning(name))


@cache
def has_meaning(name: str) -> bool:
    """True if a widespread format gives a meaning to a column of this name."""
    if name.lower() in WHOLE_NAMES.split():
        return True
    words = [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)]
    meanings, others = ({*known.split(), *(f"{word}s" for word in known.split())} for known in (MEANINGS, QUALIFIERS))
    return not meanings.isdisjoint(words) and meanings | others >= set(words)


def _is_empty(value: object) -> bool:
    text = value.strip() if isinstance(value, str) else value
    return text is None or (isinstance(text, str | list | dict) and text in ("", "[]", "{}", [], {}))


def _is_assistant(turn: object) -> bool:
    return isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("assistant", "gpt")
