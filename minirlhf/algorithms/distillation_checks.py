"""Checks of student and teacher: both have the ids of the tokenizer, and their tokenizers agree."""

from __future__ import annotations

import json

from minirlhf.errors import InputError, shown
from minirlhf.model.policy import Policy
from minirlhf.text.tokenizer import Tokenizer


def common_ids(student: Policy, teacher: Policy, tokenizer: Tokenizer) -> int:
    """The number of ids that student and teacher are compared over: ids 0, 1, ..., up to the tokenizer's largest id.

    Raises: InputError if the models differ in ids that the tokenizer gives.
    """
    ids = tokenizer.vocab_size
    sizes = student.transformer.config.vocab_size, teacher.transformer.config.vocab_size
    if sizes[0] != sizes[1] and min(sizes) < ids:
        raise InputError(
            f"DistillationTrainer: student and teacher need a row for each of the tokenizer's {ids} ids, got "
            f"{sizes[0]} and {sizes[1]} rows; take two models with one tokenizer"
        )
    return min(ids, *sizes)


def check_same_tokenizer(who: str, student: Tokenizer, teacher: Tokenizer) -> None:
    """Raise InputError unless both tokenizers give the same ids for every text.   who: a name for the message."""
    ids, teacher_ids = (tokenizer.backend.get_vocab().items() for tokenizer in (student, teacher))
    different = min(ids ^ teacher_ids, key=lambda pair: pair[1], default=None)
    if different:
        raise InputError(
            f"{who}: the student's tokenizer must be the teacher's, but id {different[1]} differs: "
            f"{shown(different[0])} is a token of one tokenizer only; take a student of the teacher's family"
        )
    parts, teacher_parts = (json.loads(tokenizer.backend.to_str()) for tokenizer in (student, teacher))
    for part in ("normalizer", "pre_tokenizer", "model"):
        if parts[part] != teacher_parts[part]:
            raise InputError(
                f"{who}: the student's tokenizer must be the teacher's, but their {part} differs, so they split texts "
                "in different ways; take a student of the teacher's family"
            )
