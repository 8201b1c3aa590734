"""minirlhf: RLHF for language models. `minirlhf COMMAND --help` shows the settings of a command.

data     look at rows; check, split, merge and convert them
         minirlhf data check rows.jsonl
train    train a model, from SFT to PPO; alone, the word lists the programs
         minirlhf train ppo --data rows.jsonl
eval     measure models, or ask people about their answers
         minirlhf eval runs/ppo-001 --data rows.jsonl
chat     talk to a model in the terminal
         minirlhf chat runs/ppo-001
adapter  list, show and merge LoRA adapters
         minirlhf adapter list runs
check    name all that would stop a job, before the job begins
         minirlhf check ppo --data rows.jsonl
plan     the memory of a job on each GPU, and settings that fit
         minirlhf plan --model DIR --algorithm grpo --gpus 8 --memory 80
run      list, show, follow and draw runs; find the best run
         minirlhf run list runs
doctor   name the faults of a run in words
         minirlhf doctor runs/ppo-001
"""

from __future__ import annotations

import importlib
import sys

from minirlhf.errors import InputError, exits_cleanly, shown

# Command -> its file. A file is loaded only when its command is called, so that `minirlhf --help` loads no torch.
COMMANDS = {
    "data": "minirlhf.cli.data",
    "train": "minirlhf.cli.train",
    "eval": "minirlhf.cli.eval",
    "chat": "minirlhf.cli.chat",
    "adapter": "minirlhf.cli.adapter",
    "check": "minirlhf.cli.check",
    "plan": "minirlhf.cli.plan",
    "run": "minirlhf.cli.run",
    "doctor": "minirlhf.cli.doctor",
}


@exits_cleanly
def main() -> None:
    """Call the command that the first word names, with the words after it."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        return print(__doc__.strip())
    if word not in COMMANDS:
        from minirlhf.nearest import nearest

        known = ", ".join(COMMANDS)
        raise InputError(f"minirlhf: needed a command ({known}), got {shown(word)}{nearest(word, COMMANDS)}")
    importlib.import_module(COMMANDS[word]).main(rest)


if __name__ == "__main__":
    main()
