"""Reward models of right and wrong: of a whole answer (outcome), or of each of its steps (process).

Outcome: Cobbe et al. 2021, arXiv:2110.14168. Process: Lightman et al. 2023, arXiv:2305.20050. B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirlhf.algorithms.offline import OfflineConfig
from minirlhf.data.batches import Draw, microbatches, pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.errors import InputError
from minirlhf.losses import correctness_loss, masked_mean
from minirlhf.model.policy import ProcessRewardModel
from minirlhf.runtime.distributed import all_sum, backward, gradient_sync, wrap
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.optimizer import Optimizer


@dataclass(frozen=True)
class ProcessRewardConfig(OfflineConfig):
    steps: int = 600  # [steps] one batch each
    max_epochs: float = 8.0  # [epochs] the run makes fewer steps if it would read the rows more often than this
    lr: float = 4e-3  # [per update] peak learning rate; large, because the model is small
    lr_final: float = 0.0  # [share of lr] where the cosine ends


def encode_steps(tokenizer: Tokenizer, rows: Sequence[dict], context: int) -> list[EncodedRow]:
    """Rows {prompt, steps: [text], labels: [bool]} in ids; an outcome is one step. Each label sits on its step's last
    token: source["places"] counts from the start of the response.

    Raises: InputError, naming the row, if steps and labels do not pair up, a step is empty, a label is neither true
        nor false, or the row exceeds the context (tokens).
    """
    prompts = tokenizer.encode_prompts([row["prompt"] for row in rows])
    encoded = []
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if not row["steps"] or len(row["steps"]) != len(row["labels"]) or not all(row["steps"]):
            raise InputError(
                f"row {i}: needed steps and as many labels, got {len(row['steps'])} and {len(row['labels'])}, or an "
                "empty step"
            )
        if wrong := [label for label in row["labels"] if label not in (True, False)]:
            raise InputError(f"row {i}: needed labels of true or false, got {wrong[0]!r}; convert them first")
        steps = [ids[:-1] for ids in tokenizer.encode_responses(list(row["steps"]))]  # without EOS
        ends = torch.tensor([len(step) for step in steps]).cumsum(0) - 1
        response = [token for step in steps for token in step]
        if len(prompt) + len(response) > context:
            raise InputError(
                f"row {i}: has {len(prompt) + len(response)} tokens, the model's context holds {context}; shorten it "
                "or raise --model.max_position_embeddings"
            )
        encoded.append(EncodedRow({**row, "places": ends.tolist()}, prompt, (response,)))
    return encoded


class ProcessRewardTrainer:
    """A model of one score per token, and the number of updates the run will make (the schedule's length)."""

    headline = ("loss", "accuracy", "eval/accuracy")
    best = ("eval/accuracy", "max")

    def __init__(
        self, model: ProcessRewardModel, tokenizer: Tokenizer, config: ProcessRewardConfig, updates: int
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.models = {"reward": model}
        self.model = wrap(model)
        self.optimizer = Optimizer(self.models, config, updates)
        self.device = model.score.weight.device
        self.samples: list[dict[str, Any]] = []

    def step(self, batch: list[Draw]) -> dict[str, float]:
        """One update on a batch of rows; the loss is the mean over all labelled tokens, however it is split."""
        rows = [draw.row for draw in batch]
        count = all_sum(torch.tensor(float(sum(len(row.source["labels"]) for row in rows)), device=self.device))
        groups = self._groups(rows)
        sums: dict[str, Tensor] = {}
        for group in groups:
            with gradient_sync(self.model, group is groups[-1]):
                losses, right, mask = self.losses(self.model, group)
                loss = masked_mean(losses, mask, count)
                backward(loss)
            for name, x in {"loss": loss.detach(), "accuracy": masked_mean(right, mask, count)}.items():
                sums[name] = sums.get(name, 0) + x
        return self.optimizer.step(sums)

    def losses(self, model: torch.nn.Module, rows: list[EncodedRow]) -> tuple[Tensor, Tensor, Tensor]:
        """-> (losses, was it right, mask of labelled tokens), [B, T] each."""
        responses = [row.responses[0] for row in rows]
        batch = pad_sequences([row.prompt for row in rows], responses, self.tokenizer.pad_id, self.device)
        scores = model(batch.input_ids, batch.attention_mask)
        mask, labels = torch.zeros_like(batch.attention_mask), torch.zeros_like(batch.attention_mask)
        for i, row in enumerate(rows):
            columns = [len(row.prompt) + place for place in row.source["places"]]
            mask[i, columns] = True
            labels[i, columns] = torch.tensor(row.source["labels"], dtype=torch.bool, device=self.device)
        right = ((scores > 0) == labels).to(scores.dtype)
        return correctness_loss(scores, labels=labels), right, mask

    @torch.no_grad()
    def evaluate(self, rows: list[EncodedRow]) -> dict[str, float]:
        """{accuracy, loss} over the labelled tokens of held-out rows."""
        right = loss = n = 0.0
        for group in self._groups(rows):
            losses, correct, mask = self.losses(self.models["reward"], group)
            right += torch.where(mask, correct, 0).sum().item()
            loss += torch.where(mask, losses, 0).sum().item()
            n += mask.sum().item()
        return {"accuracy": right / n, "loss": loss / n}

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])

    def _groups(self, rows: list[EncodedRow]) -> list[list[EncodedRow]]:
        lengths = [len(row.prompt) + len(row.responses[0]) for row in rows]
        return [[rows[i] for i in group] for group in microbatches(lengths, self.config.microbatch_tokens)]
