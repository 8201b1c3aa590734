"""From a row of each layout to its canonical rows.

Each public function makes canonical rows of (row, keys); keys: the column that fills each slot of the layout, in the
order of the slots in layouts.py. Beside its slots a function reads the optional columns of `Row`: system, history,
input, context, tools, margin.
"""

from __future__ import annotations

import re

from minirlhf.data.columns import is_empty, names_of
from minirlhf.data.formats import dialogues
from minirlhf.data.formats.labels import label_of, number, pair_of, ranked_pairs, step_label, verdict_of
from minirlhf.data.formats.row import Row
from minirlhf.data.formats.turns import got, turns_of
from minirlhf.data.transcripts import parts_of, text_of
from minirlhf.errors import InputError

LIST = "a list of turns"  # the column of a row that is a list, not an object
DIALOGUE = "messages|conversations|conversation|dialog|dialogue|chat|" + LIST
FINAL = re.compile(r"^####[ \t]*([-+]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?)\s*\Z", re.MULTILINE)


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def _answer(row: Row, name: str) -> list[dict]:
    """The turns of an answer, from a text or from one or more turns."""
    value = row.take(name)
    if isinstance(value, str):
        return dialogues.hh_turns(value, name) if dialogues.is_hh(value) else assistant(value)
    return row.turns(name)


def _without_prompt(turns: list[dict], prompt: str | list[dict], name: str) -> list[dict]:
    """The turns of an answer. A whole dialogue must begin with the prompt."""
    ask = max((number for number, turn in enumerate(turns) if turn["role"] in ("user", "system")), default=-1)
    head, answer = turns[: ask + 1], turns[ask + 1 :]
    expected = user(prompt) if isinstance(prompt, str) else prompt
    expected = expected[len(expected) - len(head) :] if expected and expected[0]["role"] == "system" else expected
    if head and not (len(head) == len(expected) and all(map(_is_same, head, expected))):
        raise InputError(f"{name}: needed an answer, or a dialogue that begins with the prompt; got other turns")
    if answer and answer[0]["role"] != "assistant":
        raise InputError(f"{name}: needed an assistant turn first, got a {answer[0]['role']} turn")
    return answer


def _is_same(turn: dict, expected: dict) -> bool:
    """True if nothing is lost with the turn."""
    return turn["content"].strip() == expected["content"].strip() and {**expected, **turn, "content": ""} == {
        **expected,
        "content": "",
    }


def prompt_and_answers(row: Row, keys: tuple[str, ...]) -> dict:
    """The first key holds the prompt, each further key an answer: text, turns, or the whole dialogue."""
    prompt = row.prompt(keys[0])
    answers = [_without_prompt(_answer(row, name), prompt, name) for name in keys[1:]]
    if len(keys) == 2:
        return row.build(prompt, response=answers[0]) | checkable(row, keys[1])
    return row.build(prompt, chosen=answers[0], rejected=answers[1]) | row.margin()


def checkable(row: Row, answer: str) -> dict:
    """{"answer": number}: the final answer of GSM8K, a last line "#### 1,072". "####" is also a heading in Markdown."""
    text = row.columns.get(answer) if answer == "answer" or "answer" not in row.columns else None
    final = FINAL.search(text) if isinstance(text, str) else None
    return {"answer": final[1].replace(",", "")} if final else {}


def question_and_answer(row: Row, keys: tuple[str, ...]) -> dict:
    found = prompt_and_answers(row, keys)
    return {"answer": row.columns[keys[1]], **found}


def prompt_alone(row: Row, keys: tuple[str, ...]) -> dict:
    """A prompt, with a final answer to check if the row has it."""
    if keys[0] in DIALOGUE.split("|"):
        return row.build(row.with_beginning(_dialogue(row, keys[0])))
    found = row.build(row.prompt(keys[0]))
    reward = row.columns.get("reward_model")
    if isinstance(reward, dict) and isinstance(reward.get("ground_truth"), str):  # verl
        return found | {"reward_model": row.take("reward_model"), "answer": reward["ground_truth"]}
    text = row.columns.get(keys[-1])
    if keys[-1] == "std_answer" and isinstance(text, str) and text.strip():
        return found | {"answer": row.take("std_answer")}
    if final := checkable(row, "answer"):
        return found | {"response": row.take("answer"), **final}
    return found


def _dialogue(row: Row, name: str) -> list[dict]:
    value = row.take(name)
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return dialogues.hh_turns(value, name)
    return row.turns(name)


def answer_last(row: Row, keys: tuple[str, ...]) -> dict:
    """One dialogue. The last assistant turn answers all turns before it. Turns after it are not used."""
    turns = _dialogue(row, keys[0])
    return _last_answer(row, turns, keys[0])


def _last_answer(row: Row, turns: list[dict], name: str) -> dict:
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise InputError(f"{name}: needed an assistant turn, got {len(turns)} turns without one")
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if all(turn.get("weight") == 0 for turn in answers):
        raise InputError(f"{name}: needed an assistant turn that is learned, got the weight 0 for all")
    row.turns_after = last < len(turns) - 1
    return row.build(row.with_beginning(turns[:last]), response=[turns[last]])


def dialogue_and_answers(row: Row, keys: tuple[str, ...]) -> dict:
    prompt = row.with_beginning(_dialogue(row, keys[0]))
    chosen, rejected = (_without_prompt(_answer(row, name), prompt, name) for name in keys[1:])
    return row.build(prompt, chosen=chosen, rejected=rejected) | row.margin()


def answers_inside(row: Row, keys: tuple[str, ...]) -> dict:
    """Two whole dialogues, as text or turns, that differ in their answers."""
    sides = {name: _dialogue(row, name) for name in keys}
    prompt, chosen, rejected = _common_beginning(sides)
    return row.build(row.with_beginning(prompt), chosen=chosen, rejected=rejected) | row.margin()


def _common_beginning(sides: dict[str, list[dict]]) -> tuple[list[dict], list[dict], list[dict]]:
    """The prompt is the longest common beginning that leaves each side at least one turn.

    The assistant turns that remain (nearly always a single turn) are the answer. So two sides form a pair even if one
    side only adds an assistant turn.
    """
    for name, turns in sides.items():
        if not turns or turns[-1]["role"] != "assistant":
            came = f"a {turns[-1]['role']} turn" if turns else "no turns"
            raise InputError(f"{name}: needed an assistant turn at the end, got {came}")
    chosen, rejected = sides.values()
    longest = min(len(chosen), len(rejected)) - 1
    common = next((index for index in range(longest) if chosen[index] != rejected[index]), longest)
    rests = chosen[common:], rejected[common:]
    if any(rest[0]["role"] != "assistant" or {"user", "system"} & {turn["role"] for turn in rest} for rest in rests):
        raise InputError(f"prompts differ at turn {common + 1}")
    return chosen[:common], *rests


def labelled(row: Row, keys: tuple[str, ...]) -> dict:
    """An answer with a label: people liked it or not."""
    read = answer_last if keys[0] in DIALOGUE.split("|") else prompt_and_answers
    return read(row, keys[:-1]) | {"label": label_of(row.take(keys[-1]), keys[-1])}


def answer_in_steps(row: Row, keys: tuple[str, ...]) -> dict:
    """An answer in steps, with a label for each step. Steps without a space between them get a newline."""
    steps, labels = row.take(keys[1]), row.take(keys[2])
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step for step in steps):
        raise InputError(f"{keys[1]}: needed a list of texts, none of them empty, got {got(steps)}")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise InputError(f"{keys[2]}: needed a list of {len(steps)} labels, one for each step, got {got(labels)}")
    pairs = zip(steps, [*steps[1:], "\n"], strict=True)
    steps = [step if step[-1:].isspace() or after[:1].isspace() else step + "\n" for step, after in pairs]
    return row.build(row.prompt(keys[0])) | {"steps": steps, "labels": [step_label(label) for label in labels]}


def judged_pair(row: Row, keys: tuple[str, ...]) -> dict:
    """Two answers, and which of them is better."""
    pair = pair_of(row.columns)
    better = verdict_of(row.take(keys[-1]), pair, keys[-1])
    names = {"chosen": pair[better], "rejected": pair[1 - better]}
    if len(keys) == 1:  # two whole dialogues
        prompt, chosen, rejected = _common_beginning({name: _dialogue(row, name) for name in names.values()})
        return row.build(row.with_beginning(prompt), chosen=chosen, rejected=rejected)
    prompt = row.prompt(keys[0])
    answers = {side: _without_prompt(_answer(row, name), prompt, name) for side, name in names.items()}
    return row.build(prompt, **answers) | row.margin()


def scored_pair(row: Row, keys: tuple[str, ...]) -> dict:
    """Two answers, each with a score."""
    names = pair_of(row.columns)
    scores = [number(row.take(key), key) for key in score_keys(row)]
    return _pairs_of(row, row.prompt(keys[0]), [_answer(row, name) for name in names], scores, "scores", False)[0]


def score_keys(row: Row) -> list[str]:
    pair = pair_of(row.columns)
    tails = [name[len(name.rstrip("012abAB")) - (name[-2] == "_") :] for name in pair or ()]
    for word in ("score", "rating", "reward"):
        keys = [word + tail for tail in tails]
        if keys and all(key in row.columns for key in keys):
            return keys
    return []


def ranked(row: Row, keys: tuple[str, ...]) -> list[dict]:
    """Several answers with scores (higher is better) or ranks (1 is the best)."""
    answers = row.take(keys[1])
    if len(keys) == 3:
        scores, key = row.take(keys[2]), keys[2]
    else:
        answers, scores, key = _answers_with_scores(row, answers, keys[1])
    if not isinstance(answers, list) or len(answers) < 2:
        raise InputError(f"{keys[1]}: needed a list of two answers or more, got {got(answers)}")
    if not isinstance(scores, list) or len(scores) != len(answers):
        raise InputError(f"{key}: needed a list of {len(answers)} numbers, one for each answer, got {got(scores)}")
    row.more_answers = len(answers) > 2 and not row.every_pair
    turns = [assistant(a) if isinstance(a, str) else turns_of(a, keys[1], row.ignored) for a in answers]
    return _pairs_of(row, row.prompt(keys[0]), turns, [number(score, key) for score in scores], key, row.every_pair)


ANSWER_TEXTS = ("text", "answer", "response", "output", "completion", "content")
ANSWER_SCORES = ("score", "pm_score", "votes", "upvotes", "overall_score", "rating", "reward", "rank")


def _answers_with_scores(row: Row, answers: list[dict], key: str) -> tuple[list, list, str]:
    """[{"answer": text, "score": number}, ...] -> (texts, scores, the name of the scores)."""
    texts = next((name for name in ANSWER_TEXTS if all(name in answer for answer in answers)), None)
    scores = next((name for name in ANSWER_SCORES if all(name in answer for answer in answers)), None)
    if texts is None or scores is None:
        raise InputError(f"{key}: needed answers with a text and a score, got {got(answers)}")
    row.inside |= {name: None for answer in answers for name in answer if name not in (texts, scores)}
    return [answer[texts] for answer in answers], [answer[scores] for answer in answers], scores


def _pairs_of(row: Row, prompt, answers: list[list[dict]], scores: list, key: str, every: bool) -> list[dict]:
    ranks = key.startswith("rank")
    order = [-score for score in scores] if ranks else scores
    answers = [_without_prompt(turns, prompt, "answers") for turns in answers]
    return [
        row.build(prompt, chosen=answers[a], rejected=answers[b]) | ({} if ranks else {"margin": scores[a] - scores[b]})
        for a, b in ranked_pairs(order, every, key)
    ]


def seed_tasks(row: Row, keys: tuple[str, ...]) -> list[dict]:
    """BELLE's seed tasks: an instruction with a list of inputs and outputs. Each of them is a row."""
    instances, instruction = row.take("instances"), row.take("instruction")
    if not isinstance(instances, list) or not instances or not all(isinstance(each, dict) for each in instances):
        raise InputError(f"instances: needed a list of {{input, output}}, got {got(instances)}")
    rows = []
    for number_, instance in enumerate(instances, start=1):
        if more := [name for name in instance if name not in ("input", "output")]:
            raise InputError(f"instances: {number_}: needed the keys input and output, got {names_of(more)}")
        inner = Row({**row.columns, "instruction": instruction, "output": "", **instance}, row.ignored)
        rows.append(prompt_and_answers(inner, ("instruction", "output")))
        row.no_input |= inner.no_input
        if "input" not in inner.read and not is_empty(instance.get("input")):
            raise InputError("instances: needed an instruction that is text beside an input, got turns")
        row.read |= {name: None for name in inner.read if name in row.columns and name not in instance}
    return rows


def moss(row: Row, keys: tuple[str, ...]) -> dict:
    turns = dialogues.moss_turns(row.take("chat"), row.take("meta_instruction"), row.take("num_turns"))
    return _last_answer(row, turns, "chat")


def transcripts(row: Row, keys: tuple[str, ...]) -> dict:
    """One or two transcripts of episodes after a prompt; see data/transcripts.py."""
    found = row.build(row.prompt(keys[0]))
    for key, name in zip(("response",) if len(keys) == 2 else ("chosen", "rejected"), keys[1:], strict=True):
        turns = row.take(name)
        parts = parts_of(turns, name)
        row.turns_after |= len(parts) < len(turns)
        found |= {key: text_of(parts), f"{key}_parts": parts}
    return found


def text_alone(row: Row, keys: tuple[str, ...]) -> dict:
    return {"prompt": "", "response": row.text(keys[0])}


def labelled_text(row: Row, keys: tuple[str, ...]) -> dict:
    return text_alone(row, keys) | {"label": label_of(row.take(keys[1]), keys[1])}
