"""BCO's prompt weighting: a classifier of prompts whose answers are liked. N prompts, D width of the embedding.

Jung et al. 2024, arXiv:2404.04656, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minirlhf.data.batches import microbatches, pad_sequences
from minirlhf.data.encoding import EncodedRow
from minirlhf.model.policy import Policy


class PromptClassifier:
    """Logistic regression on the mean embedding of a prompt.

    Args:
        model:     the frozen policy whose embedding is read.
        prompts:   [N] ids of each prompt.   desirable: [N] True if the answer to the prompt is liked.
        pad_id, microbatch_tokens: for the forwards of the model.
    """

    def __init__(
        self,
        model: Policy,
        prompts: Sequence[Sequence[int]],
        desirable: Sequence[bool],
        pad_id: int,
        microbatch_tokens: int,
    ) -> None:
        self.model, self.pad_id, self.microbatch_tokens = model, pad_id, microbatch_tokens
        self.device = model.transformer.device
        features = self._features(prompts)
        self.weights = fit_logistic(features, torch.tensor(desirable, device=self.device))
        # prompt -> its logit; steps need no forward for prompts, whatever rows a process has
        self.known = dict(zip(map(tuple, prompts), (features @ self.weights).tolist(), strict=True))

    def logits(self, rows: Sequence[EncodedRow]) -> Tensor:
        """[N]: the sigmoid is the chance that an answer to the row's prompt is liked."""
        prompts = [tuple(row.prompt) for row in rows]
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]:
            self.known |= zip(new, (self._features(new) @ self.weights).tolist(), strict=True)
        return torch.tensor([self.known[prompt] for prompt in prompts], device=self.device)

    @torch.no_grad()
    def _features(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """[N, D + 1] fp32: the mean embedding of each prompt, and 1.

        A hook reads the embedding inside the model's forward: if the weights are spread over processes, only a forward
        has all of them.
        """
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        means: dict[tuple[int, ...], Tensor] = {}
        read: list[tuple[Tensor, Tensor]] = []  # ids and their embeddings, in the order that the model chose
        hook = self.model.transformer.model.embed_tokens.register_forward_hook(
            lambda module, inputs, out: read.append((inputs[0].flatten(), out.flatten(0, 1)))
        )
        try:
            for group in microbatches([len(prompt) for prompt in distinct], self.microbatch_tokens):
                batch = pad_sequences([distinct[i] for i in group], [[] for _ in group], self.pad_id, self.device)
                self.model(batch.input_ids, batch.attention_mask)
                ids, vectors = read.pop()
                found, places = ids.unique(return_inverse=True)
                table = vectors.new_empty(len(found), vectors.shape[1]).index_copy(0, places, vectors)
                for i in group:
                    own = torch.searchsorted(found, torch.tensor(distinct[i], device=found.device))
                    means[distinct[i]] = table[own].mean(0).float()
        finally:
            hook.remove()
        return nn.functional.pad(torch.stack([means[tuple(prompt)] for prompt in prompts]), (0, 1), value=1.0)


def fit_logistic(features: Tensor, positive: Tensor) -> Tensor:
    """Logistic regression with a small L2 penalty: features [N, D + 1], positive [N] bool -> weights [D + 1]."""
    weights = torch.zeros(features.shape[1], device=features.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")
    signs = torch.where(positive, 1.0, -1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        nll = -nn.functional.logsigmoid(signs * (features @ weights)).mean()
        loss = nll + 1e-3 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()
