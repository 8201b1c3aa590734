"""Every render of a stranger's template ends soon, in bounded memory, with an answer or one InputError."""

from __future__ import annotations

import gc
import json
import re
import signal

import pytest

from minirlhf.errors import InputError
from minirlhf.text import LAYOUTS, ChatTemplate
from minirlhf.text.checkpoint_tokenizer import sandbox, template
from minirlhf.text.checkpoint_tokenizer.worker import Limits, Worker, limits_for

CALM, NOW = {"role": "user", "content": "Hi"}, {"role": "user", "content": "now"}
LOOPS = "{% for x in range(99999) %}{% for x in range(99999) %}"
END_LOOPS = "{% endfor %}{% endfor %}"
TIME, MEMORY = "it ran for more than 1 s of processor time", "it needs more than 512 MiB"
UNSAFE = "it refuses this conversation: access to attribute"
ATTACKS = {
    "time: nested loops": (LOOPS + END_LOOPS, TIME),
    "time: a number of 100 million digits": ("{{ (messages[0].content | length * 10 ** 9) ** 99999999 }}", TIME),
    "time: macros that call themselves twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        TIME,
    ),
    "memory: one multiplication": ("{{ ('x' * 10 ** 10) | length }}", MEMORY),
    "memory: a filter": ("{{ 'x' | center(10 ** 10) | length }}", MEMORY),
    "memory: a format": ("{{ '%9999999999d' % 1 }}", MEMORY),
    "memory: a list": ("{{ [1] | batch(10 ** 9) | map('list') | list | length }}{{ [1] * 10 ** 9 }}", MEMORY),
    "memory: doubling": (
        "{% set n = namespace(t='x') %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        MEMORY,
    ),
    "output: nested loops": (LOOPS + "hello" + END_LOOPS, "it wrote more than 1,00"),
    "output: one string": ("{{ 'x' * 10 ** 7 }}", "it wrote more than 1,00"),
    "recursion without end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it refuses this conversation: max"),
    "range without end": ("{% for x in range(10 ** 9) %}{% endfor %}", "it refuses this conversation: Range too big"),
    "attribute of a class": ("{{ ''.__class__.__mro__ }}", UNSAFE),
    "attribute by a filter": ("{{ (messages | attr('__class__')).__base__ }}", "it refuses this conversation: "),
    "import of a module": ("{{ cycler.__init__.__globals__.os.system('true') }}", UNSAFE),
    "import of a file": ("{% import '/etc/passwd' as x %}", "it refuses this conversation: no loader"),
    "change of the conversation": ("{{ messages.clear() }}", UNSAFE),
}


def waiting(attack):
    """A template that is harmless on arrival."""
    return "{% if messages[0].content == 'now' %}" + attack + "{% endif %}"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("attack", "reason"), ATTACKS.values(), ids=ATTACKS.keys())
def test_a_template_that_waits_for_a_word_is_stopped(attack, reason):
    chat = ChatTemplate(waiting(attack))
    assert chat.render([CALM]) == ("", [])
    with pytest.raises(InputError, match=f"^chat template: {re.escape(reason)}") as error:
        chat.render([NOW])
    assert "\n" not in str(error.value)


def test_the_sandbox_alone_bounds_neither_sizes_nor_steps():
    # This is why there is a child process. With larger numbers the same templates take gigabytes and hours.
    sizes = sandbox.compiled("{{ 'x' * 10 ** 7 }}{{ 'x' | center(10 ** 7) }}{{ 'x'.ljust(10 ** 7) }}")
    assert len(sandbox.reply(sizes, {}, max_characters=10**8)["text"]) == 3 * 10**7
    steps = sandbox.compiled(
        "{% set n = namespace(i=0) %}{% for x in range(200) %}{% for x in range(200) %}{% set n.i = n.i + 1 %}"
        "{% endfor %}{% endfor %}{{ n.i }}"
    )
    assert sandbox.reply(steps, {}, max_characters=10)["text"] == "40000"


def test_limits_grow_with_the_conversation():
    assert limits_for(0) == Limits(seconds=1.0, patience=30.0, memory=2**29, characters=10**6)
    assert limits_for(500_000) == Limits(1.5, patience=45.0, memory=2**29 + 32_000_000, characters=11_000_000)


def test_a_long_conversation_is_rendered():
    chat = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    text = "\U0001f600" * 10**5
    assert chat.render([CALM | {"content": text}] * 3)[0] == text * 3


def worker(source, *trials):
    return Worker(source, list(trials))


def data(**values):
    return json.dumps(values)


def test_a_worker_answers_line_by_line():
    echo = worker("{{ word }}")
    assert echo.start() is None
    for word in ("a", "b\nc", "\u00e9 \U0001f600", "\ud800"):
        assert echo.reply(data(word=word)) == {"text": word, "spans": []}


def test_a_template_that_ran_away_is_not_run_again():
    endless = worker("{% if now %}" + LOOPS + END_LOOPS + "{% endif %}")
    assert endless.start() is None
    child, fault = endless.process, {"fault": TIME}
    assert endless.reply(data(now=True)) == fault
    assert endless.reply(data(now=True)) == endless.reply(data(now=False)) == fault
    assert endless.process is child and child.poll() is not None


def test_a_refused_conversation_does_not_stop_the_template():
    strict = worker("{{ word.upper() }}")
    strict.start()
    assert strict.reply(data(word=1)) == {"refused": "'int object' has no attribute 'upper'", "unsafe": False}
    assert strict.reply(data(word="a"))["text"] == "A"


def test_a_trial_may_be_refused_but_must_not_leave_the_sandbox():
    assert worker("{{ raise_exception('no') }}", {}).start() is None
    fault = worker("{{ ''.__class__.__mro__ }}", {}).start()
    assert fault.startswith("it tries to leave the sandbox: access to attribute '__class__'")


def test_an_interrupt_leaves_no_answer_behind():
    class Interrupted:
        def fileno(self):
            raise KeyboardInterrupt

        def close(self):
            pass

    echo = worker("{{ word }}")
    echo.start()
    echo.process.stdout = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        echo.reply(data(word="first"))
    assert echo.reply(data(word="second"))["text"] == "second"


@pytest.mark.parametrize("size", [1, 10**6], ids=["reading", "writing"])  # a pipe holds 65,536 bytes
def test_a_child_that_is_stopped_does_not_block(monkeypatch, size):
    echo = worker("{{ word }}")
    assert echo.start() is None and echo.reply(data(word="a"))["text"] == "a"
    monkeypatch.setattr("minirlhf.text.checkpoint_tokenizer.worker.PATIENCE", 0.1)
    child = echo.process
    child.send_signal(signal.SIGSTOP)
    seconds = f"{limits_for(size).patience:.0f}"
    fault = {"fault": f"its process gave no answer for {seconds} s: stopped, or the machine too busy"}
    assert echo.reply(data(word="b" * size)) == echo.reply(data(word="c")) == fault
    assert child.poll() == -signal.SIGKILL


def test_a_fork_of_the_process_gets_a_child_of_its_own():
    echo = worker("{{ word }}")
    echo.start()
    first, echo.pid = echo.process, -1  # as if another process had started the child
    assert echo.reply(data(word="a"))["text"] == "a" and echo.process is not first


def test_a_child_that_is_killed_is_a_fault():
    echo = worker("{{ word }}")
    echo.start()
    echo.process.kill()
    assert echo.reply(data(word="a")) == {"fault": "its process ended with -9: "}


def test_the_child_ends_with_its_worker():
    echo = worker("x")
    echo.start()
    child = echo.process
    assert child.poll() is None
    del echo
    gc.collect()
    assert child.poll() == 0


def test_built_in_layouts_need_no_child(monkeypatch):
    monkeypatch.setattr(template, "Worker", None)
    chat = ChatTemplate(LAYOUTS["zephyr"].template, {"eos_token": "<end of this test>"})
    assert chat.render([CALM])[0] == "<|user|>\nHi<end of this test>\n"
    with pytest.raises(InputError, match="^chat template: it refuses this conversation: .*; change the turns or the"):
        ChatTemplate(LAYOUTS["gemma"].template, {"eos_token": "<end of this test>"}).render([CALM, CALM])
