"""Samples of the SFT trainer: its policy's responses beside the responses of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlhf.data.encoding import EncodedRow
from minirlhf.generation.engine import SamplingConfig, generate
from minirlhf.generation.room import with_room
from minirlhf.runtime.distributed import local_rows
from minirlhf.runtime.sharing import in_order


def written(trainer: Any, rows: Sequence[EncodedRow]) -> list[dict[str, Any]]:
    """For each row, the response of the policy of an SFTTrainer, and the row's response up to a masked token.

    Each process writes a part of the responses; all processes get all of them.
    """
    transformer, tokenizer = trainer.policy.transformer, trainer.tokenizer
    rows = with_room(transformer.config.max_position_embeddings, rows)
    answers = [row.responses[0][: [*row.mask(), False].index(False)] for row in rows]
    longest = max(map(len, answers), default=0)
    sampling = SamplingConfig(max_tokens=max(1, longest), stop_ids=tokenizer.eos_ids)
    prompts, keys = [row.prompt for row in rows], [(0, i, 0) for i in range(len(rows))]
    completions = generate(transformer, local_rows(prompts), sampling, keys=local_rows(keys))
    texts = in_order(tokenizer.decode_completions([completion.ids for completion in completions]))
    references = tokenizer.decode_completions(answers)
    return [
        {"prompt": tokenizer.decode(row.prompt), "completion": text, "reference": reference}
        for row, text, reference in zip(rows, texts, references, strict=True)
    ]
