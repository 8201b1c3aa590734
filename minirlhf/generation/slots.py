"""Sampling in slots: continuous batching over a cache of fixed rows.

A slot is a row of the cache. The running completions fill the first slots; a completion that ends leaves its slot to
the next prompt, and once no prompt waits, the last slot moves into the gap, so that no forward computes a finished row.
Completions of one prompt that run at the same time read it once: they copy its keys and values from slot to slot.

The completions are the ones of the plain loop in engine.py, because the noise of a token depends on its key alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
from torch import Tensor

from minirlhf.data.batches import microbatches, pad_sequences
from minirlhf.errors import InputError
from minirlhf.generation.completion import Completion, SamplingConfig
from minirlhf.generation.decoder import Decoder
from minirlhf.generation.sampling import sample
from minirlhf.generation.slot_cache import SlotCache
from minirlhf.model.cache import KVCache
from minirlhf.model.transformer import Transformer
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.text.tokenizer import Tokenizer

FREE_SHARE = 1 / 8  # of the slots that must be free before prompts are read: larger groups are read faster
LOOK_EVERY = 16  # tokens between two looks for finished rows on a GPU, because each look makes the host wait
FIRST_COLUMNS = 128  # columns for new tokens at the start; the cache grows when completions get longer


def waits_for_a_look(device: torch.device) -> bool:
    """True if reading a number makes the host wait for the device."""
    return device.type != "cpu"


class Slots:
    """The slots of a rollout. The first `running` slots hold completions in progress.

    B slots, M the longest completion. Memory: the cache, 2 L B S K E numbers, and 4 B M numbers.
    The arguments are those of `engine.generate`, which has checked them.
    """

    def __init__(
        self,
        transformer: Transformer,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[tuple[int, int, int]],
        config: SamplingConfig,
        seed: int,
        stream: str,
    ) -> None:
        self.transformer, self.config, self.device = transformer, config, transformer.device
        self.prompts = [tuple(prompt) for prompt in prompts]
        self.keys, self.seed, self.stream = keys, seed, stream
        device_type = self.device.type
        autocast = torch.is_autocast_enabled(device_type)
        self.dtype = torch.get_autocast_dtype(device_type) if autocast else transformer.dtype
        self.decoder = Decoder(transformer, self.dtype)
        context = transformer.config.max_position_embeddings
        self.rooms = [min(config.max_tokens, context - len(prompt)) for prompt in prompts]
        # equal prompts stand side by side; prompts of like length are read together
        self.waiting = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), self.prompts[i], i), reverse=True)
        self.longest = [len(prompt) + room for prompt, room in zip(prompts, self.rooms, strict=True)]  # tokens
        self.completions: list[Completion] = [None] * len(prompts)  # type: ignore[list-item]
        B, M = min(config.batch_size, len(prompts)), max(self.rooms, default=0)
        self.slots, self.running = B, 0
        self.prompt_of: list[int] = []  # per running slot: the index of its prompt
        # per slot, in tokens: the prompt, the completion so far, and the longest completion
        self.start, self.made, self.room = (numpy.zeros(B, dtype=numpy.int64) for _ in range(3))
        self.cache = SlotCache(transformer.config, B, 0, self.device, self.dtype)
        wide = torch.float32 if device_type == "mps" else torch.float64
        self.uniforms = torch.zeros(B, M, dtype=wide, device=self.device)
        self.ids = torch.zeros(B, M, dtype=torch.int64, device=self.device)
        self.logps, self.mass_kept = (torch.zeros(B, M, device=self.device) for _ in range(2))
        self.stopped = torch.zeros(B, dtype=torch.bool, device=self.device)
        self.ends_at = torch.zeros(B, dtype=torch.int64, device=self.device)  # tokens of a stopped completion
        self.stops = torch.tensor(config.stop_ids, dtype=torch.int64, device=self.device)
        self.first_logits: dict[tuple[int, ...], Tensor] = {}  # of prompts that are read, and of which copies wait
        self.per_row = [self.uniforms, self.ids, self.logps, self.mass_kept, self.stopped, self.ends_at]
        if waits_for_a_look(self.device):
            from minirlhf.generation.graphs import recorded  # here, because a CPU has no use for it

            self.decoder = recorded(self.decoder, B, self.device)

    @torch.inference_mode()
    def complete(
        self, tokenizer: Tokenizer | None = None, on_token: Callable[[int, int], None] | None = None
    ) -> list[Completion]:
        """One completion for each prompt, in the order given."""
        every = LOOK_EVERY if waits_for_a_look(self.device) and not on_token else 1
        logits, step = self.fill(None), 0
        while self.running:
            tokens = self.draw(logits)
            if on_token:
                for row in (~self.stopped[: self.running]).nonzero().squeeze(-1).tolist():
                    on_token(self.prompt_of[row], int(tokens[row]))
            self.find_ends(tokens, tokenizer)
            step += 1
            if step % every == 0 or self.any_full():
                tokens = tokens[self.release()]
            logits = self.fill(self.forward(tokens) if len(tokens) else None)
        return self.completions

    # The steps of the loop

    def draw(self, logits: Tensor) -> Tensor:
        """Draw a token for each running slot and write it down -> tokens [running]."""
        n, config = self.running, self.config
        at = torch.from_numpy(self.made[:n]).to(self.device)[:, None]
        drawn = sample(
            logits,
            self.uniforms[:n].gather(1, at).squeeze(1),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )
        for store, new in zip((self.ids, self.logps, self.mass_kept), drawn, strict=True):
            store[:n].scatter_(1, at, new[:, None].to(store.dtype))
        self.made[:n] += 1
        return drawn[0]

    def find_ends(self, tokens: Tensor, tokenizer: Tokenizer | None) -> None:
        """Mark the slots whose completion ends with its newest token."""
        n = self.running
        ends = torch.isin(tokens, self.stops)
        if self.config.stop_strings:
            ends |= self._complete_a_stop_string(tokenizer)
        # a finished completion runs on until it leaves its slot, so only its first end counts
        made = torch.from_numpy(self.made[:n]).to(self.device)
        self.ends_at[:n] = torch.where(ends & ~self.stopped[:n], made, self.ends_at[:n])
        self.stopped[:n] |= ends

    def _complete_a_stop_string(self, tokenizer: Tokenizer | None) -> Tensor:
        from minirlhf.generation.stop_strings import completes_stop_string

        ends = torch.zeros(self.running, dtype=torch.bool, device=self.device)
        for length in numpy.unique(self.made[: self.running]):  # slots have completions of different lengths
            rows = torch.from_numpy((self.made[: self.running] == length).nonzero()[0]).to(self.device)
            ends[rows] = completes_stop_string(self.ids[rows, :length], self.config.stop_strings, tokenizer)
        return ends

    def any_full(self) -> bool:
        """True if a completion has filled its room: it must leave its slot now."""
        return bool((self.made[: self.running] >= self.room[: self.running]).any())

    def release(self) -> Tensor:
        """Take finished completions out of their slots, and close the gaps -> the old slots of the remaining rows."""
        n, done = self.running, self.finished()
        if not done.any():
            return torch.arange(n, device=self.device)
        left = int(n - done.sum())
        gaps = done[:left].nonzero()[0]  # filled with the rows of the last slots
        movers = left + (~done[left:]).nonzero()[0]
        kept = numpy.arange(left)
        kept[gaps] = movers
        if len(gaps):
            to, source = (torch.from_numpy(x).to(self.device) for x in (gaps, movers))
            for store in self.per_row:
                store[to] = store[source]
            self.cache.copy(to, source)
            for numbers in (self.start, self.made, self.room):
                numbers[gaps] = numbers[movers]
            for gap, mover in zip(gaps.tolist(), movers.tolist(), strict=True):
                self.prompt_of[gap] = self.prompt_of[mover]
        self.running, self.prompt_of = left, self.prompt_of[:left]
        self.cache.width = int(self._lengths().max(initial=0))
        return torch.from_numpy(kept).to(self.device)

    def finished(self) -> numpy.ndarray:
        """Keep the completions that have ended -> for each running slot, whether it is free now."""
        n = self.running
        done = self.stopped[:n].cpu().numpy() | (self.made[:n] >= self.room[:n])
        for slot, completion in self.ended(done.nonzero()[0]):
            self.completions[self.prompt_of[slot]] = completion
        return done

    def forward(self, tokens: Tensor) -> Tensor:
        """Append the newest token of each running slot -> logits [running, V] of the next tokens."""
        lengths = self._lengths() - 1  # the newest token is not in the cache yet
        self.cache.width = int(lengths.max()) + 1
        self._reserve(self.cache.width)
        return self.decoder(tokens, torch.from_numpy(lengths).to(self.device), self.cache)

    def fill(self, logits: Tensor | None) -> Tensor | None:
        """Give free slots to waiting prompts -> the logits of all running slots, the new slots last."""
        free = self.slots - self.running
        if not self.waiting or (self.running and free < max(1, self.slots * FREE_SHARE)):
            return logits
        rows = [self.waiting.pop() for _ in range(min(free, len(self.waiting)))]
        first = self.running
        self._begin(rows)
        new = self._read(rows, first)
        return new if logits is None else torch.cat((logits, new.to(logits.dtype)))

    # Parts of the steps

    def _lengths(self) -> numpy.ndarray:
        """Tokens of each running slot, the prompt's and the completion's."""
        return self.start[: self.running] + self.made[: self.running]

    def _begin(self, rows: list[int]) -> None:
        """Give the next slots to prompts, and draw the noise of their tokens."""
        first, last = self.running, self.running + len(rows)
        self.running = last
        self.prompt_of += rows
        self.start[first:last], self.made[first:last] = [len(self.prompts[i]) for i in rows], 0
        self.room[first:last] = [self.rooms[i] for i in rows]
        self.stopped[first:last] = False
        keys = torch.tensor([self.keys[i] for i in rows], device=self.device).unbind(-1)
        positions = torch.arange(self.uniforms.shape[1], device=self.device)
        noise = keyed_uniforms(self.seed, self.stream, *(k[:, None] for k in keys), positions, device=self.device)
        self.uniforms[first:last] = noise

    def _read(self, rows: list[int], first: int) -> Tensor:
        """Run prompts through the model into the slots `first`, `first + 1`, ... -> logits [rows, V]."""
        self._reserve(max(len(self.prompts[i]) for i in rows) + 1)
        holders = {self.prompts[i]: slot for slot, i in enumerate(self.prompt_of[:first])}
        holders = {prompt: slot for prompt, slot in holders.items() if prompt in self.first_logits}
        own, copies = [], {}  # slots that a forward fills; slot -> the slot with the same prompt
        for slot, i in enumerate(rows, first):
            if self.prompts[i] in holders:
                copies[slot] = holders[self.prompts[i]]
            else:
                holders[self.prompts[i]] = slot
                own.append(slot)
        self._run([self.prompts[self.prompt_of[slot]] for slot in own], own)
        if copies:
            self.cache.copy(*(torch.tensor(list(x), device=self.device) for x in (copies, copies.values())))
        logits = torch.stack([self.first_logits[self.prompts[i]] for i in rows])
        following = self.prompts[self.waiting[-1]] if self.waiting else None
        self.first_logits = {prompt: x for prompt, x in self.first_logits.items() if prompt == following}
        return logits

    def _run(self, prompts: list[tuple[int, ...]], slots: list[int]) -> None:
        """Run distinct prompts through the model, in groups of like length: a long prompt pads its group only."""
        for group in microbatches([len(prompt) for prompt in prompts], self.config.microbatch_tokens):
            batch = pad_sequences([prompts[i] for i in group], [[] for _ in group], 0, self.device)
            cache = KVCache(self.transformer.config, len(group), batch.input_ids.shape[1], self.device, self.dtype)
            hidden = self.transformer.model(batch.input_ids, batch.attention_mask, cache)
            last = hidden[torch.arange(len(group), device=self.device), cache.lengths - 1]
            self.cache.adopt([slots[i] for i in group], cache)
            for i, logits in zip(group, self.transformer.logits(last), strict=True):
                self.first_logits[prompts[i]] = logits

    def _reserve(self, columns: int) -> None:
        """Grow the cache to at least this many columns."""
        held = self.cache.columns
        if columns > held:
            longest = max(self.longest[i] for i in (*self.prompt_of, *self.waiting))
            self.cache.grow(min(max(columns + FIRST_COLUMNS, held + held // 2), max(longest, columns)))

    def ended(self, slots: numpy.ndarray) -> Iterator[tuple[int, Completion]]:
        """(slot, its completion) of these slots.   Raises: InputError if the model's logits were not finite."""
        at = torch.from_numpy(slots).to(self.device)
        columns = (x[at].tolist() for x in (self.ids, self.logps, self.mass_kept, self.stopped, self.ends_at))
        for slot, ids, logps, mass, stopped, end in zip(slots.tolist(), *columns, strict=True):
            n = end if stopped else int(self.made[slot])
            if not numpy.isfinite(logps[:n]).all():
                raise InputError(
                    "generate: the model's logits are not finite; its weights are broken or its precision too low"
                )
            yield slot, Completion(ids[:n], logps[:n], "stop" if stopped else "length", sum(mass[:n]) / n)
