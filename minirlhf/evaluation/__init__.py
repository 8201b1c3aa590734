"""Measures of texts and of policies."""

from minirlhf.evaluation.policies import MEASURES, Report, comparison, evaluate_policy, side_by_side, summary, win_rate
from minirlhf.evaluation.texts import distinct_n
