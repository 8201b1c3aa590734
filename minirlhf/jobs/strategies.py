"""The strategy of a job: the one that the user names, or the first one whose models fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minirlhf.jobs.checks import shape_of
from minirlhf.jobs.learning_rates import parameters
from minirlhf.jobs.opened import Opened
from minirlhf.jobs.parallel import IN_SLICES, machines, mode_of, strategy_of
from minirlhf.jobs.plan import FP32, memory_of_stages
from minirlhf.model.config import ModelConfig
from minirlhf.runtime.distributed import gather, say, world_size
from minirlhf.runtime.memory import in_words, share_of_process
from minirlhf.runtime.parallel.strategy import Strategy, current, using

ROOM = 0.7  # of the free memory is for weights, gradients and optimizer; the rest is for activations and sampling


@contextmanager
def in_parallel(job: Opened, after: tuple[str, ...]) -> Iterator[Strategy]:
    """Within this context all models of the job are held as its strategy says. Prints the strategy and its reason."""
    if world_size() == 1:
        with using(Strategy()) as strategy:
            yield strategy
        return
    strategy, reason = chosen(job, after)
    say(reason)
    if strategy.shards and job.common.train != "all":
        say("adapters stay whole on each process; the frozen base is in slices")
    with using(strategy):
        yield strategy


def chosen(job: Opened, after: tuple[str, ...]) -> tuple[Strategy, str]:
    """-> (the strategy, a line that says why)."""
    mode, processes = mode_of(job.settings), f"{world_size()} processes"
    if mode != "auto":
        return strategy_of(job.settings, mode), f"{processes}, --parallel {mode}"
    shape = shape_of(job)
    needed = memory_of_stages(job, shape, after)
    stage, whole = max(needed.items(), key=lambda item: item[1])
    free = min(gather(share_of_process(job.device)))
    mode, memory = best(whole, gathered_bytes(shape), free, world_size(), machines())
    reason = f"{processes}, --parallel auto: {mode}, because {stage} needs about {in_words(whole)} in a whole process"
    if mode in IN_SLICES:
        reason += f" and {in_words(memory)} in slices"
    reason += f"; {in_words(free)} of {job.device.type} memory are free for each process"
    if memory > ROOM * free:
        reason += ", which may not suffice: --train lora, a smaller model or more processes need less"
    return strategy_of(job.settings, mode), reason


def best(whole: float, gathered: float, free: float, processes: int, machines: int) -> tuple[str, float]:
    """-> (ddp, hsdp or fsdp: the first that fits, else fsdp; the bytes that a process then needs).

    ddp sends least. hsdp sends slices within a machine only. fsdp needs least memory.

    Args:
        whole: bytes of weights, gradients and moments of all models.   gathered: bytes that slices need on top.
        free:  bytes that a process may take.
    """
    if whole <= ROOM * free:
        return "ddp", whole
    in_one_machine = whole / (processes // machines) + gathered
    if machines > 1 and processes % machines == 0 and machines < processes and in_one_machine <= ROOM * free:
        return "hsdp", in_one_machine
    return "fsdp", whole / processes + gathered


def memory_of_process(needed: dict[str, float], shape: ModelConfig) -> dict[str, float]:
    """Stage -> bytes of a process with the current strategy. needed: stage -> bytes of all models, whole."""
    strategy = current()
    if not strategy.shards:
        return needed
    parts = world_size() // (strategy.replicas if strategy.mode == "hsdp" else 1)
    return {stage: size / parts + gathered_bytes(shape) for stage, size in needed.items()}


def gathered_bytes(shape: ModelConfig) -> float:
    """Bytes of the weights that a process gathers at a time: embedding and head, with their gradients; two blocks."""
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    blocks = (parameters(shape) - embeddings) / shape.num_hidden_layers
    return 2 * FP32 * (embeddings + blocks)
