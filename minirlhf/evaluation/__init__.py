"""Measures of texts and of policies."""

from minirlhf.lazy import lazy

# Names are loaded on first use: `minirlhf run` needs columns of text, but no torch.
LEAVES = {
    "minirlhf.evaluation.columns": "side_by_side",
    "minirlhf.evaluation.policies": "MEASURES Report comparison evaluate_policy summary win_rate",
    "minirlhf.evaluation.texts": "distinct_n",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
