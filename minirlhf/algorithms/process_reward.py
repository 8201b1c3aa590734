"""Reward models of right and wrong, for a whole answer (outcome) or for each of its steps (process).

Outcome: Cobbe et al. 2021, arXiv:2110.14168. Process: Lightman et al. 2023, arXiv:2305.20050. B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, drawn, pad_rows, row_groups
from minirlhf.data.dialogues import Dialogues
from minirlhf.data.encoding import EncodedRow, encode_texts
from minirlhf.data.wrapping import Wrapping
from minirlhf.errors import InputError, shown
from minirlhf.losses import correctness_loss, masked_mean
from minirlhf.model.process_reward import ProcessRewardModel
from minirlhf.runtime.distributed import all_sum, backward, say, wrap
from minirlhf.runtime.sharing import shared_sums
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer
from minirlhf.training.update import Sums, load_state, micro_batches, state_of


@dataclass(frozen=True)
class ProcessRewardConfig(OfflineConfig):
    steps: int = 600  # [steps] one batch each
    max_epochs: float = 8.0  # [epochs] the run makes fewer steps if `steps` would mean more epochs
    lr: float = 4e-3  # [per update] peak learning rate of a small model; `--policy DIR` has a default by size
    lr_final: float = 0.0  # [share of lr] where the cosine ends


class ProcessRewardTrainer:
    """Model with a score per token, rows of `encode_steps` -> a model whose scores tell right steps from wrong steps.

    updates: the number of updates of the whole run: the schedule's length.
    """

    headline = ("loss", "accuracy", "eval/accuracy")
    best = ("eval/accuracy", "max")
    saved = ("optimizer",)  # a checkpoint keeps these beside the weights of `models`

    def __init__(
        self, model: ProcessRewardModel, tokenizer: Tokenizer, config: ProcessRewardConfig, updates: int
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.model, self.wrapped_model = model, wrap(model)
        self.models = {"reward": model}
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = model.score.weight.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of rows: the mean loss over all labelled tokens."""
        rows = drawn(batch, 1)
        count = all_sum(torch.tensor(float(sum(len(self.labels_of(row)) for row in rows)), device=self.device))
        sums = Sums()
        for group in micro_batches(self._groups(rows), self.wrapped_model):
            losses, correct, mask = self.losses(self.wrapped_model, group)
            backward(masked_mean(losses, mask, count))
            sums.add(count, mask, loss=losses, accuracy=correct)
        return self.optimizer.step(sums)

    def labels_of(self, row: EncodedRow) -> list[bool]:
        return row.source["labels"]

    def losses(self, model: torch.nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, Tensor, Tensor]:
        """-> (losses, 1 where the score has the label's sign, mask of labelled tokens), [B, T] each."""
        batch = pad_rows(rows, (0,), self.tokenizer.pad_id, self.device)
        scores = model(batch.input_ids, batch.attention_mask)
        mask, labels = torch.zeros_like(batch.attention_mask), torch.zeros_like(batch.attention_mask)
        for i, row in enumerate(rows):
            columns = [len(row.prompt) + column for column in row.source["label_columns"]]
            mask[i, columns] = True
            labels[i, columns] = torch.tensor(self.labels_of(row), dtype=torch.bool, device=self.device)
        correct = ((scores > 0) == labels).to(scores.dtype)
        return correctness_loss(scores, labels=labels), correct, mask

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{accuracy, loss}: means over the labelled tokens of held-out rows; {} without labels."""

        def measures(group: list[EncodedRow]) -> dict[str, Tensor]:
            losses, correct, mask = self.losses(self.model, group)
            return {"accuracy": torch.where(mask, correct, 0), "loss": torch.where(mask, losses, 0)}

        if not (count := sum(len(self.labels_of(row)) for row in rows)):
            return {}
        return {name: x / count for name, x in shared_sums(rows, self._groups, measures, self.model).items()}

    def _groups(self, rows: Sequence[EncodedRow]) -> list[list[EncodedRow]]:
        return row_groups(rows, self.config.microbatch_tokens)

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, self.saved)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_state(self, self.saved, state)


def encode_steps(
    tokenizer: Tokenizer, rows: Sequence[dict], context: int, max_refused: float = 0.0, wrap: str = "turns"
) -> list[EncodedRow]:
    """Rows {prompt, steps: [text], labels: [bool]} as ids. An outcome is a row with one step.

    The label of a step belongs to the step's last token. source["label_columns"] holds the columns of these tokens,
    counted from the start of the response.

    max_refused: fraction of the rows that may be left out and named: rows longer than the context (tokens), and rows
                 whose turns the chat template refuses.
    wrap:        see `encode_rows`.
    Raises: InputError, naming the row, if steps and labels differ in number, a step is empty, a label is neither true
        nor false, or more rows are left out.
    """
    wrapping, dialogues = Wrapping(tokenizer, wrap), Dialogues(tokenizer)
    rows = [wrapping.look(row) for row in rows]
    encoded, refused = [], []
    for i, (row, found) in enumerate(zip(rows, encode_texts(tokenizer, rows, (), dialogues=dialogues), strict=True)):
        where = f"line {row['line']}" if "line" in row else f"row {i}"
        if not row["steps"] or len(row["steps"]) != len(row["labels"]) or not all(row["steps"]):
            raise InputError(
                f"{where}: needed a label for each step and no empty step, got {len(row['steps'])} steps and "
                f"{len(row['labels'])} labels"
            )
        if wrong := [label for label in row["labels"] if not isinstance(label, bool)]:
            raise InputError(f"{where}: needed labels of true or false, got {shown(wrong[0])}; convert them first")
        if isinstance(found, InputError):
            refused.append(f"{where}: {found}")
            continue
        prompt = found[0].prompt
        steps = [ids[:-1] for ids in tokenizer.encode_responses(list(row["steps"]))]  # without EOS
        last_tokens = torch.tensor([len(step) for step in steps]).cumsum(0) - 1
        response = [token for step in steps for token in step]
        if len(prompt) + len(response) > context:
            refused.append(f"{where}: has {len(prompt) + len(response)} tokens, the model's context holds {context}")
            continue
        encoded.append(EncodedRow({**row, "label_columns": last_tokens.tolist()}, prompt, (response,)))
    if len(refused) > max_refused * len(rows):
        raise InputError(
            f"{'; '.join(refused[:3])}: {len(refused)} of {len(rows)} rows cannot be used, at most {max_refused:.1%} "
            "may be; shorten them, allow more with --max_refused or raise --model.max_position_embeddings"
        )
    if refused:
        say(f"{len(refused)} of {len(rows)} rows are left out: {'; '.join(refused[:3])}")
    return encoded
