"""Measures of texts and of policies."""

from minirlhf.evaluation.policies import Report, comparison, evaluate_policy, side_by_side, win_rate
from minirlhf.evaluation.texts import distinct_n
