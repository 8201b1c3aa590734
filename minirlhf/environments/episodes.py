"""Episodes: dialogues of a policy and environments, from rows of data."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirlhf.data.batches import EncodedRow
from minirlhf.environments.answers import Answers
from minirlhf.environments.environment import Environment, Observation
from minirlhf.environments.threads import Threads
from minirlhf.errors import InputError, shown
from minirlhf.foreign import copied, unicode_text
from minirlhf.generation.completion import Completion, SamplingConfig
from minirlhf.generation.conversing import converse
from minirlhf.rewards.calling import TookTooLong, awaited, refused
from minirlhf.rewards.functions import RewardSum, where_it_failed
from minirlhf.rewards.scoring import LARGEST, Reward, as_number
from minirlhf.text.tokenizer import Tokenizer

POLICY, ENVIRONMENT = "policy", "environment"
REWARD = "episode_reward"  # key of a row: the sum of the rewards of its episode


class Turn(NamedTuple):
    by: str  # POLICY or ENVIRONMENT
    text: str
    start: int  # the turn's tokens are ids[start:stop] of the episode; an environment's last text has none
    stop: int
    role: str = "user"  # of an environment's text, in a chat template


@dataclass
class Episode:
    """A finished dialogue. Its last token is the policy's."""

    prompt: list[int]
    source: dict  # the row of the data
    first: str = ""  # the prompt as text
    ids: list[int] = field(default_factory=list)  # after the prompt: turns of the policy and texts of the environment
    chosen: list[bool] = field(default_factory=list)  # for each id, whether the policy chose it
    logps: list[float] = field(default_factory=list)  # nats, as in a `Completion`; 0 where the policy did not choose
    rewards: list[tuple[int, float]] = field(default_factory=list)  # (index of a turn's last token, its reward)
    turns: list[Turn] = field(default_factory=list)
    finish: str = ""  # "done": the environment ended it; "turns": max_turns; "context": it filled the context
    whole: bool = False  # the environment ended it, after a turn that the policy ended itself
    masses: list[float] = field(default_factory=list)  # `mass_kept` of each turn

    @property
    def completion(self) -> Completion:
        """The episode as one completion; its finish is "stop" if the episode is whole."""
        sizes = [turn.stop - turn.start for turn in self.turns if turn.by == POLICY]
        mass = sum(map(mul, self.masses, sizes)) / sum(sizes)
        return Completion(self.ids, self.logps, "stop" if self.whole else "length", mass, self.chosen)

    @property
    def row(self) -> dict:
        """The row of the data as a reward function gets it."""
        return row_of(self.source, self.shown(), sum(reward for _, reward in self.rewards))

    def shown(self) -> list[dict[str, str]]:
        """The turns after the prompt, for a file of samples."""
        tool = {"role": "tool"}
        return [{"by": t.by, "text": t.text} | (tool if t.role == "tool" else {}) for t in self.turns]


def row_of(source: dict, turns: list[dict[str, str]], reward: float) -> dict:
    """A row of the data with its turns and the sum of their rewards."""
    return {**source, "turns": turns, REWARD: reward}


def as_text(first: str | list[dict]) -> str:
    """The first prompt of an environment: its text, or the contents of its turns."""
    return first if isinstance(first, str) else "\n\n".join(str(turn.get("content", "")) for turn in first)


class Episodes:
    """Plays an environment: one object for each row.

    Args:
        make:            makes an environment; a class without arguments does.
        max_turns:       turns of the policy in an episode, at most.
        max_tool_tokens: tokens of a text of the environment; a longer text is cut.
        timeout:         seconds that a call of the environment may take.
    """

    def __init__(
        self,
        make: Callable[[], Environment],
        tokenizer: Tokenizer,
        *,
        max_turns: int = 8,
        max_tool_tokens: int = 256,
        timeout: float = 30.0,
    ) -> None:
        if min(max_turns, max_tool_tokens) < 1 or not timeout > 0:
            raise InputError(
                "Episodes: max_turns and max_tool_tokens must be at least 1 and timeout above 0, got "
                f"{max_turns}, {max_tool_tokens} and {timeout}"
            )
        self.make, self.tokenizer, self.max_turns, self.max_tool_tokens = make, tokenizer, max_turns, max_tool_tokens
        self.threads, self.timeout = Threads(timeout), timeout

    def rehearse(self, rows: Sequence[dict], actions: Sequence[str], context: int) -> None:
        """Begin an episode of each row, and answer one turn.   Raises: InputError, as `play` does."""
        for row, action in zip(rows, actions, strict=True):
            dialogue = Played(self, context)
            dialogue.take_prompt(dialogue.begin(row))
            dialogue.check_room()
            ids = [*self.tokenizer.encode(action), self.tokenizer.eos_id]
            dialogue.ask(Completion(ids, [0.0] * len(ids), "stop"))
            dialogue.hear()

    def play(
        self,
        transformer: Any,
        rows: Sequence[EncodedRow],
        sampling: SamplingConfig,
        *,
        seed: int,
        stream: str,
        keys: Sequence[tuple[int, int, int]],
        plain: bool = False,
    ) -> list[Episode]:
        """One episode for each row, in order. `sampling.max_tokens` bounds a turn; see `converse` for the others.

        Raises: InputError if the environment raises, hangs, or answers with something else than an Observation; the
            error names file and line. A tool that may fail should answer with the text of its error.
        """
        context = transformer.config.max_position_embeddings
        dialogues = self._begun(rows, context)
        for dialogue in dialogues:
            dialogue.check_room()
        stops = [*dict.fromkeys(tuple(getattr(each.environment, "stop_strings", ())) for each in dialogues)]
        if len(stops) > 1:  # an episode would depend on the others of its batch
            got = f"{shown(stops[0])} and {shown(stops[1])}"
            raise refused(dialogues[0].name, f"needed the same stop_strings in every episode, got {got}")
        stops = dict.fromkeys([*sampling.stop_strings, *(stops[0] if stops else ())])
        sampling = replace(sampling, stop_strings=tuple(stops))
        options = {"seed": seed, "stream": stream, "keys": keys, "tokenizer": self.tokenizer, "plain": plain}
        limits = {"turns": self.max_turns, "answer_tokens": self.max_tool_tokens}
        converse(transformer, dialogues, sampling, **options, **limits)
        return [dialogue.episode for dialogue in dialogues]

    def with_room(self, context: int, rows: Sequence[EncodedRow]) -> list[EncodedRow]:
        """The rows to look at: as `room.with_room`, for the first prompts of the environment."""
        fitting = [each.has_room() for each in self._begun(rows, context)]
        if n := fitting.count(False):
            text = f"{n} of {len(rows)} first prompts leave no room in the context of {context}: left out"
            warnings.warn(text, stacklevel=2)
        return [row for row, fits in zip(rows, fitting, strict=True) if fits]

    def _begun(self, rows: Sequence[EncodedRow], context: int) -> list[Played]:
        dialogues = [Played(self, context) for _ in rows]
        begun = [dialogue.begin(row.source) for dialogue, row in zip(dialogues, rows, strict=True)]
        for dialogue, future in zip(dialogues, begun, strict=True):
            dialogue.take_prompt(future)
        return dialogues

    def reward(self, prompts: list[str], completions: list[str], rows: list[dict]) -> list[float]:
        """The environment as a reward function: the sum of the rewards of each episode."""
        return [row[REWARD] for row in rows]

    def with_reward(self, reward: Reward | None) -> Reward:
        """The sum of the environment's rewards and a reward function, if any."""
        return RewardSum([reward, self.reward]) if reward else self.reward

    def fields(self, episodes: Sequence[Episode], like: Tensor) -> dict[str, Any]:
        """Fields of a `Rollout`: turn_rewards, turn_numbers, first_prompts, turns.   like: [B, T] (dtype, device)."""
        rewards = torch.zeros(like.shape, dtype=like.dtype)
        numbers = torch.zeros(like.shape, dtype=torch.int64)
        for row, episode in enumerate(episodes):
            before = len(episode.prompt)
            own = [turn for turn in episode.turns if turn.by == POLICY]
            for number, (turn, (last, reward)) in enumerate(zip(own, episode.rewards, strict=True), start=1):
                rewards[row, before + last] = reward
                numbers[row, before + turn.start : before + turn.stop] = number
        texts = {"first_prompts": [e.first for e in episodes], "turns": [e.shown() for e in episodes]}
        return {"turn_rewards": rewards.to(like.device), "turn_numbers": numbers.to(like.device), **texts}


class Played:
    """A dialogue in progress: see `conversing.Dialogue`."""

    def __init__(self, game: Episodes, context: int) -> None:
        self.game, self.context = game, context
        self.name = f"environment {getattr(game.make, '__name__', type(game.make).__name__)}"
        self.environment: Any = None

    def begin(self, row: dict) -> Future:
        self.row = row

        def reset() -> Any:
            self.environment = self.game.make()
            for name in ("reset", "step"):
                if not callable(getattr(self.environment, name, None)):
                    raise InputError(f"needed an object with reset and step, got {shown(self.environment)}")
            return awaited(self.environment.reset(copied(row)))

        return self.game.threads.submit(reset)

    def take_prompt(self, begun: Future) -> None:
        first = self.waited(begun, "reset")
        turns = isinstance(first, list) and all(isinstance(turn, dict) and "role" in turn for turn in first)
        if not isinstance(first, str) and not (turns and first):
            raise refused(self.name, f"reset needed to return text or a list of turns, got {shown(first)}")
        schemas = getattr(self.environment, "schemas", None)
        self.answers = Answers(self.game.tokenizer, first, schemas, self.game.max_tool_tokens)
        try:
            self.ids = self.answers.prompt()
        except InputError as error:
            raise refused(self.name, f"reset: {error}") from None
        self.episode = Episode([*self.ids], self.row, as_text(first))

    def has_room(self) -> bool:
        return len(self.ids) < self.context

    def check_room(self) -> None:
        if not self.has_room():
            needed = f"needed a first prompt that leaves room in the context of {self.context}"
            raise refused(self.name, f"reset: {needed}, got {len(self.ids)} tokens; shorten it")

    def ask(self, turn: Completion) -> None:
        episode, start = self.episode, len(self.episode.ids)
        self.last, self.action = turn, self.game.tokenizer.decode_completions([turn.ids])[0]
        self._extend(POLICY, self.action, turn.ids, turn.logps)
        episode.masses.append(turn.mass_kept)
        episode.rewards.append((start + len(turn.ids) - 1, 0.0))
        step = partial(self.environment.step, self.action)
        self.future = self.game.threads.submit(lambda: awaited(step()))

    def hear(self) -> list[int] | None:
        text, reward, done = self._observed()
        episode, text = self.episode, self.answers.cut(text, getattr(self.environment, "closing", ""))
        episode.rewards[-1] = episode.rewards[-1][0], reward
        if done:
            episode.finish, episode.whole = "done", self.last.finish == "stop"
        elif len(episode.rewards) >= self.game.max_turns:
            episode.finish = "turns"
        else:
            role = getattr(self.environment, "role", "user")
            ids = self.answers.after(self.last.ids, self.action, text, role)
            if len(self.ids) + len(ids) < self.context:
                self._extend(ENVIRONMENT, text, ids, None, role)
                return ids
            episode.finish = "context"
        if text:
            stop = len(episode.ids)
            episode.turns.append(Turn(ENVIRONMENT, text, stop, stop))
        return None

    def _extend(self, by: str, text: str, ids: list[int], logps: list[float] | None, role: str = "user") -> None:
        episode, start = self.episode, len(self.episode.ids)
        self.ids += ids
        episode.ids += ids
        episode.chosen += [logps is not None] * len(ids)
        episode.logps += [0.0] * len(ids) if logps is None else logps
        episode.turns.append(Turn(by, text, start, start + len(ids), role))

    def _observed(self) -> Observation:
        answer = self.waited(self.future, "step")
        if not isinstance(answer, tuple) or len(answer) != 3:
            raise refused(self.name, f"step needed to return an Observation(text, reward, done), got {shown(answer)}")
        text, reward, done = answer
        if not isinstance(text, str):
            raise refused(self.name, f"step: needed text for the policy to read, got {shown(text)}")
        if not abs(number := as_number(reward)) <= LARGEST or math.isnan(number):
            needed = f"needed a finite reward of at most {LARGEST:g} in size"
            raise refused(self.name, f"step: {needed}, got {shown(reward)} for {shown(self.action, 40)}")
        return Observation(unicode_text(text), number, bool(done))

    def waited(self, future: Future, method: str) -> Any:
        """The answer of the environment. An error of its code becomes an InputError with its file and line."""
        try:
            return self.game.threads.wait(future)
        except TookTooLong:
            seconds = f"{self.game.timeout:g} s"
            advice = "end it sooner and answer with a text, or raise the timeout"
            raise refused(self.name, f"{method}: needed an answer within {seconds}, got none; {advice}") from None
        except (Exception, SystemExit) as error:
            needed = "the methods reset(row) and step(action)"
            raise refused(self.name, f"{method}: {where_it_failed(error, self._file(), needed)}") from None

    def _file(self) -> Path:
        """The file of the environment's class, or of the function that makes it."""
        try:
            return Path(inspect.getsourcefile(self.game.make if self.environment is None else type(self.environment)))
        except (TypeError, OSError):  # defined in no file
            return Path()
