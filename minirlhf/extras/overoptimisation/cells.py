"""The experiments of the lab: a cross. Each axis varies about one middle, so the number of cells is a sum.

A cell is a method with a proxy: the reward model that stands for the gold reward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Axis -> its values. The middle of the cross has the values of `Cell`.
AXES: dict[str, tuple] = {
    "comparisons": (100, 300, 1_000, 3_000, 10_000),
    "size": ("small", "medium", "large"),
    "ensemble": ("none", "mean", "min"),
    "kl_coef": (0.0, 0.03, 0.1),
}
# Method -> the axes that it depends on. DPO reads the comparisons of the middle, without a reward model.
METHODS: dict[str, tuple[str, ...]] = {
    "best_of_n": ("comparisons", "size", "ensemble"),
    "ppo": ("comparisons", "size", "ensemble", "kl_coef"),
    "dpo": (),
}
# Size of the reward model -> fields of ModelConfig. "medium" has the shape of the policy.
SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 48},
    "medium": {},
    "large": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 384},
}
MEMBERS = 3  # reward models of an ensemble


@dataclass(frozen=True)
class Cell:
    method: str  # a key of METHODS
    comparisons: int = 1_000  # [pairs] that the proxy learns from
    size: str = "medium"  # of the reward model: a key of SIZES
    ensemble: str = "none"  # a combination of MEMBERS reward models, or a single reward model
    kl_coef: float = 0.03  # [standard deviations of the proxy per nat] of PPO

    @property
    def name(self) -> str:
        """ppo for the middle; ppo-size-large for a cell on an axis."""
        return "-".join([self.method, *(f"{axis}-{getattr(self, axis)}" for axis in AXES if self.off_middle(axis))])

    def off_middle(self, axis: str) -> bool:
        return getattr(self, axis) != getattr(Cell(self.method), axis)

    def along(self, axis: str) -> list[Cell]:
        """The cells of the same method on this axis, in its order; the middle is among them."""
        return [replace(Cell(self.method), **{axis: value}) for value in AXES[axis]]


MIDDLE = tuple(Cell(method) for method in METHODS)
CROSS = tuple(dict.fromkeys([*MIDDLE, *(c for m in MIDDLE for axis in METHODS[m.method] for c in m.along(axis))]))
