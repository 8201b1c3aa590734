"""Names of models that are no model folders: a pipeline's folder stands for its last policy (sft/, reward/ and ppo/
for the policy of ppo/), OWNER/NAME for a model of the hub.
"""

from __future__ import annotations

from pathlib import Path

from minirlhf.errors import InputError
from minirlhf.model.policy import RewardModel
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained.hub import is_model_name, model_folder
from minirlhf.pretrained.weights import read_config
from minirlhf.training.run import finished_model


def named_model(name: str | Path) -> Path:
    """The folder of this name, of a pipeline's last policy, or of a model of the hub."""
    if is_model_name(name):
        return model_folder(str(name))
    folder = Path(name)
    is_pipeline = not (folder / "config.json").exists() and any(folder.glob("*/model"))
    return (last_policy(folder) if is_pipeline else None) or folder


def last_policy(folder: Path) -> Path | None:
    """The final policy of the last stage; None if no stage has a policy.

    SFT comes first, so SFT's policy is the last only if no other stage has one.
    Raises: InputError if a stage has not finished, or several stages after SFT have a policy.
    """
    stages, finals = _stages(folder)
    policies = {stage: final for stage, final in finals.items() if read_config(final)[1] is Transformer}
    last = [stage for stage in policies if stage.name != "sft"] or list(policies)
    choices = ", ".join(map(str, policies))
    if policies and (unfinished := [stage.name for stage in stages if stage not in finals]):
        raise InputError(f"{folder}: its stage {unfinished[0]} has not finished; name a stage that has: {choices}")
    if len(last) > 1:
        raise InputError(f"{folder}: several stages after SFT have a policy; name one stage: {choices}")
    return policies[last[0]] if last else None


def check_no_pipeline(folder: Path) -> None:
    """Raise InputError for a pipeline's folder: it stands for a policy, and the caller needs a reward model."""
    _, finals = _stages(folder)
    if finals and not finished_model(folder) and not (folder / "config.json").exists():
        rewards = [str(stage) for stage, final in finals.items() if read_config(final)[1] is RewardModel]
        advice = f"did you mean {' or '.join(rewards)}?" if rewards else "none of its stages has a reward model"
        raise InputError(f"{folder}: needed a reward model's folder, found a pipeline's; {advice}")


def _stages(folder: Path) -> tuple[list[Path], dict[Path, Path]]:
    """-> (the folders of the stages, stage -> final model of the finished stages)."""
    stages = sorted(path.parent for path in folder.glob("*/config.toml"))
    return stages, {stage: final for stage in stages if (final := finished_model(stage))}
