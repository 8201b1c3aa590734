"""Time and peak memory of loading a model folder, against a plain safetensors read of the same files.

python tests/benchmarks/loading.py [--family llama] [--gigabytes 1.5] [--shards 3] [--rounds 5]

Both readers run in fresh processes, in turns. A first round reads every file, so later rounds read from the page cache.
Two times are printed: until the tensors exist, and until every byte was read. safetensors maps a file without reading
it, and so does load_pretrained if no weight is converted. So both readers then sum every tensor. If the dtype changes,
the plain read converts tensor by tensor with one open file; it never transposes GPT-2's weights.
Peak memory is the largest resident set (VmHWM) minus the resident set after the imports. Pages of mapped files count,
although the system could take them back. The number in brackets is peak memory / size of the weights or of the files,
whichever is larger.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minirlhf.model import ModelConfig, Transformer, load_pretrained
from minirlhf.model.names import name_in_family
from minirlhf.pretrained.config_json import config_to
from minirlhf.pretrained.families import is_transposed
from minirlhf.pretrained.model_classes import architecture

CASES = {  # (dtype in the file, dtype to load)
    "bf16": (torch.bfloat16, None),
    "fp32": (torch.float32, None),
    "bf16 to fp32": (torch.bfloat16, torch.float32),
    "fp32 to bf16": (torch.float32, torch.bfloat16),
}
SHAPE = {"vocab_size": 32_000, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8}
SHAPE |= {"intermediate_size": 5632, "tie_word_embeddings": False}
GPT2 = {"norm": "layer", "gated_mlp": False, "fused_projections": True, "positions": "learned", "attention_bias": True}
GPT2 |= {"output_bias": True, "mlp_bias": True, "num_key_value_heads": 16, "hidden_act": "gelu_tanh"}


def make(folder: Path, family: str, dtype: torch.dtype, size: float, shards: int) -> None:
    """A random model of about `size` bytes, in `shards` files with an index, or in one file."""

    def shapes(layers: int) -> tuple[ModelConfig, dict[str, torch.Size]]:
        config = ModelConfig(num_hidden_layers=layers, model_type=family, **SHAPE | (GPT2 if family == "gpt2" else {}))
        with torch.device("meta"):
            return config, {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}

    sizes = [sum(shape.numel() for shape in shapes(layers)[1].values()) * dtype.itemsize for layers in (1, 2)]
    config, shape_of = shapes(1 + round((size - sizes[0]) / (sizes[1] - sizes[0])))
    names, weight_map = list(shape_of), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        part = {}
        for name in names[shard * len(names) // shards : (shard + 1) * len(names) // shards]:
            family_name = name_in_family(family, name)
            shape = shape_of[name][::-1] if is_transposed(family, family_name) else shape_of[name]
            part[family_name] = torch.empty(shape, dtype=dtype).normal_(0, 0.02)
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    raw = config_to(config) | {"architectures": [architecture(family, Transformer)]}
    (folder / "config.json").write_text(json.dumps(raw))


def plain_read(folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        if dtype is None:
            weights |= load_file(path)
        else:
            with safe_open(path, "pt") as file:
                weights |= {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118
    return weights


def resident(key: str) -> int:
    """Bytes of resident memory: now (key VmRSS), or at most so far (key VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(reader: str, folder: Path, dtype: torch.dtype | None) -> None:
    """Print seconds until the tensors exist, seconds until all bytes are read, peak memory and size in bytes."""
    torch.ones(1, dtype=torch.bfloat16).sum()  # the libraries of a first operation count for neither reader
    before, started = resident("VmRSS"), time.perf_counter()
    weights = plain_read(folder, dtype) if reader == "plain" else load_pretrained(folder, dtype).state_dict()
    opened = time.perf_counter() - started
    for tensor in weights.values():
        tensor.sum()
    seconds, peak = time.perf_counter() - started, resident("VmHWM") - before
    size = sum(tensor.nbytes for tensor in weights.values())
    print(opened, seconds, peak, max(size, sum(path.stat().st_size for path in folder.glob("*.safetensors"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--measure", nargs=3, metavar=("READER", "FOLDER", "CASE"))
    args = parser.parse_args()
    if args.measure:
        reader, folder, case = args.measure
        return measure(reader, Path(folder), CASES[case][1])
    print(f"{args.family}, {args.gigabytes} GB, {args.shards} files, medians of {args.rounds} rounds")
    for case in args.cases:
        found: dict[str, list[list[float]]] = {"plain": [], "load_pretrained": []}
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), args.family, CASES[case][0], args.gigabytes * 1e9, args.shards)
            for turn in range(args.rounds + 1):
                for reader, runs in list(found.items())[:: 1 if turn % 2 else -1]:
                    command = [sys.executable, __file__, "--measure", reader, folder, case]
                    answer = subprocess.run(command, check=True, capture_output=True, text=True)
                    if turn:  # the first round fills the page cache
                        runs.append([float(x) for x in answer.stdout.split()])
        for reader, runs in found.items():
            opened, seconds, peak, size = (statistics.median(run[i] for run in runs) for i in range(4))
            speed = statistics.median(plain[1] / run[1] for run, plain in zip(runs, found["plain"], strict=True))
            print(
                f"{case:<13} {reader:<16} {opened:6.3f} s {seconds:6.3f} s  speed {speed:4.2f}  "
                f"peak {peak / 1e9:5.2f} of {size / 1e9:4.2f} GB ({peak / size:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
