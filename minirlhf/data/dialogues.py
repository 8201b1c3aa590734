"""Rows of turns -> ids, and which of these ids are learned.

The chat template renders the turns with all their keys; without a template `render_chat` does. A key counts as read if
the text without it is another text; all other keys are named in `notes`.

train_on "last" learns the last answer. "all_turns" learns every assistant turn except those of weight 0:

- A template with {% generation %} blocks says itself which text is learned, if the blocks hold the end token.
- Else an earlier answer is learned where it stands, if the dialogue has it as the model writes it: after its generation
  prompt, up to its end token. A template may change an answer once turns follow (Qwen3 drops its reasoning). Such an
  answer becomes a row of its own, that ends with it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from minirlhf.data.batches import TURNS, EncodedRow
from minirlhf.data.transcripts import as_turns, encode_parts
from minirlhf.errors import InputError, shown
from minirlhf.text.tool_turns import has_tools, tool_form, with_arguments, without_tools
from minirlhf.text.turns import answer_text, encode_with_offsets, mask_of, render

WEIGHT = "weight"  # key of a turn: 0 for an answer that is not learned
READ_BY_EVERY_TEMPLATE = ("role", "content")
TRIES = 32  # a key that changes no text in so many rows is not read
USED = TRIES + 1
# notes, and how often they apply
CHANGED = "{n} earlier answers are rows of their own: the chat template writes them differently once turns follow"
NOT_FOUND = "{n} earlier answers are not learned: the chat template does not show where they begin and end"
NO_PROMPT = "{n} answers at the beginning of a dialogue are not learned: no prompt leads to them"
NO_TOOLS = "{n} rows have tools, and the chat template has none: schemas, calls and results stand in the turns as text"
NO_ANSWER = "{n} turns of weight 1 are not learned: they are no assistant turns"
COUNTED = (CHANGED, NOT_FOUND, NO_PROMPT, NO_TOOLS, NO_ANSWER)


class Dialogues:
    """Encodes rows of turns, and counts the keys and turns that have no effect.

    train_on: see the top of this module; "all" learns the last answer here, and `everything` adds the other tokens.
    """

    def __init__(self, tokenizer: Any, train_on: str = "last") -> None:
        self.tokenizer, self.train_on = tokenizer, train_on
        self.form = tool_form(tokenizer) if tokenizer.templates else None
        self.tries: dict[tuple[str, str], int] = {}  # (role, key) -> rows in which it changed no text, or USED
        self.counts = Counter()

    def has(self, row: dict, responses: tuple[str, ...]) -> bool:
        """True if the row is read by its turns. Without a template most dialogues are read by their text."""
        if any(f"{key}_parts" in row for key in responses):
            return True
        if row.get(TURNS) is None:  # tables of rows write None into the cells that a row does not have
            return False
        more = row.get("tools") or any(row.get(f"{key}_turns") for key in responses)
        earlier = self.train_on != "last" and any(turn["role"] == "assistant" for turn in row[TURNS])
        return bool(self.tokenizer.templates or more or earlier)

    def encode(self, row: dict, responses: tuple[str, ...], sampled: bool = False) -> list[EncodedRow]:
        """The row as ids. A dialogue whose answers the template changes later becomes several rows.

        Raises: InputError if the template refuses the turns, or no token is learned.
        """
        if any(f"{key}_parts" in row for key in responses):
            if not self.tokenizer.templates:
                return [self._transcript(row, responses)]
            row = {TURNS: [{"role": "user", "content": row["prompt"]}], **row}
            row |= {f"{key}_turns": as_turns(row[f"{key}_parts"]) for key in responses}
        tools = row.get("tools") or None
        answers = [row.get(f"{key}_turns") or [{"role": "assistant", "content": row[key]}] for key in responses]
        parts = self._readable([row[TURNS], *answers], tools)
        turns, *answers = ([{k: v for k, v in turn.items() if k != WEIGHT} for turn in part] for part in parts)
        tools = tools if self.form or not self.tokenizer.templates else None
        for answer in answers or [[]]:
            self._look([*turns, *answer], tools)
        if self.train_on == "all_turns" and answers:
            learned = [self._is_learned(turn) for part in parts for turn in part]
            return self._all_turns(row, turns + answers[0], learned, tools)
        if self.train_on == "all" and any(turn.get(WEIGHT) == 0 for part in parts for turn in part):
            raise InputError("a turn of weight 0 is not to be learned, but train_on all learns it; use all_turns")
        prompt = self.tokenizer.encode_turns(turns, (), tools=tools)[0]
        encoded = []
        for part, answer in zip(parts[1:], answers, strict=True):
            learned = [self._is_learned(turn) for turn in part]
            encoded.append(self._answer(turns, prompt, answer, learned, sampled, tools))
        whole = all(all(mask) for _, mask in encoded)
        masks = None if whole else tuple(mask for _, mask in encoded)
        return [EncodedRow(row, prompt, tuple(ids for ids, _ in encoded), masks)]

    def _transcript(self, row: dict, responses: tuple[str, ...]) -> EncodedRow:
        encoded = [encode_parts(self.tokenizer, row[f"{key}_parts"]) for key in responses]
        (prompt,) = self.tokenizer.encode_prompts([row["prompt"]])
        return EncodedRow(row, prompt, tuple(ids for ids, _ in encoded), tuple(mask for _, mask in encoded))

    def _answer(
        self, turns: list[dict], prompt: list[int], answer: list[dict], learned: list[bool], sampled: bool, tools: Any
    ) -> tuple[list[int], list[bool]]:
        """-> (ids of an answer of one or more turns, True for each id that is learned)."""
        if not any(learned):
            raise InputError(f"needed an answer to learn, got {WEIGHT} 0 on all its turns; drop the row")
        before, wanted = [*turns, *answer[:-1]], [len(turns) + k for k, is_learned in enumerate(learned) if is_learned]
        ids, (last,) = self.tokenizer.encode_turns(before, [answer[-1]], sampled, tools)
        if ids[: len(prompt)] != prompt:
            raise InputError("chat template: it renders the prompt differently once several turns answer it; join them")
        mask, _ = self._in_place(before, [k for k in wanted if k < len(before)], tools)
        return [*ids[len(prompt) :], *last], [*mask[len(prompt) :], *[learned[-1]] * len(last)]

    def _all_turns(self, row: dict, turns: list[dict], learned: list[bool], tools: Any) -> list[EncodedRow]:
        """A dialogue with every learned turn, where it stands or as a row of its own."""
        wanted = [k for k, is_learned in enumerate(learned) if is_learned]
        if not wanted:
            raise InputError(f"needed an assistant turn to learn, got {WEIGHT} 0 on all of them; drop the row")
        if marked := self._marked(turns, wanted, tools):
            return [_up_to_the_last(row, *marked)]
        before, answer = turns[: wanted[-1]], turns[wanted[-1]]
        ids, (last,) = self.tokenizer.encode_turns(before, [answer], tools=tools)
        mask, others = self._in_place(before, wanted[:-1], tools)
        rows = [self._row_of_its_own(row, turns, k, tools) for k in others]
        return [*filter(None, rows), _up_to_the_last(row, [*ids, *last], [*mask, *[True] * len(last)])]

    def _marked(self, turns: list[dict], wanted: list[int], tools: Any) -> tuple[list[int], list[bool]] | None:
        """-> (ids, True for each id that is learned), by the template's {% generation %} blocks.

        None unless each answer has a block, and the last block an end token: a model must learn to stop.
        """
        text, spans = render(self.tokenizer, turns, False, tools, None)
        answers = [k for k, turn in enumerate(turns) if turn["role"] == "assistant"]
        if spans is None or len(spans) != len(answers) or any(start == end for start, end in spans):
            return None
        ids, offsets = encode_with_offsets(self.tokenizer, text)
        spans = [span for k, span in zip(answers, spans, strict=True) if k in wanted]
        in_last = zip(ids, mask_of(offsets, spans[-1:]), strict=True)
        stops = any(inside and token in self.tokenizer.eos_ids for token, inside in in_last)
        return (ids, mask_of(offsets, spans)) if stops else None

    def _in_place(self, turns: list[dict], wanted: list[int], tools: Any) -> tuple[list[bool], list[int]]:
        """-> (for each id of the prompt made of these turns, whether it belongs to a wanted answer; the answers that
        the prompt has in another form than the model writes).
        """
        text, spans, others = self.tokenizer.apply_chat_template(turns, True, tools), [], []
        for k in wanted:
            try:
                before = self.tokenizer.apply_chat_template(turns[:k], True, tools)
                answer = before + answer_text(self.tokenizer, turns[:k], before, turns[k], tools=tools)[0]
            except InputError:  # the template does not show the answer
                answer = None
            if answer and text.startswith(answer):
                spans.append((len(before), len(answer)))
            else:
                others.append(k)
        return mask_of(encode_with_offsets(self.tokenizer, text)[1], spans), others

    def _row_of_its_own(self, row: dict, turns: list[dict], k: int, tools: Any) -> EncodedRow | None:
        if not k:
            self.counts[NO_PROMPT] += 1
            return None
        try:
            prompt, responses = self.tokenizer.encode_turns(turns[:k], [turns[k]], tools=tools)
        except InputError:
            self.counts[NOT_FOUND] += 1
            return None
        self.counts[CHANGED] += 1
        return EncodedRow(row, prompt, tuple(responses))

    def _is_learned(self, turn: dict) -> bool:
        """True for an assistant turn without the weight 0.   Raises: InputError for a weight other than 0 and 1."""
        weight = 1 if turn.get(WEIGHT) is None else turn[WEIGHT]
        if weight not in (0, 1):
            raise InputError(f"{WEIGHT}: needed 0 or 1, got {shown(weight)}; a turn is learned whole or not at all")
        self.counts[NO_ANSWER] += turn["role"] != "assistant" and turn.get(WEIGHT) == 1
        return turn["role"] == "assistant" and weight == 1

    def notes(self) -> list[str]:
        """Lines for the user: keys and turns without an effect."""
        layout = "chat template" if self.tokenizer.templates else "plain layout"
        names = [f"{key} (of {role} turns)" for (role, key), tries in self.tries.items() if tries != USED]
        notes = [f"not read by the {layout}: {', '.join(names)}"] if names else []
        return notes + [words.format(n=f"{self.counts[words]:,}") for words in COUNTED if self.counts[words]]

    def _readable(self, parts: list[list[dict]], tools: list | None) -> list[list[dict]]:
        """The turns in the form that the template reads. The first part begins the dialogue."""
        if not self.tokenizer.templates:
            return parts
        if self.form:
            return [[with_arguments(turn, self.form) for turn in part] for part in parts]
        self.counts[NO_TOOLS] += bool(tools) or any(map(has_tools, parts))
        return [without_tools(part, tools if i == 0 else None) for i, part in enumerate(parts)]

    def _look(self, turns: list[dict], tools: list | None) -> None:
        """Find out which keys of these turns change the text."""
        keys = dict.fromkeys((turn["role"], key) for turn in turns for key, value in turn.items() if not _empty(value))
        open_keys = [key for key in keys if key[1] not in READ_BY_EVERY_TEMPLATE and self.tries.get(key, 0) < TRIES]
        if not open_keys:
            return
        whole = self.tokenizer.apply_chat_template(turns, False, tools)
        for role, key in open_keys:
            without = [{k: v for k, v in turn.items() if (turn["role"], k) != (role, key)} for turn in turns]
            try:
                used = self.tokenizer.apply_chat_template(without, False, tools) != whole
            except InputError:  # the template needs the key
                used = True
            self.tries[role, key] = USED if used else self.tries.get((role, key), 0) + 1


def _up_to_the_last(row: dict, ids: list[int], mask: list[bool]) -> EncodedRow:
    """The ids up to the last learned token. The first token is never learned: no token predicts it."""
    start, end = max(1, mask.index(True)), len(mask) - mask[::-1].index(True)
    learned = mask[start:end]
    return EncodedRow(row, ids[:start], (ids[start:end],), None if all(learned) else (learned,))


def everything(row: EncodedRow) -> EncodedRow:
    """The row of SFT that learns every token but the first."""
    return EncodedRow(row.source, row.prompt[:1], ([*row.prompt[1:], *row.responses[0]],))


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}
