"""An environment: something that a policy acts in. Two methods make one."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Observation(NamedTuple):
    """The answer to a turn of the policy."""

    text: str = ""  # the policy reads it before its next turn
    reward: float = 0.0  # for this turn
    done: bool = False  # the episode is over: nobody reads the text


class Environment(Protocol):
    """One episode. `Episodes` makes a new object for each.

    The methods may be async; each call has an event loop of its own, so a client of a server must be opened in the
    call. Random numbers must come from the row: a run that is resumed plays the same episodes. `step` runs in a thread
    of its own, beside the steps of other episodes.

    An environment may have attributes. Two are for chat templates: `schemas`, the JSON schemas of its tools, and
    `role`, whose turn its texts are: "user" (default) or "tool". `stop_strings` are further texts that end a turn,
    the same in every episode. `closing` is text that also ends a text that was cut to `max_tool_tokens`.
    """

    def reset(self, row: dict) -> str | list[dict]:
        """The first prompt of the episode: text, or turns [{"role": ..., "content": ...}, ...].

        After a prompt of text, the texts of `step` follow the policy's turns as they are. After turns, each text
        becomes a turn by the tokenizer's chat template.   row: the row of the data, with all of its columns.
        """

    def step(self, action: str) -> Observation:
        """Answer a turn of the policy.

        action: the text of the turn without its end token; a stop string that ended the turn is in it.
        """
