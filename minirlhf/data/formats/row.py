"""A source row, and the columns that a layout has read of it."""

from __future__ import annotations

from minirlhf.data.columns import is_empty
from minirlhf.data.encoding import TURNS
from minirlhf.data.formats.dialogues import history_turns, is_no_input, marked_prompt
from minirlhf.data.formats.labels import number
from minirlhf.data.formats.turns import got, is_plain, plain_answer, tools_of, turns_of
from minirlhf.errors import InputError
from minirlhf.text.chat import render_chat

SYSTEM = ("system", "system_prompt", "systemPrompt")


class Row:
    """A source row. A column without a value, or an ignored column, is absent."""

    def __init__(self, columns: dict, ignored: tuple[str, ...] = (), every_pair: bool = False) -> None:
        self.columns = {name: value for name, value in columns.items() if value is not None and name not in ignored}
        self.ignored = ignored  # columns, and keys of turns
        self.every_pair = every_pair  # of several answers
        self.read: dict[str, None] = {}  # names, in the order of reading
        self.inside: dict[str, None] = {}  # names of unread keys inside a column
        self.more_answers = False  # more than two, and one pair of them
        self.turns_after = self.no_input = False  # are there turns after the answer, an input that says "no input"?

    def take(self, name: str) -> object:
        """The value of a column, which then counts as read."""
        self.read.setdefault(name)
        return self.columns.get(name)

    def text(self, name: str) -> str:
        """The text of a column; "" if it is absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{name}: needed text, got {got(value)}")
        return value or ""

    def turns(self, name: str) -> list[dict]:
        return turns_of(self.take(name), name, self.ignored)

    def prompt(self, name: str) -> str | list[dict]:
        """The prompt in a column, with the input, context, system text and history beside it."""
        prompt = self.take(name)
        if isinstance(prompt, str):
            texts = [prompt]
            for other in ("input", "context"):
                if other != name and not is_no_input(self.columns.get(other)):
                    texts.append(self.text(other))
                elif other != name and other in self.columns:
                    self.no_input |= not is_empty(self.take(other))
            prompt = "\n\n".join(text for text in texts if text)
            prompt = marked_prompt(prompt) or prompt
        else:
            prompt = self.turns(name)
            if prompt and prompt[-1]["role"] == "assistant":
                raise InputError(f"{name}: needed a user turn at the end, got an assistant turn; join it to the answer")
        return self.with_beginning(prompt)

    def with_beginning(self, prompt: str | list[dict]) -> str | list[dict]:
        """The prompt after the system text and the history of the row."""
        names = [name for name in SYSTEM if not is_empty(self.columns.get(name))]
        system = [self.text(name) for name in names]
        history = [] if is_empty(self.columns.get("history")) else history_turns(self.take("history"))
        if not system and not history:
            return prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        has_system = [turn["content"] for turn in [*history, *turns] if turn["role"] == "system"]
        if len({*system, *has_system}) > 1:
            raise InputError(f"{names[0]}: needed a system text, got {len({*system, *has_system})} different texts")
        begin = [] if has_system else [{"role": "system", "content": text} for text in system[:1]]
        return [*begin, *history, *turns]

    def margin(self) -> dict:
        """{"margin": number}: how much better the chosen answer is, or {}."""
        if "margin" in self.columns:
            return {"margin": number(self.take("margin"), "margin")}
        for name in ("score", "rating", "reward"):
            for keys in (f"{name}_chosen", f"{name}_rejected"), (f"chosen_{name}", f"rejected_{name}"):
                if all(key in self.columns for key in keys):
                    chosen, rejected = (number(self.take(key), key) for key in keys)
                    if chosen < rejected:
                        raise InputError(f"{keys[0]}: needed at least {keys[1]}, got {chosen} and {rejected}")
                    return {"margin": chosen - rejected}
        return {}

    def build(self, prompt: str | list[dict], **answers: list[dict]) -> dict:
        """The canonical row of a prompt and its answers. The tools of the row are read here."""
        names = [name for name in ("tools", "functions") if not is_empty(self.columns.get(name))]
        tools = [tool for name in names for tool in tools_of(self.take(name))]
        if isinstance(prompt, str) and tools:
            prompt = [{"role": "user", "content": prompt}]
        row: dict = {"prompt": prompt}
        if isinstance(prompt, list):
            row = {"prompt": render_chat(prompt, True, tools), TURNS: prompt}
        if tools:
            row["tools"] = tools
        for key, turns in answers.items():
            row[key] = plain_answer(turns)
            if not is_plain(turns):
                row[f"{key}_turns"] = turns
        return row
