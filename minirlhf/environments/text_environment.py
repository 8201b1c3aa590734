"""An environment of tools: the policy writes a call, reads the tool's answer, and goes on until a turn without a call.

    12+35=                                          the row's prompt
    <calculator>12+35</calculator>                  the policy's turn
    <result>47</result>                             the answer of the tool
    47                                              the policy's last turn

With a chat template the turns stand in the template's own form; see `TextEnvironment`.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from minirlhf.data.batches import TURNS
from minirlhf.environments.calls import Call, find_calls
from minirlhf.environments.environment import Observation
from minirlhf.environments.tool import tool_of
from minirlhf.errors import InputError, shown
from minirlhf.rewards.functions import where_it_failed
from minirlhf.runtime.distributed import say
from minirlhf.text.tool_turns import tool_form, without_tools

OPEN, CLOSE = "<result>", "</result>"  # around a tool's answer in plain text
told: set[tuple[str, str]] = set()  # (tool, error) of faulty tools that the user has read about


class TextEnvironment:
    """Tools that a policy calls by what it writes. `Episodes` makes one for each episode.

    A turn with calls gets the tools' answers; a turn without a call is the answer, and ends the episode. A call that
    cannot be answered gets a text `error: TOOL: REASON`: an unknown tool, broken JSON, wrong arguments, a tool that
    raises, gives no text, or needs longer than `timeout`. The exception of a tool is also named once on the terminal.
    In a dialogue a special token inside a tool's answer gets a space, `< |im_end|>`, so that it stays text.

    Args:
        tools:     plain or async functions; signature and docstring become the schema of a chat template.
        prompt:    text before the row's prompt, such as examples of calls; the system turn of a chat template.
        reward:    (answer, row) -> the score of the last turn; None leaves scores to the reward functions.
        tokenizer: of a checkpoint. With a chat template the episode is a dialogue: the template writes the schemas and
                   the tool turns, if it has a tool format; else both stand as text in system and user turns.
        timeout:   seconds that the calls of a turn may need together.
    Raises: InputError if two tools have the same name, or a function cannot be a tool.
    """

    def __init__(
        self,
        tools: Sequence[Callable[..., Any]],
        prompt: str = "",
        *,
        reward: Callable[[str, dict], float] | None = None,
        tokenizer: Any = None,
        timeout: float = 10.0,
    ) -> None:
        self.tools = {tool.name: tool for tool in map(tool_of, tools)}
        if len(self.tools) < len(tools):
            raise InputError(f"TextEnvironment: needed tools of different names, got {', '.join(map(name_of, tools))}")
        if not timeout > 0:
            raise InputError(f"TextEnvironment: needed a timeout above 0 seconds, got {shown(timeout)}")
        self.prompt, self.reward, self.timeout = prompt, reward, timeout
        self.in_turns = bool(tokenizer is not None and tokenizer.templates)
        self.form = tool_form(tokenizer) if self.in_turns else None
        self.special = special_tokens(tokenizer) if self.in_turns else None
        self.row: dict = {}

    @property
    def schemas(self) -> list[dict] | None:
        """The tools for the chat template; None if it has no tool format."""
        return [tool.schema for tool in self.tools.values()] if self.form else None

    @property
    def role(self) -> str:
        """The role of an observation in a chat template."""
        return "tool" if self.form else "user"

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end a turn: the closing tags of plain calls. A chat template has an end token instead."""
        return () if self.in_turns else tuple(f"</{name}>" for name in self.tools)

    @property
    def closing(self) -> str:
        """The end of an answer in plain text, also after a cut; a chat template ends the turn itself."""
        return "" if self.in_turns else CLOSE

    def reset(self, row: dict) -> str | list[dict]:
        self.row = row
        if not self.in_turns:
            return self.prompt + row["prompt"]
        turns = [dict(turn) for turn in row.get(TURNS) or [{"role": "user", "content": row["prompt"]}]]
        if self.prompt and turns[0]["role"] == "system":
            turns[0]["content"] = f"{self.prompt}\n\n{turns[0]['content']}"
        elif self.prompt:
            turns.insert(0, {"role": "system", "content": self.prompt})
        if self.form or not self.tools:
            return turns
        return without_tools(turns, [tool.schema for tool in self.tools.values()])

    def step(self, action: str) -> Observation:
        calls = find_calls(action, self.tools)
        if not calls:
            return Observation(reward=self._score(action), done=True)
        answers, left = [], self.timeout
        for call in calls:
            began = time.monotonic()
            answers.append(self._answer(call, left))
            left -= time.monotonic() - began
        if self.in_turns:  # a passage of a stranger must not end the turn
            return Observation(self.special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", "\n".join(answers)))
        return Observation("".join(f"{OPEN}{answer}{CLOSE}" for answer in answers))

    def _answer(self, call: Call, seconds: float) -> str:
        """The answer to a call.   seconds: that are left for the calls of the turn."""
        if call.error:
            return f"error: {call.error}"
        if not (tool := self.tools.get(call.name)):
            known = ", ".join(self.tools) or "none"
            return f"error: no tool has the name {shown(call.name, 40)}; tools: {known}"
        if seconds > 0:
            text, fault = tool.answer(call, seconds)
        else:
            text, fault = tool.failed("the calls before it have taken the time of this turn"), None
        if fault is not None and (tool.name, type(fault).__name__) not in told:
            told.add((tool.name, type(fault).__name__))
            say(f"tool {tool.name}: it raised an error, and the policy reads it as the answer {shown(text, 200)}")
        return text if self.form or not self.in_turns else f"{tool.name}:\n{text}"

    def _score(self, answer: str) -> float:
        if self.reward is None:
            return 0.0
        try:
            return self.reward(answer, self.row)
        except Exception as error:
            needed = "a function of an answer and its row"
            raise InputError(f"reward: {where_it_failed(error, file_of(self.reward), needed)}") from None


@lru_cache(maxsize=4)
def special_tokens(tokenizer: Any) -> re.Pattern:
    """Finds the texts that a chat template's encoder would take for special tokens."""
    texts = [token.content for token in tokenizer.backend.get_added_tokens_decoder().values() if len(token.content) > 1]
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")


def file_of(function: Callable[..., Any]) -> Path:
    try:
        return Path(inspect.getsourcefile(function) or "")
    except (TypeError, OSError):  # defined in no file
        return Path()


def name_of(function: Callable[..., Any]) -> str:
    return tool_of(function).name
