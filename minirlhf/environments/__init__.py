"""Environments: a policy acts in several turns, and its environment answers each turn."""

from minirlhf.environments.environment import Environment, Observation
from minirlhf.environments.episodes import Episode, Episodes
from minirlhf.environments.text_environment import TextEnvironment
