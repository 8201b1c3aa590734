"""What every algorithm shares: the run, the optimizer, checkpoints, metrics, settings."""

from minirlhf.training.optimizer import Optimizer, OptimizerConfig
from minirlhf.training.run import ADAPTER, Run, RunConfig, RunSettings, finished_model
from minirlhf.training.settings import parse_settings, with_defaults
