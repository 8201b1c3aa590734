"""Measures of texts and of policies."""

from minirlhf.evaluation.policies import Report, evaluate_policy, side_by_side
from minirlhf.evaluation.texts import distinct_n

__all__ = ["Report", "distinct_n", "evaluate_policy", "side_by_side"]
