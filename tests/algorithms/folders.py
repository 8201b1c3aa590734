"""Model folders read and written by two processes that hold the model in slices. `tiny.py` runs `check_folders`."""

from __future__ import annotations

import contextlib
import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minirlhf import manifest
from minirlhf.adapters.quantised import quantised_slices
from minirlhf.errors import InputError
from minirlhf.model import (
    LoRAConfig,
    ModelConfig,
    Policy,
    ProcessRewardModel,
    RewardModel,
    Transformer,
    ValueModel,
    apply_lora,
    quantise_linears,
)
from minirlhf.pretrained import load_policy, load_pretrained, load_reward_model, save_adapter, save_pretrained, weights
from minirlhf.pretrained.config_json import config_from
from minirlhf.pretrained.families import FAMILIES
from minirlhf.pretrained.saving import save_merged
from minirlhf.runtime.distributed import barrier, is_main, rank
from minirlhf.runtime.parallel.sharding import full, is_sharded, local, shard
from minirlhf.runtime.parallel.starting import started

CPU = torch.device("cpu")
SIZES = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 21, "max_position_embeddings": 64}
SIZES |= {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 5}
SOME = ("llama", "phi3", "qwen3_moe", "gpt2")  # plain, fused, experts, stored transposed
HEADS = {"reward": RewardModel, "value": ValueModel, "process": ProcessRewardModel}


def transformer(model_type: str = "llama", tied: bool = False) -> Transformer:
    """A model of the family whose every weight has other numbers. Sizes do not divide by the processes."""
    keys = {key: SIZES[ours] for ours, key in FAMILIES[model_type].keys.items() if ours in SIZES}
    torch.manual_seed(1)
    model = Transformer(config_from({"model_type": model_type, "tie_word_embeddings": tied, **keys}))
    return noisy(model)


def noisy(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point():
                p.add_(torch.randn(p.shape))
    return model


def models(every: bool) -> dict[str, nn.Module]:
    """By the name of the folder: families, and every class of model. every: each family with both kinds of head."""
    names = FAMILIES if every else SOME
    tied = {name: number % 2 == 1 for number, name in enumerate(names)}
    made = {name: transformer(name, tied[name]) for name in names}
    made |= {f"{name}, other head": transformer(name, not tied[name]) for name in names if every}
    made |= {name: noisy(model_class(transformer())) for name, model_class in HEADS.items()}
    made["with values"] = noisy(Policy(transformer(), value_head=True))
    return made | {"bf16": transformer().bfloat16(), "mixed": RewardModel(transformer().bfloat16())}


def differences(model: nn.Module, whole: nn.Module) -> list[str]:
    """What distinguishes a model that was read in slices from the whole model, sharded."""
    assert is_sharded(model)
    found, expected = ({name: p for name, p in m.named_parameters()} for m in (model, shard(whole, CPU)))
    kinds = [{name: (type(p), p.dtype, p.shape, p.requires_grad) for name, p in m.items()} for m in (found, expected)]
    same = [n for n in found if kinds[0][n] == kinds[1].get(n) and torch.equal(local(found[n]), local(expected[n]))]
    classes = [type(m).__mro__[2] for m in (model, whole)]  # before FSDP put its own class in front
    return sorted((found.keys() | expected.keys()) - set(same)) + ["class"] * (classes[0] is not classes[1])


def one_process(read: Callable[[Path], nn.Module], folder: Path) -> nn.Module:
    """The model that one process reads."""
    with mock.patch("minirlhf.pretrained.weights.world_size", lambda: 1):
        return read(folder)


READERS = {
    "as stored": load_pretrained,
    "float64": lambda folder: load_pretrained(folder, torch.float64),
    "policy": lambda folder: load_policy(folder, dtype=torch.float32),
    "value head": lambda folder: load_policy(folder, value_head=True),
}
WAYS = {"reward": ["reward model"], "value": ["as stored"], "process": ["as stored"], "mixed": ["as stored", "float64"]}
WAYS |= {"with values": ["value head"], "bf16": ["as stored", "value head"]}


def read_all(folder: Path, every: bool) -> dict[str, list[str]]:
    """Every folder, read in slices -> the names of the weights that differ from those of one process."""
    found = {}
    for number, (name, model) in enumerate(models(every).items()):
        if is_main():
            save_pretrained(model, folder / name)
        barrier()
        ways = [*READERS] if every and name not in WAYS else WAYS.get(name, [[*READERS][number % 4]])
        for how in ways:
            read = READERS.get(how, load_reward_model)
            found[f"{name}, {how}"] = differences(read(folder / name), one_process(read, folder / name))
    return found


def adapted(folder: Path) -> list[str]:
    def read(folder: Path) -> nn.Module:
        torch.manual_seed(5)
        return load_policy(folder, change=lambda policy: apply_lora(policy, LoRAConfig(r=2)))

    return differences(read(folder / "bf16"), one_process(read, folder / "bf16"))


def four_bits() -> list[str]:
    """A model in slices, quantised weight by weight. Some blocks of 64 numbers span rows of two processes."""
    whole = quantise_linears(transformer().bfloat16()).float()
    return differences(quantised_slices(shard(transformer().bfloat16(), CPU), torch.float32), whole)


def with_a_head(config: ModelConfig, model_class: type[nn.Module]) -> nn.Module:
    return Policy(Transformer(config), value_head=True) if model_class is Policy else model_class(Transformer(config))


def fresh(every: bool) -> dict[str, list[str]]:
    """New models, drawn in slices -> the names of the weights that differ, and whether the next random number does."""
    found = {}
    for name in FAMILIES if every else ("qwen3_moe", "gpt2"):
        make = partial(with_a_head, transformer(name).config, Policy if name == "gpt2" else RewardModel)
        torch.manual_seed(3)
        model, after = make(), torch.rand(1)
        torch.manual_seed(3)
        found[name] = differences(started(make, CPU), model)
        found[name] += ["the next number"] * (not torch.equal(torch.rand(1), after))
    return found


class Counted:
    """A reader of a file that counts the bytes of the tensors that it gives out."""

    def __init__(self, file, counts: Counter) -> None:
        self.file, self.counts = file, counts

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __getitem__(self, rows) -> Tensor:
        part = self.file[rows]
        self.counts["bytes"] += part.nbytes
        self.counts["largest"] = max(self.counts["largest"], part.nbytes)
        return part

    def get_tensor(self, name: str) -> Tensor:
        return self.get_slice(name)[:]

    def get_slice(self, name: str) -> Counted:
        return Counted(self.file.get_slice(name), self.counts)


def bytes_read(folder: Path) -> Counter:
    """Bytes that this process reads of the weights in a folder, and of the largest single read."""
    counts, open_weights = Counter(), weights.open_weights

    @contextlib.contextmanager
    def counted(path: Path) -> Iterator[Counted]:
        with open_weights(path) as file:
            yield Counted(file, counts)

    with mock.patch("minirlhf.pretrained.weights.open_weights", counted):
        load_policy(folder)
    return counts


class Gathered:
    """Gathers weights as `sharding.full` does, and keeps the largest number of bytes that are alive at one time."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.most = 0

    def __call__(self, p: Tensor) -> Tensor:
        tensor = full(p)
        if isinstance(p, DTensor):
            key = len(self.alive)
            self.alive[key] = tensor.nbytes
            weakref.finalize(tensor, self.alive.__setitem__, key, 0)
            self.most = max(self.most, sum(self.alive.values()))
        return tensor


def save_everything(folder: Path, models: dict[str, nn.Module]) -> None:
    """Every way to write a model: whole, in files of 2 kB, an adapter alone, and merged into its base."""
    for name, model in models.items():
        if name.startswith("adapted"):
            save_adapter(model, folder / name)
            save_merged(model, folder / f"{name}, merged", dtype=torch.float16)
            continue
        save_pretrained(model, folder / name)
        with mock.patch("minirlhf.pretrained.weight_files.FILE_BYTES", 2000):
            save_pretrained(model, folder / f"{name} in files")


def write_all(folder: Path) -> float:
    """One process writes models into folders/one, then two in slices into folders/two.

    -> the most bytes of gathered weights at a time, as a fraction of the largest weight.
    """
    policy = apply_lora(Policy(transformer("gpt2"), value_head=True), LoRAConfig(r=2, use_dora=True))
    models = {"gpt2": transformer("gpt2"), "policy": Policy(transformer(), value_head=True), "adapted": noisy(policy)}
    models["moe"] = RewardModel(transformer("qwen3_moe").bfloat16())
    models["adapted, 4 bits"] = noisy(apply_lora(quantise_linears(Policy(transformer())), LoRAConfig(r=2)))
    if is_main():
        save_everything(folder / "one", models)
    barrier()
    counter, largest = Gathered(), max(p.nbytes for model in models.values() for p in model.parameters())
    with mock.patch("minirlhf.runtime.parallel.sharding.full", counter):
        save_everything(folder / "two", {name: shard(model, CPU) for name, model in models.items()})
    return counter.most / largest


def check_damage(folder: Path) -> tuple[float, str]:
    """(share of the bytes of a folder with a manifest that this process reads for checksums, error after damage)."""
    if is_main():
        manifest.write_manifest(folder)
    barrier()
    read, checksum = [], manifest.checksum
    with mock.patch("minirlhf.manifest.checksum", lambda path: read.append(path.stat().st_size) or checksum(path)):
        load_policy(folder)
    share = sum(read) / sum(file["size"] for file in manifest.read_manifest(folder)["files"].values())
    barrier()
    if is_main():
        path = folder / "model-00002-of-00007.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    barrier()
    try:
        load_policy(folder)
    except InputError as error:
        return share, str(error)
    return share, ""


def check_folders(folder: Path, every: bool) -> None:
    """Write folders/RANK.json with the results."""
    folder = folder / "folders"
    found = {
        "read": read_all(folder, every),
        "adapted": adapted(folder),
        "four bits": four_bits(),
        "fresh": fresh(every),
    }
    largest = max(p.nbytes for p in transformer().parameters())
    found["bytes"] = {**bytes_read(folder / "llama"), "all": sum(p.nbytes for p in transformer().parameters())}
    found["bytes"]["largest weight"] = largest
    found["gathered"] = write_all(folder)
    found["damage"] = check_damage(folder / "two" / "policy in files")
    (folder / f"{rank()}.json").write_text(json.dumps(found))
