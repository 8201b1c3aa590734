"""Measures of texts and of policies."""

from minirlhf.evaluation.policies import MEASURES, Report, comparison, evaluate_policy, summary, win_rate
from minirlhf.evaluation.texts import distinct_n
from minirlhf.lazy import lazy

__getattr__, __dir__ = lazy(__name__, {"minirlhf.evaluation.columns": "side_by_side"})
