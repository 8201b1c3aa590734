"""A Python interpreter as a tool. No environment has it unless you make it with `python_tool`.

The code of a call runs in a child process; `rewards/child_process.py` says how far its protection goes, and how far it
does not.
"""

from __future__ import annotations

from collections.abc import Callable

from minirlhf.environments.tool import LETTERS
from minirlhf.environments.tools.failure import ToolError
from minirlhf.rewards.child_process import check_isolation, run_python


def python_tool(
    *, seconds: float = 5.0, megabytes: int = 256, letters: int = 2000, isolated: bool = True
) -> Callable[[str], str]:
    """The tool `python`: a program's output, or the end of its traceback. Each call is a new program.

    Args:
        seconds:   of processor time and of waiting.   megabytes: of memory.   letters: of the output that are shown.
        isolated:  False allows the code the network and the files of this machine, where no isolation is possible.
    Raises: InputError if the machine cannot isolate a child process, and `isolated` is not False.
    """
    if isolated:
        check_isolation()

    def python(code: str) -> str:
        """Run a Python program. The answer is all that it prints.

        Args:
            code: a program that prints its result
        """
        limits = {"seconds": seconds, "megabytes": megabytes, "output_bytes": 4 * letters}
        result = run_python(code, isolated=isolated, **limits)
        if result.error:
            raise ToolError(end_of(f"{result.stdout}\n{result.error}"))
        output = result.stdout if len(result.stdout) <= letters else f"{result.stdout[:letters]}..."
        return output.strip() or "(no output)"

    return python


def end_of(text: str) -> str:
    """The end of a text, as long as an error of a tool may be. A longer last line stays whole: it is the error."""
    last, text = (" ".join(part.split()) for part in (text.splitlines()[-1], text))
    if len(text) <= LETTERS:
        return text
    return last if len(last) > LETTERS - 4 else f"... {text[4 - LETTERS :]}"
