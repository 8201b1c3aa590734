"""Sampling and the generation engine."""

from minirlhf.generation.engine import Completion, SamplingConfig, generate
from minirlhf.generation.sampling import sample
