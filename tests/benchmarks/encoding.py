"""Memory and time of encoding: python tests/benchmarks/encoding.py [ROWS]

Rows of about 450 letters, with a byte-level BPE of 2,048 tokens trained here. Each part runs in a process of its own,
because a process never gives its peak back.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minirlhf.data import encode_rows
from minirlhf.data.cache import cache_folder
from minirlhf.tasks.reviews import sft_rows
from minirlhf.text import Tokenizer

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000


def rows():
    """About 450 letters each."""
    short = sft_rows(20_000, 0)
    texts = [" ".join(row["response"] for row in short[i : i + 6]) for i in range(0, len(short) - 6, 3)]
    return [
        {"prompt": short[i % len(short)]["prompt"], "response": f"{i} {texts[i % len(texts)]}", "line": i}
        for i in range(ROWS)
    ]


def peak():
    """The peak of this process's memory in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def encode():
    data = rows()
    tokenizer = Tokenizer.train((row["response"] for row in data[:2000]), 2048)
    before, started = peak(), time.perf_counter()
    found = encode_rows(tokenizer, data, ("response",), context=1024, cache=cache_folder())
    arrays, ids = found.rows.arrays, len(found.rows.arrays.ids)
    size = sum(array.nbytes for array in arrays)
    letters = sum(len(row["prompt"]) + len(row["response"]) for row in data)
    print(
        f"{len(found.rows):,} rows, {letters / 1e6:.0f} MB, {ids / 1e6:.1f}M ids: {size / ids:.2f} bytes an id, "
        f"{(peak() - before) / ids:.1f} bytes an id at the peak, {time.perf_counter() - started:.1f} s"
    )


def one_long_answer():
    tokenizer = Tokenizer.train(["some words of text"] * 9, 300)
    row = {"prompt": "a", "response": "some words " * (200_000_000 // 11), "line": 1}
    before, started = peak(), time.perf_counter()
    found = encode_rows(tokenizer, [row], ("response",), context=1024)
    print(f"an answer of 200 MB: {found.summary('rows')}, {(peak() - before) / 1e6:.0f} MB more memory, "
          f"{time.perf_counter() - started:.1f} s")  # fmt: skip


def main():
    with tempfile.TemporaryDirectory() as folder:
        for part, cache in (("encode", ""), ("encode", folder), ("encode", folder), ("one_long_answer", "")):
            print(f"{part}{' with the cache' if cache else ''}: ", end="", flush=True)
            environment = os.environ | {"MINIRLHF_CACHE": cache, "PYTHONPATH": str(Path(__file__).parents[2])}
            program = f"import sys; sys.argv[1:] = ['{ROWS}']; from encoding import *; {part}()"
            subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent, env=environment)


if __name__ == "__main__":
    main()
