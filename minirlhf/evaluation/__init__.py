"""Measures of texts and of policies. Names are loaded on first use: `minirlhf run` needs columns, but no torch."""

from minirlhf.lazy import lazy

POLICIES = {"minirlhf.evaluation.policies": "MEASURES Report evaluate_policy"}
POLICIES |= {"minirlhf.evaluation.effect": "comparison summary"}
TEXTS = {"minirlhf.evaluation.texts": "distinct_n", "minirlhf.evaluation.columns": "side_by_side"}
__getattr__, __dir__ = lazy(__name__, POLICIES | TEXTS | {"minirlhf.evaluation.pairwise": "win_rate"})
