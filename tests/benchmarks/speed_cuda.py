"""On a GPU: sampling against the memory's bandwidth, and SFT against the rate of matrix products.

python tests/benchmarks/speed_cuda.py [--shapes 0.5B,1.5B] [--batch 16] [--prompt 128] [--new 256] [--reps 3]

Shapes of Qwen2.5, random weights, bf16. Sampling repeats its steps as CUDA graphs, and "launched" is the same without
them. Every decoded token reads all weights once and the cache of its row, so the
roofline is the bandwidth over these bytes; the bandwidth is that of a copy on the same GPU. MFU is 6 numbers of
operations per weight and token over the rate of a large product in bf16 on the same GPU; attention is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

import torch

from minirlhf.algorithms import SFTConfig, SFTTrainer
from minirlhf.data.batches import Draw
from minirlhf.data.encoding import EncodedRow
from minirlhf.generation import SamplingConfig, generate, graphs
from minirlhf.model import ModelConfig, Policy, Transformer
from minirlhf.runtime import session
from minirlhf.text import Tokenizer

QWEN = {"vocab_size": 151_936, "num_key_value_heads": 2, "attention_bias": True, "model_type": "qwen2"}
QWEN |= {"max_position_embeddings": 32_768}
SHAPES = {
    "0.5B": ModelConfig(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, intermediate_size=4864, **QWEN),
    "1.5B": ModelConfig(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, intermediate_size=8960, **QWEN),
}


def seconds(work: Callable[[], object], reps: int) -> float:
    """Median; two calls before are not counted."""
    found = []
    for _ in range(reps + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return median(found[2:])


def limits() -> tuple[float, float]:
    """-> bytes per second of a copy, and operations per second of a product, of this GPU."""
    source, target = (torch.empty(2**30, dtype=torch.uint8, device="cuda") for _ in range(2))
    x, y = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    copying = 2 * len(source) / seconds(lambda: target.copy_(source), 10)  # a copy reads and writes
    return copying, 2 * 8192**3 / seconds(lambda: x @ y, 10)


def measure(name: str, options: argparse.Namespace, bandwidth: float, rate: float) -> str:
    """A line of the table."""
    torch.manual_seed(0)
    config, B, P, C = SHAPES[name], options.batch, options.prompt, options.new
    with torch.device("cuda"):
        model = Transformer(config)
    weights = sum(p.numel() for p in model.parameters())
    prompts = torch.randint(3, config.vocab_size, (B, P)).tolist()
    sampling = SamplingConfig(C, stop_ids=(config.vocab_size,), batch_size=B)  # this id is never drawn
    torch.cuda.reset_peak_memory_stats()
    drawn = B * C / seconds(lambda: generate(model, prompts, sampling), options.reps)
    sampling_peak = torch.cuda.max_memory_allocated() / 2**30
    with patch.object(graphs, "recorded", lambda decoder, slots, device: decoder):
        launched = B * C / seconds(lambda: generate(model, prompts, sampling), options.reps)
    row_bytes = 4 * config.num_hidden_layers * (P + C / 2) * config.num_key_value_heads * config.head_width
    roofline = B * bandwidth / (2 * weights + B * row_bytes)  # tokens a second

    trainer = SFTTrainer(Policy(model), Tokenizer.train(["a"], 259), SFTConfig(batch_size=B, lr=1e-5), 100)
    rows = [EncodedRow({}, row[:1], (row[1:],)) for row in torch.randint(3, config.vocab_size, (B, P + C)).tolist()]
    draws = [Draw(row, i, 0, i) for i, row in enumerate(rows)]
    torch.cuda.reset_peak_memory_stats()
    trained = B * (P + C) / seconds(lambda: trainer.step(draws), options.reps)
    peak = torch.cuda.max_memory_allocated() / 2**30
    cells = f"{drawn:,.0f} | {drawn / roofline:.2f} | {launched:,.0f} | {sampling_peak:.1f} | {trained:,.0f}"
    return f"| {name} | {weights / 1e9:.2f} | {cells} | {6 * weights * trained / rate:.2f} | {peak:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    for flag, default in {"--batch": 16, "--prompt": 128, "--new": 256, "--reps": 3}.items():
        parser.add_argument(flag, type=int, default=default)
    options = parser.parse_args()
    if unknown := [name for name in options.shapes.split(",") if name not in SHAPES]:
        parser.error(f"--shapes: needed shapes among {', '.join(SHAPES)}, got {', '.join(unknown)}")
    if not torch.cuda.is_available():
        parser.error("this benchmark needed a GPU that torch can use, got none; speed.py measures on a CPU")
    with session(device="cuda", precision="bf16"):
        bandwidth, rate = limits()
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.batch} rows of {options.prompt} + ")
        print(f"{options.new} tokens, bf16; copies {bandwidth / 1e9:,.0f} GB/s, products {rate / 1e12:,.0f} TFLOP/s\n")
        print(
            "| shape | 1e9 weights | drawn tokens/s | of the roofline | launched | GiB | trained tokens/s | MFU | GiB |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name in options.shapes.split(","):
            print(measure(name, options, bandwidth, rate), flush=True)


if __name__ == "__main__":
    main()
