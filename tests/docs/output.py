"""The block of README.md that shows the output of the main job, made from the output of a finished run.

python examples/ppo.py > printed.txt
python tests/docs/output.py printed.txt

The block is shortened: of each table of evaluations the first and the last row, without its trends, and of the samples
the first two.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"(<!-- output of examples/ppo.py -->\n```text\n)(.*?)(```\n)", re.DOTALL)
SAMPLES = "prompt  "  # the header of the samples begins so
ROWS = re.compile(r"^(( +\d+)  .*\n)(?: +\d+  .*\n)+( +\d+  .*\n)", re.MULTILINE)  # of a table of evaluations
MORE_SAMPLES = re.compile(rf"^({SAMPLES}.*\n[- ]+\n(?:(?:.+\n)+\n){{2}})(?:(?:.+\n)+\n)*", re.MULTILINE)


def shortened(printed: str) -> str:
    """The output with the first and the last row of each table of evaluations, and the first two samples."""
    printed = re.sub(r"(?m)^ *trend  .*\n", "", printed)
    few_rows = ROWS.sub(lambda found: f"{found[1]}{'...'.rjust(len(found[2]))}\n{found[3]}", printed)
    return MORE_SAMPLES.sub(r"\1", few_rows).strip() + "\n"


def shape(text: str) -> list[str]:
    """The lines without numbers, widths and samples: what every run prints."""
    text = re.sub(rf"(?ms)^{SAMPLES}.*?(?=^reward model accuracy)", lambda found: found[0].split("\n")[0] + "\n", text)
    text = re.sub(r"-?\d[\d,.]*(e[+-]\d+)?%?", "#", text)
    return [" ".join(re.sub(r"-{2,}", "-", line).split()) for line in text.split("\n") if line.strip()]


def main() -> None:
    text = README.read_text(encoding="utf-8")
    block = shortened(Path(sys.argv[1]).read_text(encoding="utf-8"))
    README.write_text(BLOCK.sub(lambda found: found[1] + block + found[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
