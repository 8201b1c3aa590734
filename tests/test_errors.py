"""Messages that hold foreign values: one printable line of bounded length."""

import os
import subprocess
import sys

import pytest

from minirlhf.errors import InputError, exits_cleanly, shown

# newline, escape, a C1 control, delete, a bidi override, a zero-width space, a line separator, half a surrogate pair
UNPRINTABLE = "\n\x1b\x9b\x7f\u202e\u200b\u2028\ud83d"


@pytest.mark.parametrize("value", ["", "ordinary", "naïve 日本", "it's", 3, 2.5, True, None, [], {}, ["a", {"b": [1]}]])
def test_a_short_printable_value_is_shown_as_repr(value):
    assert shown(value) == repr(value)


@pytest.mark.parametrize("value", [UNPRINTABLE, [UNPRINTABLE], {UNPRINTABLE: UNPRINTABLE}, b"\n\xff", float("nan")])
def test_what_is_shown_is_printable_ascii_where_the_value_is_not(value):
    assert shown(value, 500).isprintable()
    assert shown(value, 500).isascii()


def test_an_object_that_cannot_be_written_is_shown_by_its_class():
    class Broken:
        def __repr__(self):
            raise ValueError

    assert shown([Broken(), 3]) == "[<Broken>, 3]"


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("a" * 100_000, "...' (100,000 letters)"),
        ("\x1b" * 100_000, "(100,000 letters)"),
        ([["a" * 100_000] * 1000] * 100_000, "(100,000 entries)"),
        ({f"key {i}": "\u202e" * 1000 for i in range(1000)}, "(1,000 entries)"),
        (deep(50_000), "(1 entries)"),
        (1 << 100_000, "..."),
        ([-(1 << 100_000)], "(1 entries)"),
    ],
    ids=["text", "controls", "lists", "object", "deep", "number", "number in a list"],
)
def test_a_long_value_is_cut_and_says_its_length(value, size):
    text = shown(value)
    assert text.isprintable()
    assert "..." in text
    assert text.endswith(size)
    assert len(text) <= 80 + len("...' (100,000 entries)")
    assert len(shown(value, 20)) <= 20 + len("...' (100,000 entries)")


def test_exactly_the_longest_text_is_whole():
    assert shown("a" * 80) == repr("a" * 80)
    assert shown("a" * 81) == "'" + "a" * 79 + "...' (81 letters)"


def test_an_input_error_is_one_printable_line_of_bounded_length():
    message = str(InputError(f"a{UNPRINTABLE}b" + "c" * 100_000 + "remedy"))
    assert message.isprintable()
    assert message.startswith("a\\n\\x1b")
    assert message.endswith("remedy")
    assert len(message) < 5000
    assert str(InputError(InputError("one: needed two"))) == "one: needed two"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_program_prints_every_text_and_every_error_in_every_encoding(encoding):
    program = r"""
from minirlhf.errors import InputError, exits_cleanly
@exits_cleanly
def main():
    print("sample \ud83d 日本")
    raise InputError("path \udcff\n\x1b[2J 日本")
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 2
    out, error = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert "sample \\ud83d" in out
    assert error.startswith("error: path \\udcff\\n\\x1b[2J ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
CPU += "8 bytes. Error code 12 (Cannot allocate memory)"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError(CPU), "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "CUDA out of memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_of_an_allocator_ends_a_program_with_one_line(error, text, capsys):
    @exits_cleanly
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and text in lines[0] and "lower microbatch_tokens" in lines[0]


def test_other_errors_keep_their_traceback():
    @exits_cleanly
    def main():
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        main()


PIPES = """
import os, sys
from minirlhf.errors import exits_cleanly

@exits_cleanly
def main():
    print("output" * 1000, flush=True)
    source, sink = os.pipe()
    os.close(source)
    os.write(sink, b"question")

main()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("reader", ["lives", "ended"])
def test_only_the_pipe_of_the_output_ends_a_program_in_silence(reader, unbuffered):
    source, sink = os.pipe()
    if reader == "ended":
        os.close(source)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-c", PIPES], stdout=sink, stderr=subprocess.PIPE, env=environment, text=True
    )
    os.close(sink)
    if reader == "ended":
        assert (done.returncode, done.stderr) == (141, "")
    else:
        os.close(source)
        assert done.returncode == 1 and done.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")
