"""A reference's log-probs of the given rows, computed once and kept on disk.

The file's name is a checksum of all that decides the numbers: the rows' ids, the reference's weights and config, the
precision, the source code and torch's version. So a file is right or has another name. B sequences, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minirlhf.data.batches import pad_rows, row_groups
from minirlhf.data.cache import read, source_code, write
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.losses.logprobs import autocast_dtype
from minirlhf.model.policy import Policy, TokenOutputs
from minirlhf.runtime.distributed import any_rank, gather, is_main, local_rows, say
from minirlhf.runtime.sharing import shared_groups
from minirlhf.runtime.vectors import gather_vectors

BLOCK = 4096  # rows that are sorted by length together


class RefLogps(NamedTuple):
    """The log-probs of all sequences one after another, in the order of the sequences' keys."""

    keys: np.ndarray  # uint8 [sequences, 16]
    ends: np.ndarray  # int64 [sequences]: where the log-probs of a sequence end
    logps: np.ndarray  # nats of the tokens that a loss reads


class PrecomputedReference(nn.Module):
    """It is called as the reference is, but it holds no model and knows the given sequences alone."""

    def __init__(self, found: RefLogps) -> None:
        super().__init__()
        self.found, self.names = found, found.keys.view("S16")[:, 0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *, wanted: Tensor, entropy: bool) -> TokenOutputs:
        """-> log-probs [B, T] of the wanted tokens, else 0.   Raises: InputError for a sequence that is not known."""
        keys = keys_of(input_ids, attention_mask, wanted)
        at = np.searchsorted(self.names, keys).clip(max=len(self.names) - 1)
        if (self.names[at] != keys).any():
            raise InputError(
                "precompute_ref_logps: a batch has a sequence whose log-probs were not computed before the training; "
                "pass all rows, those of evaluations too, or leave precompute_ref_logps out"
            )
        starts = np.where(at > 0, self.found.ends[at - 1], 0)
        parts = [self.found.logps[i:j] for i, j in zip(starts, self.found.ends[at], strict=True)]
        logps = torch.from_numpy(np.concatenate([self.found.logps[:0], *parts])).to(input_ids.device)
        return TokenOutputs(logps.new_zeros(input_ids.shape).masked_scatter(wanted, logps), None, None)


def precompute_ref_logps(trainer: Any, parts: Sequence[Sequence[EncodedRow]], folder: Path) -> None:
    """Put a `PrecomputedReference` in the place of the trainer's reference. The trainer holds the reference no longer.

    The processes share the work. All of them keep all log-probs; the main process writes the file.

    Args:
        trainer: a DPOTrainer or an UnpairedTrainer.
        parts:   all rows that the trainer will see: to train on, held out, and of validation sets.
    """
    path = folder / f"ref_logps-{_key(trainer, parts)}.safetensors"
    found = _kept(path)
    if any_rank(found is None):
        say(f"reference: computing the log-probs of {sum(map(len, parts)):,} rows")
        found = _computed(trainer, parts)
        if is_main():
            write(path, found, {}, who="precompute_ref_logps")
        say(f"reference: the log-probs of {len(found.ends):,} sequences are kept in {path}")
    trainer.ref_policy = PrecomputedReference(found)


def keys_of(input_ids: Tensor, attention_mask: Tensor, wanted: Tensor) -> np.ndarray:
    """A checksum of each row's ids and wanted tokens: S16 [B]."""
    ids, masks, lengths = input_ids.cpu().numpy(), wanted.cpu().numpy(), attention_mask.sum(-1).tolist()
    keys = [_key_of(row[:n], mask[:n]) for row, mask, n in zip(ids, masks, lengths, strict=True)]
    return np.array(keys, dtype="S16")


def _key_of(ids: np.ndarray, mask: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.astype(np.int64).tobytes() + mask.astype(np.uint8).tobytes(), digest_size=16).digest()


def _kept(path: Path) -> RefLogps | None:
    try:
        return read(path, RefLogps)[0] if path.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{path}: damaged ({error}); the log-probs are computed again")


@torch.no_grad()
def _computed(trainer: Any, parts: Sequence[Sequence[EncodedRow]]) -> RefLogps:
    found: list[tuple[np.ndarray, Tensor, Tensor]] = []
    for group in _groups(trainer, parts):
        batch = pad_rows(group, trainer.ref_sides, trainer.tokenizer.pad_id, trainer.device)
        wanted = batch.completion_mask
        logps = trainer.ref_policy(batch.input_ids, batch.attention_mask, wanted=wanted, entropy=False).logps
        found.append((keys_of(batch.input_ids, batch.attention_mask, wanted), wanted.sum(-1), logps[wanted]))
    keys, counts, logps = (list(column) for column in zip(*found, strict=True))
    names = torch.from_numpy(np.concatenate(keys).view(np.uint8)).to(trainer.device)
    names, counts, logps = (torch.cat(gather_vectors(x)).cpu() for x in (names, torch.cat(counts), torch.cat(logps)))
    names, ends = names.numpy().view("S16"), counts.cumsum(0).numpy()
    names, first = np.unique(names, return_index=True)  # sorted
    pieces = [logps[ends[i] - counts[i] : ends[i]] for i in first]
    counts = counts.numpy()[first]
    return RefLogps(names.view(np.uint8).reshape(-1, 16), counts.cumsum(), torch.cat(pieces).numpy())


def _groups(trainer: Any, parts: Sequence[Sequence[EncodedRow]]) -> Iterator[list[EncodedRow]]:
    """This process's micro-batches of all parts, a block of rows at a time."""
    tokens, sides = trainer.config.microbatch_tokens, len(trainer.ref_sides)
    for part in parts:
        for start in range(0, len(part), BLOCK):
            groups = row_groups(local_rows(part[start : start + BLOCK]), tokens, sides=sides)
            yield from shared_groups(groups, trainer.policy, trainer.ref_policy)


def _key(trainer: Any, parts: Sequence[Sequence[EncodedRow]]) -> str:
    """The checksum of all that decides the log-probs."""
    reference: Policy = trainer.ref_policy
    found = hashlib.sha256(source_code("losses", "model", "adapters", "algorithms").encode())
    weight = reference.transformer.head_weight
    about = (torch.__version__, trainer.device.type, autocast_dtype(weight), reference.transformer.config)
    found.update(repr(about).encode())
    for name, x in (*reference.named_parameters(), *reference.named_buffers()):
        x = getattr(x, "to_local", lambda x=x: x)().detach()  # of a model in slices: this process's slice
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        found.update(x.cpu().contiguous().flatten().view(torch.uint8).numpy())
    for row in (row for part in parts for row in part):
        for side in trainer.ref_sides:
            ids, mask = [*row.prompt, *row.responses[side]], [False] * len(row.prompt) + [*row.mask(side)]
            found.update(_key_of(np.array(ids), np.array(mask)))
    return hashlib.sha256(repr(sorted(set(gather(found.hexdigest())))).encode()).hexdigest()[:32]
