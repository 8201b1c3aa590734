"""minirlhf: RLHF for language models. Each command has its own --help.

minirlhf adapter list | show | merge    # look at LoRA adapters, merge them
minirlhf chat DIR                       # talk to a model in the terminal
"""

from __future__ import annotations

import sys

from minirlhf.cli import adapter, chat
from minirlhf.errors import InputError, exits_cleanly, shown

COMMANDS = {"adapter": adapter.main, "chat": chat.main}


@exits_cleanly
def main() -> None:
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        return print(__doc__.strip())
    if word not in COMMANDS:
        raise InputError(f"minirlhf: the first word must be one of {', '.join(COMMANDS)}, got {shown(word)}")
    COMMANDS[word](rest)


if __name__ == "__main__":
    main()
