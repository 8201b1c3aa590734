"""Rows per second and added memory of reading a data file, in turn, and 10,000 rows again by position.

python tests/benchmarks/reading.py --rows 1000000

Each format is read in a process of its own, so that the peak is that of the format alone. Seconds are those of the
processor, so other programs disturb them little. The line "loop" is a loop over the lines of the JSONL file with
json.loads.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from minirlhf.data.reading import open_values

FORMATS = ("loop", "rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "gb18030.csv", "rows.txt")
AGAIN = 10_000  # rows that are read again
WORDS = "the model reads a row and learns its answer 的 模型 读 一行".split()  # noqa: SIM905


def rows(count: int) -> Iterator[dict]:
    rng = random.Random(0)
    texts = [[" ".join(rng.choices(WORDS, k=rng.randrange(10, most))) for most in (30, 90)] for _ in range(1000)]
    for i in range(count):
        yield {"id": i, "prompt": texts[i % 1000][0], "response": texts[i % 1000][1]}


def write(folder: Path, count: int) -> None:
    with (
        open(folder / "rows.jsonl", "w") as lines,
        gzip.open(folder / "rows.jsonl.gz", "wt", compresslevel=1) as packed,
        open(folder / "rows.json", "w") as array,
        open(folder / "rows.csv", "w", newline="") as table,
        open(folder / "gb18030.csv", "w", newline="", encoding="gb18030") as foreign,
        open(folder / "rows.txt", "w") as text,
    ):
        tables = [csv.DictWriter(file, ["id", "prompt", "response"]) for file in (table, foreign)]
        for writer in tables:
            writer.writeheader()
        for i, row in enumerate(rows(count)):
            line = json.dumps(row, ensure_ascii=False)
            lines.write(line + "\n")
            packed.write(line + "\n")
            array.write(("[\n" if i == 0 else ",\n") + line)
            for writer in tables:
                writer.writerow(row)
            text.write(row["response"] + "\n")
        array.write("\n]\n")


def measure(name: str, folder: Path) -> None:
    """Print: rows, MB of the file, seconds to open, seconds of the loop, seconds of the second reading, peak in MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, begin = folder / (FORMATS[1] if name == "loop" else name), time.process_time()
    if name == "loop":
        with open(path, encoding="utf-8") as file:
            count, positions, opened = sum(1 for line in file if json.loads(line)), [], begin
    else:
        values = open_values(path, encoding="gb18030" if "gb18030" in name else None)
        opened, count, positions = time.process_time(), 0, []
        for source in values:
            assert isinstance(source.value, dict)
            count += 1
            if count % 100 == 0 and len(positions) < AGAIN:
                positions.append(source.at)
    read = time.process_time()
    random.Random(0).shuffle(positions)
    for at in positions:
        values.at(at)
    again = (time.process_time() - read) / max(1, len(positions))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(count, path.stat().st_size / 1e6, opened - begin, read - opened, again, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=2, metavar=("FORMAT", "FOLDER"), help="used by this program itself")
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure[0], Path(args.measure[1]))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.rows)
        print("| format | MB | seconds to open | rows/s, opening included | microseconds a row again | added memory |")
        for name in FORMATS:
            command = [sys.executable, __file__, "--measure", name, folder]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            count, size, opened, read, again, peak = map(float, answer.split())
            speed = count / (opened + read)
            print(
                f"| {name} | {size:.0f} | {opened:.1f} | {speed:,.0f} | {again * 1e6:.0f} | {peak:.0f} MB |", flush=True
            )


if __name__ == "__main__":
    main()
