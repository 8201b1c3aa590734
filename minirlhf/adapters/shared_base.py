"""Four models on one frozen base: policy, value model and reward model have an adapter each, the reference has none."""

from __future__ import annotations

from dataclasses import dataclass

from minirlhf.adapters.lora import LoRAConfig, adapter_view, apply_lora
from minirlhf.adapters.select import count_parameters
from minirlhf.model.policy import Policy, RewardModel, ValueModel
from minirlhf.model.transformer import Transformer

ADAPTERS = ("policy", "value", "reward")


@dataclass(frozen=True)
class FourModels:
    """Views of one base. Each view sees its own adapter alone, so no code has to switch adapters."""

    policy: Policy
    value: ValueModel
    reward: RewardModel
    reference: Policy

    @classmethod
    def of(cls, base: Transformer) -> FourModels:
        """The four views of a base that has the three adapters."""
        return cls(
            policy=Policy(adapter_view(base, "policy")),
            value=ValueModel(adapter_view(base, "value")),
            reward=RewardModel(adapter_view(base, "reward")),
            reference=Policy(adapter_view(base, None)).eval(),
        )

    def sizes(self) -> str:
        """The number of parameters of the base and of each adapter with its head, in lines of text."""
        lines = [f"one base of {count_parameters(self.reference)[1]:,} numbers, and on it"]
        lines += [f"  {name:<7} {count_parameters(getattr(self, name))[0]:>12,}" for name in ADAPTERS]
        return "\n".join(lines)


def put_three_adapters(base: Transformer, config: LoRAConfig) -> Transformer:
    """Put fresh adapters for policy, value model and reward model on a base, in place."""
    for name in ADAPTERS:
        apply_lora(base, config, name)
    return base
