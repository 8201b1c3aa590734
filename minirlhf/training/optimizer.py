"""AdamW with warm-up, cosine decay and clipping. An update copies numbers from the device to the host only once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minirlhf.errors import InputError, check_range
from minirlhf.runtime.distributed import all_sum, world_size


@dataclass(frozen=True)
class OptimizerConfig:
    """The settings of the optimizer, in the config of every algorithm."""

    lr: float = 1e-3  # [per update] peak learning rate of a small model; `--policy DIR` has a default by size
    lr_final: float = 0.1  # [share of lr] learning rate of the last update
    warmup: float = 0.05  # [share of updates] linear rise of the learning rate at the start
    weight_decay: float = 0.0  # [per lr] decay of weight matrices; norms and biases do not decay
    beta1: float = 0.9  # [-] AdamW's decay rate of the mean gradient
    beta2: float = 0.99  # [-] AdamW's decay rate of the mean squared gradient
    max_grad_norm: float = 1.0  # [norm] greatest length of the gradient; a longer gradient is scaled down

    def __post_init__(self) -> None:
        check_range(self, "lr", "max_grad_norm", above=0)
        check_range(self, "lr", most=1000)
        check_range(self, "lr_final", "warmup", least=0, most=1)
        check_range(self, "beta1", "beta2", least=0, most=0.999999)
        check_range(self, "weight_decay", least=0)


def cosine_schedule(update: int, *, updates: int, warmup: float, final: float) -> float:
    """Factor on the learning rate: it rises linearly to 1, then falls along half a cosine to `final`.

    Args:
        update: 0, ..., updates - 1.
        warmup: share of the updates in which the factor rises.
    """
    rising = max(1, round(warmup * updates))
    if update < rising:
        return (update + 1) / rising
    progress = min(1.0, (update - rising + 1) / max(1, updates - rising))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """Updates the trainable parameters of some modules.

    Args:
        modules: name -> module; the names are the keys of the saved state.
        updates: the number of updates in the whole run, the length of the schedule.
    Raises: InputError if a trained parameter is in half precision: most updates would be rounded away.
    """

    def __init__(self, modules: dict[str, nn.Module], config: OptimizerConfig, updates: int) -> None:
        self.config, self.updates, self.update = config, updates, 0
        self.parameters: dict[str, nn.Parameter] = {}
        for module_name, module in modules.items():
            named = {f"{module_name}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
            self.parameters.update(named)
        half = [f"{name} ({p.dtype})" for name, p in self.parameters.items() if torch.finfo(p.dtype).bits < 32]
        if half:
            raise InputError(
                f"Optimizer: trained weights must be fp32, got {half[0]} and {len(half) - 1} more in half precision, "
                "which rounds small updates away; load the model with dtype=torch.float32, or freeze these weights"
            )
        if any(p.device.type == "cpu" for p in self.parameters.values()):
            from minirlhf.runtime.allocator import keep_freed_memory  # here, so that the core loads no leaf

            keep_freed_memory()
        matrices = [p for p in self.parameters.values() if p.dim() > 1]
        vectors = [p for p in self.parameters.values() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(
            [{**group, "scale": 1.0} for group in groups if group["params"]],  # scale: see own_rate.py
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=True,
        )
        self.whole = world_size() == 1 and not any(hasattr(p, "to_local") for p in self.parameters.values())
        if not self.whole:
            from minirlhf.runtime.parallel.groups import arrange  # here, so that the core loads no leaf

            arrange(self.adamw)

    def zero_grad(self) -> None:
        for p in self.parameters.values():
            p.grad = None

    def step(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Make one update from the current gradients.

        Args:
            sums: metric -> scalar of this rank, with the key "loss". Every rank divided by the global count, so the sum
                over all ranks is the metric.
        Returns: the metrics, grad_norm and lr as numbers.

        The metrics and the gradient's norm go to the host in one copy, the only sync of the update. If the loss or the
        norm is not finite, no weight changes, and `Run.record` stops the run.
        """
        norm = self._clip()
        totals = all_sum(torch.stack([value.detach().to(norm.dtype) for value in sums.values()]))
        *values, norm = torch.cat([totals, norm.detach()[None]]).tolist()
        metrics = dict(zip(sums, values, strict=True))
        lr = self.config.lr * cosine_schedule(
            self.update, updates=self.updates, warmup=self.config.warmup, final=self.config.lr_final
        )
        if math.isfinite(norm) and math.isfinite(metrics["loss"]):
            for group in self.adamw.param_groups:
                group["lr"] = lr * group["scale"]
            self.adamw.step()
            self.update += 1
        self.zero_grad()
        return {**metrics, "grad_norm": norm, "lr": lr}

    def _clip(self) -> Tensor:
        """Clip the gradients, the same on all processes -> their norm."""
        parameters, most = list(self.parameters.values()), self.config.max_grad_norm
        if self.whole:
            return nn.utils.clip_grad_norm_(parameters, most)
        from minirlhf.runtime.parallel.gradients import clip  # here, so that the core loads no leaf

        return clip(parameters, most)

    def state_dict(self) -> dict:
        """{"update": count, "moments": {name: moments}}. Positions would change with frozen layers; names do not."""
        moments = {name: dict(self.adamw.state[p]) for name, p in self.parameters.items() if p in self.adamw.state}
        return {"update": self.update, "moments": moments}

    def load_state_dict(self, state: dict) -> None:
        self.update = state["update"]
        own = {p for group in self.adamw.param_groups for p in group["params"]}
        for name, moments in state.get("moments", {}).items():
            if (p := self.parameters[name]) in own:
                # the fused AdamW needs its step count in float32 and on the parameter's device
                loaded = {key: m.like(p) if hasattr(m, "like") else m.clone() for key, m in moments.items()}
                self.adamw.state[p] = {key: m.to(p.device) for key, m in loaded.items()}
