"""Recorded forwards of one token. A GPU computes such a step sooner than Python launches its kernels; a CUDA graph
launches all of them at once.

A graph repeats its kernels with the sizes and the memory that they had. So a step is recorded for a number of rows and
a number of columns, both rounded up, and its inputs are copied to where the graph reads them. The rows beyond those in
use repeat old tokens: they write to free slots, which the next prompt overwrites. The graphs live as long as their
decoder, so they never outlive a weight update.

N rows in use, B slots, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from minirlhf.generation.decoder import Decoder
from minirlhf.generation.slot_cache import SlotCache

LEAST_COLUMNS = 64
BEFORE = 4  # steps of a size that run as they are: a recording costs several steps, and some sizes are left at once
# of the largest logit
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4, torch.float64: 1e-9}
refused: set[tuple] = set()  # (config, dtype, device) of failed recordings: no later rollout tries again


def recorded(decoder: Decoder, slots: int, device: torch.device) -> Decoder | RecordedDecoder:
    """The decoder, with its steps recorded where that is possible: on a GPU, if no step asks the host for anything."""
    config = decoder.config
    asks = config.num_experts or config.rope_type == "dynamic"  # for the tokens of each expert, for the longest text
    # a weight that autocast keeps would lie in the memory of a graph
    keeps = torch.is_autocast_enabled(device.type) and torch.is_autocast_cache_enabled()
    if device.type != "cuda" or asks or keeps or (config, decoder.dtype, device) in refused:
        return decoder
    return RecordedDecoder(decoder, slots, device)


class RecordedDecoder:
    """A `Decoder` for the first N of B slots. Its results are those of the decoder, up to rounding.

    A graph is compared with a step of the decoder before its first use. If they differ, or if the recording fails, a
    warning says so, and the decoder runs as it is from then on.
    """

    def __init__(self, decoder: Decoder, slots: int, device: torch.device) -> None:
        self.decoder, self.device, self.gave_up = decoder, device, False
        self.tokens, self.lengths = (torch.zeros(slots, dtype=torch.int64, device=device) for _ in range(2))
        self.steps: Counter[tuple[int, int]] = Counter()  # of each size: (rows, columns)
        self.graphs: dict[tuple[int, int], tuple[Callable[[], object], Tensor]] = {}  # size -> (repeat, its logits)
        self.recorder: Recorder | None = None
        self.numbers, self.most = None, 0  # the cache's memory and the number of rows that the decoder's buffers hold

    def __call__(self, tokens: Tensor, lengths: Tensor, cache: SlotCache) -> Tensor:
        """-> the logits [N, V], as `Decoder.__call__` gives them. The next call overwrites them."""
        N, width = len(tokens), cache.width
        size = rows, columns = rows_for(N, len(self.tokens)), min(columns_for(width), cache.columns)
        self.steps[size] += 1
        is_plain = self.gave_up or self.steps[size] <= BEFORE
        runs = N if is_plain else rows  # rows of the decoder's forward
        if cache.numbers is not self.numbers or runs > self.most:
            self._forget()  # the cache or the decoder's buffers get new memory
            self.numbers, self.most = cache.numbers, max(runs, self.most)
        if is_plain:
            return self.decoder(tokens, lengths, cache)
        cache.width = columns
        try:
            if size not in self.graphs:
                self._add(size, tokens, lengths, cache)
            if size in self.graphs:
                repeat, logits = self.graphs[size]
                self._set(tokens, lengths)
                repeat()
                return logits[:N]
        finally:
            cache.width = width
        return self.decoder(tokens, lengths, cache)

    def _set(self, tokens: Tensor, lengths: Tensor) -> None:
        self.tokens[: len(tokens)].copy_(tokens)
        self.lengths[: len(lengths)].copy_(lengths)
        self.lengths[len(lengths) :].zero_()  # an old length may lie beyond the columns that are read now

    def _add(self, size: tuple[int, int], tokens: Tensor, lengths: Tensor, cache: SlotCache) -> None:
        """Record the step of a size, and keep it if it does what the decoder does."""
        N, short_of_memory = len(tokens), False

        def step() -> Tensor:
            return self.decoder(self.tokens[: size[0]], self.lengths[: size[0]], cache)

        try:
            self.recorder = self.recorder or Recorder(self.device)
            self._set(tokens, lengths)
            expected = self.recorder.run(step)[:N].clone()
            # recorded with other numbers: one that the graph took for a constant shows when the right ones are back
            self.tokens.zero_()
            self.lengths.add_(1).clamp_(max=cache.columns - 1)
            repeat, logits = self.recorder.record(step)
            self._set(tokens, lengths)
            repeat()
            most = TOLERANCE[self.decoder.dtype] * expected.abs().max()
            differs = (logits[:N] - expected).abs().max() > most  # False for nan: the rollout refuses it
            reason = "the results of a graph differ" if differs else ""
        except RuntimeError as error:  # of CUDA
            reason = (str(error) or type(error).__name__).splitlines()[0]
            short_of_memory = isinstance(error, torch.OutOfMemoryError)  # the next rollout may have more
        if not reason:
            self.graphs[size] = repeat, logits
            return
        warnings.warn(f"sampling goes on without CUDA graphs, so it is slower: {reason}", stacklevel=2)
        if not short_of_memory:
            refused.add((self.decoder.config, self.decoder.dtype, self.device))
        self.gave_up = True
        self._forget()

    def _forget(self) -> None:
        if self.graphs:
            self.recorder.wait()
        self.graphs.clear()
        self.recorder = None  # its memory belongs to its graphs, so it goes too


class Recorder:
    """Records on a stream of its own. All its graphs share the memory of what they compute on the way."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def run(self, step: Callable[[], Tensor]) -> Tensor:
        """Run a step on that stream. A library loads its kernels at the first call; no recording may load them."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            result = step()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return result

    def record(self, step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """-> a function that repeats the step, and the tensor that it then overwrites."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that writes a checkpoint, may call CUDA meanwhile.
        options = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        # The outer context, because a recording that fails leaves its stream behind as the current one.
        with torch.cuda.stream(self.stream), torch.cuda.graph(graph, **options):
            result = step()
        return graph.replay, result

    def wait(self) -> None:
        """Until the GPU is done with the graphs."""
        torch.cuda.synchronize(self.device)


def rows_for(count: int, slots: int) -> int:
    """All slots, half of them, a quarter and so on: the least number that is at least `count`."""
    while slots // 2 >= count:
        slots //= 2
    return slots


def columns_for(width: int) -> int:
    """`width` rounded up to LEAST_COLUMNS or, if that is more, to a quarter of the next power of two."""
    step = max(LEAST_COLUMNS, (1 << (width - 1).bit_length()) // 4)
    return -(-width // step) * step
