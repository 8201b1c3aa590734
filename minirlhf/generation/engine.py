"""Batched sampling with a KV cache: ragged prompts in, completions with their log-probs out.

B rows, V vocabulary. Rows are sorted by prompt length and finished rows leave the batch, so that little padding is
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minirlhf.data.batches import microbatches, pad_sequences
from minirlhf.errors import InputError
from minirlhf.generation.completion import Completion, SamplingConfig
from minirlhf.generation.sampling import sample
from minirlhf.model.cache import KVCache
from minirlhf.model.transformer import Transformer
from minirlhf.runtime.distributed import own_pace
from minirlhf.runtime.randomness import keyed_uniforms
from minirlhf.text.tokenizer import Tokenizer


def generate(
    transformer: Transformer,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    seed: int = 0,
    stream: str = "generate",
    keys: Sequence[tuple[int, int, int]] | None = None,
    tokenizer: Tokenizer | None = None,
    on_token: Callable[[int, int], None] | None = None,
    plain: bool = False,
) -> list[Completion]:
    """Sample one completion for each prompt, in the order given.

    A completion has at most `max_tokens` tokens, and at most the room that its prompt leaves in the context. If it
    fills either, its finish is "length".

    Args:
        prompts:   ragged lists of ids, none empty.
        keys:      (draw, prompt index, sample index) for each prompt. The draw counts earlier samplings of the prompt.
                   Noise depends on `seed`, `stream` and the key alone. None takes the key (0, i, 0) for prompt i.
        tokenizer: needed for stop strings.
        on_token:  called with (index of the prompt, id) for each token as it is drawn, the stop token included. An
                   exception in this function ends the sampling.
        plain:     sample with the loop of this file, which is easy to read; slots.py gives the same tokens sooner.
    Raises: InputError for an empty prompt, a prompt that leaves no room in the context, or stop strings without a
        tokenizer.
    """
    from minirlhf.data.rows import check_prompts  # here, so that the core loads no leaf
    from minirlhf.generation.decoder import can_decode
    from minirlhf.generation.slots import Slots

    check_prompts("generate", prompts, transformer.config.vocab_size, transformer.config.max_position_embeddings)
    keys = [(0, i, 0) for i in range(len(prompts))] if keys is None else keys
    if len(keys) != len(prompts):
        raise ValueError(f"generate: needed {len(prompts)} keys, one per prompt, got {len(keys)}")
    if config.stop_strings and tokenizer is None:
        raise InputError("generate: stop strings need the tokenizer to read the completions; pass tokenizer=")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: list[Completion | None] = [None] * len(prompts)
    with own_pace(*getattr(transformer, "models", (transformer,)), whole=True):
        if not plain and can_decode(transformer):
            return Slots(transformer, prompts, keys, config, seed, stream).complete(tokenizer, on_token)
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            batch = [prompts[i] for i in rows], [keys[i] for i in rows]
            on_row_token = on_token and (lambda row, token, rows=rows: on_token(rows[row], token))
            finished = _generate_batch(transformer, *batch, config, seed, stream, tokenizer, on_row_token)
            for i, completion in zip(rows, finished, strict=True):
                completions[i] = completion
    return completions


@torch.inference_mode()
def _generate_batch(
    transformer: Transformer,
    prompts: list[Sequence[int]],
    keys: list[tuple[int, int, int]],
    config: SamplingConfig,
    seed: int,
    stream: str,
    tokenizer: Tokenizer | None,
    on_token: Callable[[int, int], None] | None,
) -> list[Completion]:
    device = transformer.device
    context = transformer.config.max_position_embeddings
    rooms = [min(config.max_tokens, context - len(prompt)) for prompt in prompts]
    columns = max(len(prompt) + room for prompt, room in zip(prompts, rooms, strict=True))
    longest, room = max(rooms), torch.tensor(rooms, device=device)
    # All noise is drawn before the loop: each call copies numbers to the device, and a GPU waits for every copy.
    key_columns = torch.tensor(keys, device=device).unbind(-1)
    positions = torch.arange(longest, device=device)
    uniforms = keyed_uniforms(seed, stream, *(column[:, None] for column in key_columns), positions, device=device)
    stops = torch.tensor(config.stop_ids, dtype=torch.int64, device=device)
    shape = (len(prompts), longest)
    ids = torch.zeros(shape, dtype=torch.int64, device=device)
    logps, mass_kept = (torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(2))
    lengths = room.clone()
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)

    read = getattr(type(transformer), "read_prompts", _read_prompts)  # an encoder-decoder has its own
    cache, logits = read(transformer, prompts, columns, config, device)
    rows = torch.arange(len(prompts), device=device)  # the running batch: each row's index into `prompts`
    for position in range(longest):
        tokens, token_logps, token_mass = sample(
            logits,
            uniforms[rows, position],
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )
        ids[rows, position] = tokens
        logps[rows, position] = token_logps.float()
        mass_kept[rows, position] = token_mass.float()
        if on_token:
            running = ~stopped[rows]
            for row, token in zip(rows[running].tolist(), tokens[running].tolist(), strict=True):
                on_token(row, token)
        ends = torch.isin(tokens, stops)
        if config.stop_strings:
            from minirlhf.generation.stop_strings import completes_stop_string  # here, so that the core loads no leaf

            ends |= completes_stop_string(ids[rows, : position + 1], config.stop_strings, tokenizer)
        # A finished row runs on until it leaves the batch, so only its first end counts.
        first_end = ends & ~stopped[rows]
        lengths[rows] = torch.where(first_end, position + 1, lengths[rows])
        stopped[rows] = stopped[rows] | ends
        if position + 1 == longest:
            break
        full = position + 1 in rooms  # some rows have filled their room: they must leave now
        running = (~stopped[rows] & (room[rows] > position + 1)).nonzero().squeeze(-1)
        if len(running) == 0:
            break
        if full or len(running) <= 0.75 * len(rows):  # dropping rows copies the cache, so drop many at a time
            rows, tokens = rows[running], tokens[running]
            cache.select(running)
            if full:  # the widest rows may have left; the others need the columns up to the end of the context
                cache.width = int(cache.lengths.max())
        logits = transformer(tokens[:, None], cache=cache)[:, 0]
    if not bool(logps.isfinite().all()):
        raise InputError("generate: the model's logits are not finite; its weights are broken or its precision too low")
    return _completions(ids, logps, mass_kept, lengths, stopped)


def _read_prompts(
    transformer: Transformer, prompts: list[Sequence[int]], columns: int, config: SamplingConfig, device: torch.device
) -> tuple[KVCache, Tensor]:
    """Run the prompts through the model -> a cache of this many columns, and the logits [B, V] of the first new tokens.

    Prompts run in groups of similar length, so a long prompt pads its group alone.
    """
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else transformer.dtype
    cache = KVCache(transformer.config, len(prompts), columns, device, dtype)
    last_hidden, order = [], []  # per group: hidden states [K, D] of last prompt tokens, and their rows
    for group in microbatches([len(prompt) for prompt in prompts], config.microbatch_tokens):
        batch = pad_sequences([prompts[i] for i in group], [[] for _ in group], 0, device)
        group_cache = KVCache(transformer.config, len(group), batch.input_ids.shape[1], device, dtype)
        hidden = transformer.model(batch.input_ids, batch.attention_mask, group_cache)
        numbers = torch.arange(len(group), device=device)
        last_hidden.append(hidden[numbers, group_cache.lengths - 1])
        order += group
        cache.adopt(group, group_cache, numbers)
    return cache, transformer.logits(torch.cat(last_hidden)[torch.tensor(order, device=device).argsort()])


def _completions(ids: Tensor, logps: Tensor, mass_kept: Tensor, lengths: Tensor, stopped: Tensor) -> list[Completion]:
    columns = (x.tolist() for x in (ids, logps, mass_kept, lengths, stopped))
    return [
        Completion(ids[:n], logps[:n], "stop" if stopped else "length", sum(mass[:n]) / n if n else 1.0)
        for ids, logps, mass, n, stopped in zip(*columns, strict=True)
    ]
