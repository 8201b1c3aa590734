"""The ways to write a row, as a table.

A layout has slots. A slot names the columns that may fill it: "prompt|instruction" is filled by either. The first
layout of the table whose slots are all filled reads the row; a function of converters.py makes canonical rows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from minirlhf.data.formats.converters import (
    DIALOGUE,
    LIST,
    answer_in_steps,
    answer_last,
    answers_inside,
    dialogue_and_answers,
    judged_pair,
    labelled,
    labelled_text,
    moss,
    prompt_alone,
    prompt_and_answers,
    question_and_answer,
    ranked,
    score_keys,
    scored_pair,
    seed_tasks,
    text_alone,
    transcripts,
)
from minirlhf.data.formats.labels import pair_of
from minirlhf.data.formats.row import Row
from minirlhf.data.formats.turns import turns_of
from minirlhf.data.transcripts import is_transcript
from minirlhf.errors import InputError

PROMPT = "prompt|instruction|question|query"
RESPONSE = "response|completion|output|chosen"
CHOSEN, REJECTED = "chosen|response_chosen|chosen_response", "rejected|response_rejected|rejected_response"
LABEL = "label|kto_tag|thumbs|thumb|feedback|desirable|is_desirable|is_good|good|liked|is_correct|correct"
VERDICT = "preference|preferred|winner|better|better_response_id|better_answer|better_response|choice|label"
SEVERAL = "answers|responses|completions|outputs|candidates|generations"
SCORES = "scores|rewards|ratings|ranks"  # a "ranking" may be an order of the answers: nobody can tell
COPIES = "text|messages|response|completion|output|answer|answers"  # another reading of a pair


def _has_objects(row: Row, keys: tuple[str, ...]) -> bool:
    value = row.columns[keys[-1]]
    return isinstance(value, list) and value != [] and all(isinstance(each, dict) for each in value)


def _is_moss(row: Row, keys: tuple[str, ...]) -> bool:
    return isinstance(row.columns["chat"], dict)


def _are_transcripts(row: Row, keys: tuple[str, ...]) -> bool:
    return all(is_transcript(row.columns[key]) for key in keys[1:])


def _has_steps(row: Row, keys: tuple[str, ...]) -> bool:
    return isinstance(row.columns[keys[1]], list)


def _has_pair(row: Row, keys: tuple[str, ...]) -> bool:
    pair = pair_of(row.columns)
    return pair is not None and (len(keys) > 1) != pair[0].lower().startswith("conversation")


def _has_scored_pair(row: Row, keys: tuple[str, ...]) -> bool:
    return bool(score_keys(row))


def _has_dialogue_texts(row: Row, keys: tuple[str, ...]) -> bool:
    return isinstance(row.columns["chosen"], str)


def _asks_last(row: Row, keys: tuple[str, ...]) -> bool:
    """The dialogue has no assistant turn, or it is a bare list of texts that ends with the user."""
    value = row.columns[keys[0]]
    if keys[0] == LIST and isinstance(value, list) and value and all(isinstance(text, str) for text in value):
        return len(value) % 2 == 1
    try:
        return bool(value) and not any(turn["role"] == "assistant" for turn in turns_of(value, keys[0], row.ignored))
    except InputError:
        return False


@cache
def filling(slot: str) -> tuple[str, ...]:
    """The columns that may fill a slot."""
    return tuple(slot.split("|"))


class Layout(NamedTuple):
    """A way to write a row."""

    kind: str  # "sft", "preference", "unpaired", "steps", "prompt" or "text"
    slots: tuple[str, ...]  # the columns that must be there
    convert: Callable[[Row, tuple[str, ...]], dict | list[dict]]  # (row, the column of each slot) -> canonical rows
    words: str = ""  # a name to print instead of the columns
    applies: Callable[[Row, tuple[str, ...]], bool] = lambda row, keys: True
    beside: str = ""  # columns that hold another reading of the row; they are listed
    other: str = ""  # how to choose another reading

    def keys(self, row: Row) -> tuple[str, ...] | None:
        """The column that fills each slot, or None if the layout does not fit."""
        filled = []
        for slot in self.slots:
            name = next((name for name in filling(slot) if name in row.columns and name not in filled), None)
            if name is None:
                return None
            filled.append(name)
        return tuple(filled) if self.applies(row, tuple(filled)) else None


ALONE = "--as prompts takes the prompts alone"
LEARNT = f"{ALONE}; --as sft learns the answers"
LAYOUTS = (  # the first row that fits is taken
    Layout("steps", (PROMPT, "steps|completions", "labels"), answer_in_steps, applies=_has_steps),
    Layout("sft", (PROMPT, "turns"), transcripts, "transcripts", _are_transcripts, beside="step|completion|score"),
    Layout("preference", (PROMPT, CHOSEN, REJECTED), transcripts, "pairs of transcripts", _are_transcripts),
    Layout("preference", (PROMPT, SEVERAL, SCORES), ranked),
    Layout("preference", (PROMPT, SEVERAL), ranked, "answers with scores", _has_objects),
    Layout("preference", (PROMPT, VERDICT), judged_pair, "two answers and a verdict", _has_pair),
    Layout("preference", (VERDICT,), judged_pair, "two dialogues and a verdict", _has_pair),
    Layout("preference", (PROMPT,), scored_pair, "two answers with scores", _has_scored_pair),
    Layout("preference", (PROMPT, CHOSEN, REJECTED), prompt_and_answers, beside=COPIES),
    Layout("preference", (PROMPT, "response", REJECTED), prompt_and_answers),
    Layout("preference", (DIALOGUE, CHOSEN, REJECTED), dialogue_and_answers, beside=COPIES),
    Layout("preference", ("chosen", "rejected"), answers_inside, "HH-RLHF dialogues", _has_dialogue_texts),
    Layout("preference", ("chosen", "rejected"), answers_inside),
    Layout("sft", ("chat",), moss, "MOSS conversations", _is_moss),
    Layout("unpaired", (DIALOGUE, LABEL), labelled),
    Layout("unpaired", (PROMPT, RESPONSE, LABEL), labelled),
    Layout("unpaired", ("question|instruction|query", "answer", LABEL), labelled),
    Layout("prompt", (DIALOGUE,), prompt_alone, "dialogues that end with the user", _asks_last),
    Layout("sft", (DIALOGUE,), answer_last),
    Layout("sft", ("instruction", "instances"), seed_tasks),
    Layout("sft", (PROMPT, RESPONSE), prompt_and_answers),
    Layout("sft", ("input", RESPONSE + "|target"), prompt_and_answers),
    Layout("sft", ("problem|question|instruction|query", "solution"), prompt_and_answers, other=ALONE),
    Layout("sft", ("question|instruction|query", "answer"), question_and_answer, other=ALONE),
    Layout("prompt", ("question", "std_answer"), prompt_alone, other="--as sft learns std_answer"),
    Layout("prompt", (PROMPT,), prompt_alone),
    Layout("prompt", ("problem",), prompt_alone),
    Layout("sft", (PROMPT + "|problem", "std_answer|answer"), question_and_answer),  # --as sft
    Layout("unpaired", ("text", LABEL), labelled_text),
    Layout("text", ("text",), text_alone, other="--as prompts reads each text as a prompt"),
)
