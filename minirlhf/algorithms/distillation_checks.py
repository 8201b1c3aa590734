"""What student and teacher must share: the ids of one tokenizer, and logits without a cap."""

from __future__ import annotations

import json

from minirlhf.errors import InputError, shown
from minirlhf.model.policy import Policy
from minirlhf.text.tokenizer import Tokenizer


def common_ids(student: Policy, teacher: Policy, tokenizer: Tokenizer) -> int:
    """The number of ids that student and teacher are compared over: ids 0, 1, ..., up to the tokenizer's largest id.

    Raises: InputError if the models differ in ids that the tokenizer gives.
    """
    ids = 1 + max(tokenizer.backend.get_vocab().values())
    sizes = student.transformer.config.vocab_size, teacher.transformer.config.vocab_size
    if sizes[0] != sizes[1] and min(sizes) < ids:
        raise InputError(
            f"DistillationTrainer: student and teacher need a row for each of the tokenizer's {ids} ids, got "
            f"{sizes[0]} and {sizes[1]} rows; take two models with one tokenizer"
        )
    return min(ids, *sizes)


def check_logits(who: str, policy: Policy) -> None:
    """Raise InputError if the model caps its logits: the losses here compute logits without a cap."""
    if policy.transformer.config.final_logit_softcapping is not None:
        raise InputError(
            f"DistillationTrainer: the {who} caps its logits at {policy.transformer.config.final_logit_softcapping} "
            "(final_logit_softcapping), which distillation does not compute; take another model"
        )


def check_same_tokenizer(who: str, tokenizer: Tokenizer, teachers: Tokenizer) -> None:
    """Raise InputError unless both tokenizers give the same ids for every text. `who` names the student."""
    mine, theirs = (x.backend.get_vocab() for x in (tokenizer, teachers))
    different = min(set(mine.items()) ^ set(theirs.items()), key=lambda pair: pair[1], default=None)
    if different:
        raise InputError(
            f"{who}: the student's tokenizer must be the teacher's, but id {different[1]} differs: "
            f"{shown(different[0])} is in one of them only; take a student of the teacher's family"
        )
    mine, theirs = (json.loads(x.backend.to_str()) for x in (tokenizer, teachers))
    for part in ("normalizer", "pre_tokenizer", "model"):
        if mine[part] != theirs[part]:
            raise InputError(
                f"{who}: the student's tokenizer must be the teacher's, but their {part} differs, so they split texts "
                "in different ways; take a student of the teacher's family"
            )
