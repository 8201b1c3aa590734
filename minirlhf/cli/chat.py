"""Talk to a model in the terminal.

minirlhf chat DIR                       # a model's folder, or a finished run; /help shows the commands
minirlhf chat DIR --system "Be brief." --temperature 0
minirlhf chat DIR < questions.txt       # a turn a line: the answers go to stdout, all else to stderr
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from minirlhf.errors import InputError
from minirlhf.generation import SamplingConfig, generate
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.jobs.models import resolve_model
from minirlhf.model import Policy, Transformer, load_adapter, load_policy
from minirlhf.runtime.device import resolve_precision, session
from minirlhf.text import LAYOUTS, TextStream, Tokenizer
from minirlhf.text.chat import HEADERS
from minirlhf.training import parse_settings

HELP = """\
/system TEXT  tell the model this before all turns; without TEXT: nothing
/clear        forget all turns; what /system said stays
/retry        sample the last answer again
/save FILE    write the conversation as a row {"messages": [...]} of JSONL
/help         show this
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer"""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model must not clear the screen, or ring the bell


@dataclass(frozen=True)
class ChatConfig:
    system: str = ""  # [text] what the model is told before all turns
    temperature: float = 0.7  # [-] divides the logits; 0 is greedy
    top_p: float = 0.95  # [probability] sample among the likeliest tokens of this mass; 1 among all
    max_tokens: int = 512  # [tokens] longest answer; never more than half the context
    seed: int = 0  # [-] of sampling
    template: str | None = None  # [-] a built-in chat template instead of the folder's, such as chatml
    adapter: str | None = None  # [folder] put this LoRA adapter (PEFT's layout) on the model
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # [-] auto: bf16 on a GPU that has it, fp32 elsewhere


class Chat:
    """A conversation: what was said, and the model that answers."""

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, config: ChatConfig) -> None:
        self.transformer, self.tokenizer, self.seed = transformer, tokenizer, config.seed
        self.context = transformer.config.max_position_embeddings
        self.sampling = SamplingConfig(
            max_tokens=min(config.max_tokens, self.context // 2),
            temperature=config.temperature,
            top_p=config.top_p,
            stop_ids=tokenizer.eos_ids,
            stop_strings=stop_strings(tokenizer),
        )
        self.turns: list[dict] = []  # user and assistant, one after the other
        self.tries = 0  # how often the last answer was sampled again
        self.set_system(config.system)

    def set_system(self, text: str) -> None:
        self.system = [{"role": "system", "content": text}] if text else []

    def clear(self) -> None:
        self.turns = []

    def say(self, text: str) -> None:
        """Answer a turn of the user's."""
        self._answer([*self.turns, {"role": "user", "content": text}], tries=0)

    def retry(self) -> None:
        """Answer the last turn again, with other noise."""
        if not self.turns:
            raise InputError("/retry: needed an answer to sample again, there is none yet")
        self._answer(self.turns[:-1], self.tries + 1)

    def save(self, file: str) -> None:
        if not file or not self.turns:
            raise InputError(f"/save: needed {'something said' if file else 'the name of a file'}, got nothing")
        row = json.dumps({"messages": self.system + self.turns}, ensure_ascii=False)
        try:
            with open(file, "x", encoding="utf-8") as out:
                out.write(row + "\n")
        except OSError as error:
            raise InputError(f"/save: needed a file that can be made, got {file}: {error.strerror}") from None
        note(f"saved {len(self.turns)} turns in {file}")

    def _answer(self, turns: list[dict], tries: int) -> None:
        """Write an answer as it is sampled; it becomes a turn, even where Ctrl-C cut it short."""
        room = self.sampling.max_tokens
        ids, left_out = fitting_prompt(self.tokenizer, self.system, turns, self.context - room)
        if left_out:
            note(f"the oldest {left_out} turns are left out: the context holds {self.context} tokens, {room} to answer")
        stream, began = TextStream(self.tokenizer, self.sampling.stop_strings), time.perf_counter()

        def write(_: int, token: int) -> None:
            show(stream.push(token))
            check()

        try:
            with noted_interrupts() as check:
                (completion,) = generate(
                    self.transformer,
                    [ids],
                    self.sampling,
                    seed=self.seed,
                    stream="chat",
                    keys=[(tries, len(turns), 0)],
                    tokenizer=self.tokenizer,
                    on_token=write,
                )
            end = ", cut off" if completion.finish == "length" else ""
        except KeyboardInterrupt:
            end = ", stopped"
        seconds = time.perf_counter() - began
        show(stream.end() + "\n")
        note(f"{len(stream.ids)} tokens, {len(stream.ids) / seconds:.1f} a second{end}")
        self.turns, self.tries = [*turns, {"role": "assistant", "content": stream.text.strip()}], tries


def fitting_prompt(tokenizer: Tokenizer, system: list[dict], turns: list[dict], limit: int) -> tuple[list[int], int]:
    """The ids of a conversation, at most `limit`, and how many of its oldest turns were left out for that.

    turns: user and assistant, one after the other, the user's last. They go in pairs, so that the first that is left is
    the user's.   Raises: InputError if even the last turn is too long.
    """
    for start in range(0, len(turns), 2):
        text = tokenizer.apply_chat_template(system + turns[start:], add_generation_prompt=True)
        ids = tokenizer.encode_rendered(text)
        if len(ids) <= limit:
            return ids, start
    raise InputError(
        f"that is {len(ids)} tokens, template and system turn included; {limit} fit: say it in fewer words"
    )


@contextmanager
def noted_interrupts() -> Iterator[Callable[[], None]]:
    """Within, Ctrl-C is raised where what is yielded is called: raised anywhere, it may end a destructor alone."""
    noted = False

    def note_it(number: int, frame: Any) -> None:
        nonlocal noted
        noted = True

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note_it)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def stop_strings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """In the plain layout, where no token ends a turn, a model may go on with the user's next one."""
    template = tokenizer.templates.get("default")
    if template and template.source != LAYOUTS["plain"].template:
        return ()
    return tuple("\n" + header.strip() for header in HEADERS.values())


def obey(chat: Chat, line: str) -> bool:
    """Do what a line asks for, a turn or a command -> whether the conversation goes on."""
    command, _, rest = line.partition(" ")
    match command:
        case "/quit":
            return False
        case "/help":
            note(HELP)
        case "/system":
            chat.set_system(rest.strip())
        case "/clear":
            chat.clear()
        case "/retry":
            chat.retry()
        case "/save":
            chat.save(rest.strip())
        case _ if command.startswith("/"):
            note(f"no command {command}; /help shows them. To say this to the model, begin with a space.")
        case _ if line.strip():
            chat.say(line.strip())
    return True


def lines() -> Iterator[str]:
    """What somebody types, or the lines of stdin where it is no terminal."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  arrow keys in `input`; Windows has none
    while True:
        try:
            yield input("\n> ")
        except KeyboardInterrupt:
            note("\n/quit or Ctrl-D leaves")
        except EOFError:
            return print()


def show(text: str) -> None:
    print(UNPRINTABLE.sub("\ufffd", text), end="", flush=True)


def note(text: str) -> None:
    """Say something that is not the model's."""
    print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def load(folder: str, config: ChatConfig, device: torch.device) -> tuple[Policy, Tokenizer]:
    """The model in a folder, ready to sample from, and its tokenizer. Raises: InputError."""
    path = resolve_model(folder)
    policy = load_policy(path, dtype=resolve_precision(config.precision, device))
    tokenizer = Tokenizer.load(path)
    check_vocabulary(policy.transformer.config, tokenizer, path)
    if config.adapter:
        load_adapter(policy, config.adapter)
    if config.template:
        tokenizer = tokenizer.with_template(config.template)
    if not tokenizer.templates:
        note(f"{path}: no chat template, so turns are plain text; --template NAME takes a built-in one")
    return policy.eval().to(device), tokenizer


def main(argv: list[str]) -> None:
    folder = argv.pop(0) if argv and not argv[0].startswith("-") else None
    config = parse_settings({"job": ChatConfig}, argv, description=__doc__)["job"]
    if folder is None:
        raise InputError("chat: needed a model's folder first, got none: minirlhf chat DIR, or see --help")
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # what the terminal's encoding lacks must not end the conversation
    with session(device=config.device, precision=config.precision, seed=config.seed) as device:
        policy, tokenizer = load(folder, config, device)
        chat = Chat(policy.transformer, tokenizer, config)
        size = sum(p.numel() for p in policy.parameters())
        note(f"{size:,} parameters, a context of {chat.context} tokens, on {device}; /help shows the commands")
        for line in lines():
            try:
                if not obey(chat, line):
                    break
            except InputError as error:  # of this line alone
                note(f"error: {error}")
