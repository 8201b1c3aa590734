"""AdamW with warm-up, cosine decay and clipping, and the one moment of an update at which the host asks the device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minirlhf.errors import check_range
from minirlhf.runtime.distributed import all_sum


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer's part of every algorithm's settings."""

    lr: float = 1e-3  # [per update] peak learning rate
    lr_final: float = 0.1  # [share of lr] where the cosine ends
    warmup: float = 0.05  # [share of updates] linear rise of the learning rate at the beginning
    weight_decay: float = 0.0  # [per lr] decay of weight matrices; norms and biases have none
    beta1: float = 0.9  # [-] AdamW's memory of the gradient
    beta2: float = 0.99  # [-] AdamW's memory of its square
    max_grad_norm: float = 1.0  # [norm] longer gradients are scaled down to this

    def __post_init__(self) -> None:
        check_range(self, "lr", "max_grad_norm", above=0)
        check_range(self, "lr_final", "warmup", least=0, most=1)
        check_range(self, "beta1", "beta2", least=0, most=0.999999)
        check_range(self, "weight_decay", least=0)


def cosine_schedule(update: int, *, updates: int, warmup: float, final: float) -> float:
    """Factor on the learning rate for update 0, 1, ..., updates - 1: up in a line, down in half a cosine to `final`."""
    rising = max(1, round(warmup * updates))
    if update < rising:
        return (update + 1) / rising
    progress = min(1.0, (update - rising + 1) / max(1, updates - rising))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """Steps the trainable parameters of some modules.

    Args:
        modules: what is trained, by name; the names key the saved state.
        updates: how many updates the whole run makes: the schedule's length.
    """

    def __init__(self, modules: dict[str, nn.Module], config: OptimizerConfig, updates: int) -> None:
        self.config, self.updates, self.update = config, updates, 0
        self.parameters: dict[str, nn.Parameter] = {}
        for module_name, module in modules.items():
            named = {f"{module_name}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
            self.parameters.update(named)
        matrices = [p for p in self.parameters.values() if p.dim() > 1]
        vectors = [p for p in self.parameters.values() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=True,
        )

    def zero_grad(self) -> None:
        self.adamw.zero_grad(set_to_none=True)

    def step(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """One update from the gradients at hand -> the metrics, grad_norm and lr as numbers.

        Args:
            sums: scalars of this rank that add up to the metric over all ranks (sums divided by global counts).

        The metrics, the loss among them, and the gradient's norm travel to the host together: the update's only sync.
        If loss or norm is not finite nothing is changed: the weights stay as they were, and `Run.record` stops the run.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        totals = all_sum(torch.stack([value.detach().to(norm.dtype) for value in sums.values()]))
        *values, norm = torch.cat([totals, norm.detach()[None]]).tolist()
        metrics = dict(zip(sums, values, strict=True))
        lr = self.config.lr * cosine_schedule(
            self.update, updates=self.updates, warmup=self.config.warmup, final=self.config.lr_final
        )
        if math.isfinite(norm) and math.isfinite(metrics["loss"]):
            for group in self.adamw.param_groups:
                group["lr"] = lr
            self.adamw.step()
            self.update += 1
        self.zero_grad()
        return {**metrics, "grad_norm": norm, "lr": lr}

    def drop_gradients(self, kept: Iterable[nn.Parameter]) -> None:
        """Forget all gradients except those of `kept`: the others are not touched by the next step."""
        keep = {id(p) for p in kept}
        for p in self.parameters.values():
            if id(p) not in keep:
                p.grad = None

    def state_dict(self) -> dict:
        """{update, moments of each parameter by name}: names, because positions change when a layer is frozen."""
        moments = {name: dict(self.adamw.state[p]) for name, p in self.parameters.items() if p in self.adamw.state}
        return {"update": self.update, "moments": moments}

    def load_state_dict(self, state: dict) -> None:
        self.update = state["update"]
        for name, moments in state.get("moments", {}).items():
            p = self.parameters[name]
            # AdamW's count of steps stays float32 and on the parameter's device, which its fused form requires
            self.adamw.state[p] = {key: value.clone().to(p.device) for key, value in moments.items()}
