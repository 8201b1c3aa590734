"""The parts that every algorithm shares: the run, the optimizer, checkpoints, metrics, settings."""

from minirlhf.lazy import lazy

# Names are loaded on first use: a program that reads run folders needs the names of metrics, but no torch.
LEAVES = {
    "minirlhf.training.defaults": "with_defaults",
    "minirlhf.training.optimizer": "Optimizer OptimizerConfig",
    "minirlhf.training.run": "ADAPTER Run RunConfig RunSettings finished_model",
    "minirlhf.training.settings": "parse_settings",
    "minirlhf.training.vocabulary": "METRICS",
}
__getattr__, __dir__ = lazy(__name__, LEAVES)
