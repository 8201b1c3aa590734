"""The policy and the reward model of an encoder-decoder, called as those of a decoder.

A batch is [B, T] as everywhere: prompt, completion, padding. The prompt goes to the encoder, the completion to the
decoder. The prompt ends where the first wanted token stands, so trainers need no further argument.

B sequences, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minirlhf.errors import InputError
from minirlhf.extras.seq2seq.config import Seq2SeqConfig
from minirlhf.extras.seq2seq.model import Seq2Seq
from minirlhf.model.policy import Policy, linear_at_full_precision, trainable


class Seq2SeqPolicy(Policy):
    """An encoder-decoder in the place of a `Policy`: the same calls, numbers and value head (on the decoder)."""

    def __init__(self, transformer: Seq2Seq, value_head: bool = False) -> None:
        super().__init__(transformer, value_head)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, wanted: Tensor | None) -> Tensor:
        """[B, T, D] in model order: position t is the decoder's state that speaks about token t + 1; 0 in prompts.

        The decoder reads the start token in the place of the prompt's last token, then the completion. Rows with one
        prompt, such as a group or a pair, share one forward of the encoder.

        wanted: the completions; see `prompt_lengths`.   Raises: InputError as `prompt_lengths`.
        """
        model, (B, T) = self.transformer, input_ids.shape
        lengths, context = prompt_lengths(attention_mask, wanted), model.config.max_position_embeddings
        if context < T:
            raise InputError(
                f"Seq2SeqPolicy: the context holds {context} tokens, got {T}; shorten the prompt or the response, or "
                "raise n_positions: relative positions have no end"
            )
        prompts, mask, owners = distinct_prompts(input_ids, lengths)
        cache = model.cache(model.encode(prompts, mask), mask)
        cache.select(owners)
        longest = int((attention_mask.sum(-1) - lengths).clamp(min=1).amax())
        places = (lengths[:, None] - 1 + torch.arange(longest, device=lengths.device)).clamp(max=T - 1)
        ids = input_ids.gather(1, places)
        ids[:, 0] = model.config.start_id
        decoded = model.decode(ids, cache)
        # places beyond a row's end become T - 1, and nobody reads position T - 1, because no token follows
        return decoded.new_zeros(B, T, decoded.shape[-1]).scatter(1, places[..., None].expand_as(decoded), decoded)


def prompt_lengths(attention_mask: Tensor, wanted: Tensor | None) -> Tensor:
    """[B] tokens before the first wanted token. In a row without wanted tokens all tokens are the prompt.

    Raises: InputError without `wanted`, for an empty prompt, or for a completion with gaps.
    """
    if wanted is None:
        raise InputError(
            "Seq2SeqPolicy: needed `wanted`, the mask of the completions, because the tokens before it go to the "
            "encoder; a loss that reads no such mask cannot train an encoder-decoder"
        )
    lengths = torch.where(wanted.any(-1), wanted.int().argmax(-1), attention_mask.sum(-1))
    if not len(lengths) or bool((lengths == 0).any()):
        raise InputError(
            "Seq2SeqPolicy: needed rows with a prompt, got an empty prompt; a tokenizer of encoder-decoders ends every "
            "prompt with EOS"
        )
    if not torch.equal(wanted.sum(-1), attention_mask.sum(-1) - lengths):
        raise InputError(
            "Seq2SeqPolicy: needed completions without gaps, got tokens inside that are not wanted, such as the user's "
            'turns in a dialogue; the encoder must read earlier turns: encode_rows(..., train_on="last")'
        )
    return lengths


def distinct_prompts(input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> (ids [N, S], mask [N, S] bool, the number [B] of each row's prompt among the N distinct prompts)."""
    real = torch.arange(int(lengths.amax()), device=lengths.device) < lengths[:, None]
    prompts, owners = torch.where(real, input_ids[:, : real.shape[1]], -1).unique(dim=0, return_inverse=True)
    return prompts.clamp(min=0), prompts >= 0, owners


class EncoderRewardModel(nn.Module):
    """A score per sequence by the encoder alone, read at the last real token: ids [B, T], mask [B, T] -> scores [B].

    The encoder reads prompt and completion together, in both directions.
    """

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.config: Seq2SeqConfig = model.config
        self.shared, self.encoder = model.shared, model.encoder
        like = {"device": model.device, "dtype": trainable(model.dtype)}
        self.score = nn.Linear(model.config.hidden_size, 1, bias=False, **like)
        nn.init.normal_(self.score.weight, std=(model.config.hidden_size + 1) ** -0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder.encode(self.shared(input_ids), attention_mask)
        last = (attention_mask.sum(-1) - 1).clamp(min=0)
        return linear_at_full_precision(self.score, hidden[torch.arange(len(last)), last]).sum(-1)
