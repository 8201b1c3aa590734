"""Rollouts: completions sampled from prompts, with their log-probs, values, scores and statistics."""

from minirlhf.rollout.collect import collect
from minirlhf.rollout.read import read
from minirlhf.rollout.rollout import Rollout
from minirlhf.rollout.statistics import describe, explained_variance, moments_of_all
