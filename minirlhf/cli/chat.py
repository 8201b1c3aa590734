"""Talk to a model in the terminal.

minirlhf chat DIR                       # a model, a finished run or a pipeline; /help shows the commands
minirlhf chat DIR --system "Be brief." --temperature 0
minirlhf chat DIR < questions.txt       # each line is a turn; stdout gets the answers, stderr all messages
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
/system TEXT  put a system turn before all turns; without TEXT: remove it
/clear        forget all turns except the system turn
/retry        sample the last answer again
/save FILE    write the conversation as a row {"messages": [...]} of JSONL; raw: a row {"prompt", "response"} a text
/help         show these commands
/quit         leave; so does Ctrl-D. Ctrl-C stops an answer"""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # control characters could clear the screen


@dataclass(frozen=True)
class ChatConfig:
    table: ClassVar[str] = "chat"

    system: str = ""  # [text] the system turn, before all turns
    temperature: float = 0.7  # [-] divides the logits; 0 takes the likeliest token
    top_p: float = 0.95  # [probability] sample from the likeliest tokens with this total probability; 1: from all
    max_tokens: int = 512  # [tokens] longest answer, at most half the context
    seed: int = 0  # [-] seed of the sampling noise
    template: str | None = None  # [-] built-in chat template, such as chatml; none: the template of the folder
    template_variables: str | None = None  # [JSON] values of the template: '{"enable_thinking": false}'
    raw: bool | None = None  # [-] send each line as typed, without turns; default: if the folder has no chat template
    adapter: str | None = None  # [folder] LoRA adapter to put on the model, in PEFT's layout
    device: str = "auto"  # [-] cuda, mps, cpu or auto
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # [-] auto: bf16 if the GPU supports it, else fp32


class Chat:
    """A conversation with a model."""

    def __init__(self, transformer: Transformer, tokenizer: Tokenizer, config: ChatConfig) -> None:
        self.transformer, self.tokenizer, self.seed = transformer, tokenizer, config.seed
        self.raw = not tokenizer.templates if config.raw is None else config.raw
        self.context = transformer.config.max_position_embeddings
        self.sampling = SamplingConfig(
            max_tokens=min(config.max_tokens, self.context // 2),
            temperature=config.temperature,
            top_p=config.top_p,
            stop_ids=tokenizer.eos_ids,
            stop_strings=() if self.raw else stop_strings(tokenizer),
        )
        self.turns: list[dict] = []  # of user and assistant in turn, without the system turn
        self.retries = 0  # of the last answer
        self.set_system(config.system)

    def set_system(self, text: str) -> None:
        if text and self.raw:
            raise InputError("system: each line is sent as typed, without turns; give --raw false or --template NAME")
        self.system = [{"role": "system", "content": text}] if text else []

    def clear(self) -> None:
        self.turns = []

    def say(self, text: str) -> None:
        """Answer a user's turn."""
        self._answer([*self.turns, {"role": "user", "content": text}], retries=0)

    def retry(self) -> None:
        """Answer the last user's turn again, with other noise."""
        if not self.turns:
            raise InputError("/retry: needed an answer to sample again, got no answer yet")
        self._answer(self.turns[:-1], self.retries + 1)

    def save(self, file: str) -> None:
        if not file or not self.turns:
            raise InputError(f"/save: needed {'a conversation' if file else 'the name of a file'}, got nothing")
        rows = [{"messages": self.system + self.turns}]
        if self.raw:
            texts = [turn["content"] for turn in self.turns]
            rows = [{"prompt": p, "response": r} for p, r in zip(texts[::2], texts[1::2], strict=True)]
        try:
            with open(file, "x", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise InputError(f"/save: needed a file that can be made, got {file}: {error.strerror}") from None
        note(f"saved {len(self.turns)} turns in {file}")

    def _answer(self, turns: list[dict], retries: int) -> None:
        """Show an answer while it is sampled, and add it to the turns, even if Ctrl-C stopped it."""
        limit = self.context - self.sampling.max_tokens
        ids, left_out = self._prompt(turns, limit)
        if left_out:
            note(
                f"the oldest {left_out} turns are left out: the context holds {self.context} tokens, "
                f"{self.sampling.max_tokens} of them for the answer"
            )
        stream, began = TextStream(self.tokenizer, self.sampling.stop_strings), time.perf_counter()

        def write(_: int, token: int) -> None:
            show(stream.push(token))
            check()

        try:
            with delayed_interrupts() as check:
                (completion,) = generate(
                    self.transformer,
                    [ids],
                    self.sampling,
                    seed=self.seed,
                    stream="chat",
                    keys=[(retries, len(turns), 0)],
                    tokenizer=self.tokenizer,
                    on_token=write,
                )
            end = ", cut off" if completion.finish == "length" else ""
        except KeyboardInterrupt:
            end = ", stopped"
        seconds = time.perf_counter() - began
        show(stream.end() + "\n")
        note(f"{len(stream.ids)} tokens, {len(stream.ids) / seconds:.1f} a second{end}")
        answer = stream.text if self.raw else stream.text.strip()
        self.turns, self.retries = [*turns, {"role": "assistant", "content": answer}], retries

    def _prompt(self, turns: list[dict], limit: int) -> tuple[list[int], int]:
        """-> (ids of the prompt, number of oldest turns that are left out). Raw: the last text alone."""
        if not self.raw:
            return fitting_prompt(self.tokenizer, self.system, turns, limit)
        (ids,) = self.tokenizer.encode_prompts([turns[-1]["content"]])
        if len(ids) > limit:
            raise InputError(f"this text needs {len(ids)} tokens, but {limit} fit; use fewer words")
        return ids, 0


def fitting_prompt(tokenizer: Tokenizer, system: list[dict], turns: list[dict], limit: int) -> tuple[list[int], int]:
    """-> (ids of the conversation, at most `limit`; number of oldest turns that were left out).

    turns: user and assistant in turn; the last is the user's. Turns are left out in pairs, so the first remaining turn
    is a user's. Raises: InputError if the last turn alone is too long.
    """
    for start in range(0, len(turns), 2):
        text = tokenizer.apply_chat_template(system + turns[start:], add_generation_prompt=True)
        ids = tokenizer.encode_rendered(text)
        if len(ids) <= limit:
            return ids, start
    raise InputError(
        f"this turn needs {len(ids)} tokens, with template and system turn, but {limit} fit; use fewer words"
    )


@contextmanager
def delayed_interrupts() -> Iterator[Callable[[], None]]:
    """Inside this context, Ctrl-C raises KeyboardInterrupt only when the yielded function is called.

    A KeyboardInterrupt that is raised inside a destructor would be lost.
    """
    interrupted = False

    def remember(number: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


def stop_strings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The headers of turns in the plain layout: it has no end token, so a model may go on with a user's turn."""
    template = tokenizer.templates.get("default")
    if template and template.source != LAYOUTS["plain"].template:
        return ()
    return tuple("\n" + header.strip() for header in HEADERS.values())


def obey(chat: Chat, line: str) -> bool:
    """Answer a turn or carry out a command. Returns False if the conversation ends."""
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
            note(f"no command {command}; /help shows all commands. To say this to the model, begin with a space.")
        case _ if line.strip():
            chat.say(line if chat.raw else line.strip())
    return True


def lines() -> Iterator[str]:
    """The lines of stdin, with a prompt if stdin is a terminal."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  arrow keys in `input`; some Python builds lack it
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
    """Show a message of the program, dim, on stderr."""
    print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def load(folder: str, config: ChatConfig, device: torch.device) -> tuple[Policy, Tokenizer]:
    """The model and tokenizer of a folder, ready for sampling. Raises: InputError."""
    path = resolve_model(folder)
    policy = load_policy(path, dtype=resolve_precision(config.precision, device))
    tokenizer = Tokenizer.load(path).with_template(config.template, config.template_variables)
    check_vocabulary(policy.transformer.config, tokenizer, path, tell=note)
    if config.adapter:
        load_adapter(policy, config.adapter)
    if not tokenizer.templates and config.raw is None:
        note(
            f"{path}: no chat template, so each line is sent as typed; --raw false sends turns of plain text, "
            "--template NAME takes a built-in template"
        )
    return policy.eval().to(device), tokenizer


def main(argv: list[str]) -> None:
    folder = argv.pop(0) if argv and not argv[0].startswith("-") else None
    config = parse_settings({"job": ChatConfig}, argv, description=__doc__)["job"]
    if folder is None:
        raise InputError("chat: needed a model's folder first, got none: minirlhf chat DIR, or see --help")
    if config.raw and (config.template or config.template_variables):
        raise InputError("--raw sends text without a template, so --template would do nothing; drop one")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(f"chat: needed one process, got {processes}; start it without torchrun")
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # a character that the terminal cannot encode must not end the program
    with session(device=config.device, precision=config.precision, seed=config.seed) as device:
        policy, tokenizer = load(folder, config, device)
        chat = Chat(policy.transformer, tokenizer, config)
        size = sum(p.numel() for p in policy.parameters())
        who = f"{resolve_model(folder)}: {size:,} parameters"
        note(f"{who}, a context of {chat.context} tokens, on {device}; /help shows the commands")
        for line in lines():
            try:
                if not obey(chat, line):
                    break
            except InputError as error:  # only this line is refused
                note(f"error: {error}")
