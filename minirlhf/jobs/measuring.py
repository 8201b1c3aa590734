"""Several models on the same rows: open them, find the rows that all can read, sample, score and compare.

A row that one model cannot read is left out for all models, so that every number of a table speaks of the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from minirlhf.algorithms.distillation_checks import check_same_tokenizer
from minirlhf.data.batches import EncodedRow
from minirlhf.data.dialogues import Dialogues
from minirlhf.data.encoding import encode_texts
from minirlhf.data.formats import Dataset
from minirlhf.data.wrapping import Wrapping
from minirlhf.errors import InputError
from minirlhf.evaluation.likelihood import Likelihood, likelihoods
from minirlhf.evaluation.pairwise import in_both_orders
from minirlhf.evaluation.policies import evaluate_policy
from minirlhf.evaluation.reward_models import pair_measures
from minirlhf.generation.engine import SamplingConfig
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.jobs.models import resolve_model
from minirlhf.model.config import ModelConfig
from minirlhf.model.policy import Policy
from minirlhf.pretrained.weights import empty_policy
from minirlhf.rewards.judges import Judge
from minirlhf.rewards.scoring import Reward, score_completions
from minirlhf.runtime.distributed import gather, local_rows, say
from minirlhf.runtime.sharing import in_order
from minirlhf.text.tokenizer import Tokenizer

Value = TypeVar("Value")
ANSWERS = {"sft": "response", "text": "response", "preference": "chosen", "unpaired": "response"}  # kind -> key


@dataclass(frozen=True)
class Entrant:
    """A model to measure, without its weights."""

    name: str
    folder: Path
    tokenizer: Tokenizer
    shape: ModelConfig

    @property
    def context(self) -> int:
        return self.shape.max_position_embeddings


class Answer(NamedTuple):
    ids: list[int]  # of the prompt and the answer
    counted: list[bool]  # which of them are text of the answer
    size: int  # [bytes] of the answer


@dataclass
class Rows:
    """The rows to measure on, each with its file and line."""

    prompts: list[dict]  # one row per distinct prompt
    references: list[list[str]]  # the known answers of each prompt, perhaps none
    texts: list[dict]  # {"prompt", "response", ...}, for the likelihood
    pairs: list[dict]  # {"prompt", "chosen", "rejected", ...}, for a reward model
    unit: str
    left_out: list[str] = field(default_factory=list)  # a reason for each row that is not measured

    def leave_out(self, row: dict, who: str, why: object) -> None:
        file = f"{row['file']}: " if "file" in row else ""
        self.left_out.append(f"{file}{self.unit} {row.get('line')}: {who}: {why}")


def rows_of(datasets: Sequence[Dataset]) -> Rows:
    """The prompts of all data sets with all known answers of each; texts; pairs. Raw text is no prompt."""
    prompts: dict[str, dict] = {}
    answers: dict[str, list[str]] = {}
    found = Rows([], [], [], [], datasets[0].unit)
    for data in datasets:
        key = ANSWERS.get(data.kind)
        for row in data.rows:
            row = row if len(datasets) == 1 else {"file": data.path, **row}
            if data.kind != "text":
                prompts.setdefault(row["prompt"], row)
            if key and row.get("label", True):
                turns = {"response_turns": row[f"{key}_turns"]} if f"{key}_turns" in row else {}
                found.texts.append({**row, "response": row[key], **turns})
                answers.setdefault(row["prompt"], []).append(row[key])
            if data.kind == "preference":
                found.pairs.append(row)
    found.prompts = list(prompts.values())
    found.references = [list(dict.fromkeys(answers.get(prompt, []))) for prompt in prompts]
    return found


def open_entrant(name: str, label: str, template: str | None, variables: str | None) -> Entrant:
    """Check a model's folder, before any model is measured.   Raises: InputError if it holds no language model."""
    folder = resolve_model(name)
    shape = empty_policy(folder).transformer.config  # checks all files
    tokenizer = Tokenizer.load(folder).with_template(template, variables)
    check_vocabulary(shape, tokenizer, folder)
    return Entrant(label, folder, tokenizer, shape)


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell the paths apart: runs/a/sft, runs/b/sft -> a/sft, b/sft."""
    parts = [Path(name).parts or (name,) for name in names]
    for k in range(1, max(map(len, parts), default=0)):
        if len({part[-k:] for part in parts}) == len(parts):
            return ["/".join(part[-k:]) for part in parts]
    return list(names)


def readable_by_all(
    entrants: Sequence[Entrant],
    rows: Rows,
    part: list[dict],
    encode: Callable[[Entrant, list[dict], str], list],
    wrap: str,
) -> tuple[list[int], list[list]]:
    """-> (the indices of the rows that every model can read, for each model its encoding of these rows)."""
    columns = [encode(entrant, part, wrap) for entrant in entrants]
    kept = []
    for i, row in enumerate(part):
        refused = [(e.name, column[i]) for e, column in zip(entrants, columns, strict=True)]
        refused = [(name, cell) for name, cell in refused if isinstance(cell, InputError)]
        if refused:
            rows.leave_out(row, *refused[0])
        else:
            kept.append(i)
    return kept, [[column[i] for i in kept] for column in columns]


def encoded(entrant: Entrant, rows: list[dict], responses: tuple[str, ...], wrap: str) -> list[EncodedRow | InputError]:
    """The rows as a model reads them. What its chat template does with text and unread keys is said."""
    wrapping, dialogues = Wrapping(entrant.tokenizer, wrap), Dialogues(entrant.tokenizer)
    rows = [wrapping.look(row) for row in rows]
    found = encode_texts(entrant.tokenizer, rows, responses, entrant.shape.vocab_size, dialogues=dialogues)
    for note in (*wrapping.notes(), *dialogues.notes()):
        say(f"{entrant.name}: {note}")
    return [cell if isinstance(cell, InputError) else cell[0] for cell in found]  # the last answer makes one row


def encode_prompts(entrant: Entrant, rows: list[dict], wrap: str) -> list[EncodedRow | InputError]:
    """The prompts. A prompt that fills the context is refused."""
    found = encoded(entrant, rows, (), wrap)
    for i, cell in enumerate(found):
        if isinstance(cell, EncodedRow) and len(cell.prompt) >= entrant.context:
            found[i] = InputError(f"the prompt has {len(cell.prompt)} tokens, the context holds {entrant.context}")
    return found


def encode_answers(entrant: Entrant, rows: list[dict], wrap: str) -> list[Answer | InputError]:
    """The answers of the file. Their end tokens are no text, so they are not counted."""
    return [
        cell if isinstance(cell, InputError) else _answer(entrant, cell)
        for cell in encoded(entrant, rows, ("response",), wrap)
    ]


def _answer(entrant: Entrant, row: EncodedRow) -> Answer:
    response, counted = row.responses[0], list(row.mask())
    if response and response[-1] in entrant.tokenizer.eos_ids:
        counted[-1] = False
    text = row.source["response"]
    if "response_turns" in row.source:  # tool calls and reasoning are text too, as the template writes them
        text = entrant.tokenizer.backend.decode([t for t, c in zip(response, counted, strict=True) if c], False)
    mask = [False] * len(row.prompt) + counted
    return Answer([*row.prompt, *response], mask, len(text.encode("utf-8", "surrogatepass")))


def sampled(
    entrant: Entrant,
    policy: Policy,
    prompts: list[EncodedRow],
    sampling: SamplingConfig,
    samples: int,
    seed: int,
    reference: tuple[Entrant, Policy] | None,
) -> tuple[list[list[str]], dict[str, float | None]]:
    """-> (the completions of each prompt; length, ended, kl over all of them). Without a common tokenizer: no KL."""
    ref_policy = None
    if reference:
        try:
            check_same_tokenizer(entrant.name, entrant.tokenizer, reference[0].tokenizer)
            ref_policy = reference[1]
        except InputError:
            say(f"{entrant.name}: no KL, because the tokenizer of the reference {reference[0].name} is another")
    report = evaluate_policy(policy, entrant.tokenizer, prompts * samples, sampling, ref_policy=ref_policy, seed=seed)
    texts = [report.completions[i :: len(prompts)] for i in range(len(prompts))]
    return texts, {name: report.measures[name] for name in ("length", "ended", "kl")}


def likelihood_of(
    policy: Policy, answers: list[Answer], overlap: int, microbatch_tokens: int
) -> dict[str, float | None]:
    """The measures of the likelihood of all answers together."""

    def read(indices: list[int]) -> list[tuple[float, int]]:
        chosen = [(answers[i].ids, answers[i].counted) for i in indices]
        return likelihoods(policy, chosen, overlap=overlap, microbatch_tokens=microbatch_tokens)

    found = zip(shared(len(answers), read), answers, strict=True)
    total = sum((Likelihood(*numbers, answer.size) for numbers, answer in found), Likelihood())
    return {"texts": len(answers), "text_tokens": total.tokens, "text_bytes": total.size, **total.measures()}


def scored(reward: Reward, rows: Rows, prompts: list[dict], samples: list[list[str]], who: str) -> list[list[float]]:
    """The score of each completion; nan for a completion that the reward cannot score, which is named."""
    flat = [(row, text) for row, group in zip(prompts, samples, strict=True) for text in group]

    def score(indices: list[int]) -> list[float]:
        chosen = [flat[i] for i in indices]
        texts = [row["prompt"] for row, _ in chosen], [text for _, text in chosen], [row for row, _ in chosen]
        return score_completions(reward, *texts, optional=True)

    found = iter(known_or_named(score, rows, [row for row, _ in flat], f"{who}: reward", math.nan))
    return [[next(found) for _ in group] for group in samples]


def judged(
    judge: Judge, rows: Rows, prompts: list[dict], ours: list[list[str]], theirs: list[list[str]], who: str
) -> list[list[tuple[float, float] | None]]:
    """`in_both_orders` of each pair of completions; None for a pair that the judge refuses, which is named."""
    flat = [(row, *pair) for row, *two in zip(prompts, ours, theirs, strict=True) for pair in zip(*two, strict=True)]

    def ask(indices: list[int]) -> list[tuple[float, float]]:
        chosen, first, second = ([flat[i][k] for i in indices] for k in range(3))
        return in_both_orders(judge, [row["prompt"] for row in chosen], first, second, chosen)

    found = iter(known_or_named(ask, rows, [row for row, *_ in flat], f"{who}: judge", None))
    return [[next(found) for _ in group] for group in ours]


def measured_pairs(reward: Reward, rows: Rows) -> dict[str, Any] | None:
    """The measures of a reward on the pairs that it can score; None without such pairs."""
    sides = "chosen", "rejected"
    answers = [(row, side) for side in sides for row in rows.pairs]
    # tool calls and reasoning of an answer stand in its turns
    sources = [
        {**row, **({"completion_turns": row[f"{s}_turns"]} if f"{s}_turns" in row else {})} for row, s in answers
    ]
    scores = [score for (score,) in scored(reward, rows, sources, [[row[side]] for row, side in answers], "pairs")]
    n = len(rows.pairs)
    known = [(row, *pair) for row, *pair in zip(rows.pairs, scores[:n], scores[n:], strict=True) if not _unknown(pair)]
    if not known:
        return None
    pairs, chosen, rejected = zip(*known, strict=True)
    return pair_measures(chosen, rejected, [(len(row["chosen"]), len(row["rejected"])) for row in pairs])


def _unknown(pair: Sequence[float]) -> bool:
    return any(map(math.isnan, pair))


def known_or_named(
    work: Callable[[list[int]], list[Value]], rows: Rows, sources: list[dict], who: str, unknown: Value
) -> list[Value]:
    """The results of `work` for all sources. If it refuses them together, each is tried alone.

    A source that is refused alone is named, and its result is `unknown`.
    """

    def tolerant(indices: list[int]) -> list[tuple[Value, str]]:
        try:
            return [(value, "") for value in work(indices)]
        except InputError:
            return [alone(i) for i in indices]

    def alone(i: int) -> tuple[Value, str]:
        try:
            return work([i])[0], ""
        except InputError as error:
            return unknown, str(error)

    results = shared(len(sources), tolerant)
    for row, (_, reason) in zip(sources, results, strict=True):
        if reason:
            rows.leave_out(row, who, reason)
    return [value for value, _ in results]


def shared(n: int, work: Callable[[list[int]], list[Value]]) -> list[Value]:
    """work(range(n)), a part in each process. Results travel as JSON. An InputError in one process reaches all."""
    mine, done, problem = list(local_rows(range(n))), [], ""
    try:
        done = work(mine) if mine else []
    except InputError as error:
        problem = str(error)
    if problem := next((text for text in gather(problem) if text), ""):
        raise InputError(problem)
    return in_order(done)
