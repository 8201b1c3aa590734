"""Find each weight of a model in the safetensors files of a folder, by the headers of the files alone.

Other tools write one model in many ways: in one file or in shards, as a variant such as fp16, a tied weight under one
of its two names, and names with the prefixes of wrappers. Reading a header costs nothing, so each folder is checked
before the first weight is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minirlhf.errors import InputError, shown
from minirlhf.model.config import ModelConfig
from minirlhf.model.names import name_here, name_in_family
from minirlhf.model.policy import ValueModel
from minirlhf.pretrained.families import is_transposed
from minirlhf.pretrained.safe import missing_weights, open_weights, read_json
from minirlhf.runtime.distributed import say

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
VALUE_HEAD = "value_head.safetensors"  # beside the model, because the Hugging Face layout has none for a policy
PICKLE, ADAPTER = "pytorch_model.bin", "adapter_config.json"
# model.safetensors, model-00001-of-00003.safetensors, model.fp16.safetensors and both names of a shard of a variant
FILE_NAME = re.compile(r"model(?:\.(\w+))?(?:-(\d{5})-of-(\d{5}))?(?:\.(\w+))?\.safetensors")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
HEADS = ("lm_head.", "score.", "value_head.")
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # buffers in older files
# Names of modules that DDP, torch.compile, FSDP and gradient checkpointing put around a module
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Location(NamedTuple):
    """The file of a weight, and its name, shape and dtype in the file."""

    path: Path
    name: str
    shape: torch.Size  # in the model: [out, in], even if the file has [in, out]
    dtype: torch.dtype
    transposed: bool


def find_weights(model: nn.Module, folder: Path) -> dict[str, Location]:
    """Our name -> location, for every weight of the model.

    Raises: InputError if a file is missing or broken, or a weight is missing, surplus, of another shape or of a dtype
    that is no float.
    """
    expected, tied = model.state_dict(), model.config.tie_word_embeddings
    files, source = weight_files(folder)
    found = locations(files, model.config.model_type)
    if isinstance(model, ValueModel):
        found = {name.replace("score.", "value_head."): location for name, location in found.items()}
    if tied and HEAD in found and EMBEDDING not in found:
        found[EMBEDDING] = found.pop(HEAD)
    check_all_found(expected, found, source, advice=_advice(found, tied))
    if tied and HEAD in found and not _equal(found[HEAD], found[EMBEDDING]):
        raise InputError(
            f"{source}: config.json ties the head to the embedding, but lm_head.weight is not equal to it; if "
            'the head is right, write "tie_word_embeddings": false; else delete the head from the file'
        )
    surplus = found.keys() - expected.keys() - ({HEAD} if tied else set())
    if surplus:
        names = sorted(found[name].name for name in surplus)
        raise InputError(f"{source}: {len(surplus)} weights do not belong to the model: {some(names)}")
    check_shapes({name: weight.shape for name, weight in expected.items()}, found, "config.json says")
    return {name: found[name] for name in expected}


def check_sizes(config: ModelConfig, folder: Path) -> None:
    """Compare config.json with the headers of the files, before a model of its sizes is built.

    The number of MLPs decides how long building takes, and each MLP has a weight at least. `find_weights` compares
    everything else. Raises: InputError if config.json promises more than the files hold.
    """
    files, source = weight_files(folder)
    found = locations(files, config.model_type)
    mlps = sum(config.num_experts if config.has_experts(layer) else 1 for layer in range(config.num_hidden_layers))
    if mlps > len(found):
        experts = f" with {config.num_experts:,} experts each" if config.num_experts else ""
        raise InputError(
            f"{source}: holds {len(found):,} weights, too few for the {config.num_hidden_layers:,} layers{experts} "
            "that config.json promises; is it another model?"
        )
    if embedding := found.get(EMBEDDING, found.get(HEAD)):
        check_shapes({EMBEDDING: (config.vocab_size, config.hidden_size)}, {EMBEDDING: embedding}, "config.json says")


def check_all_found(
    expected: dict[str, Tensor], found: dict[str, Location], source: Path, advice: str = "is it another model?"
) -> None:
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"{source}: {len(missing)} weights are missing: {some(missing)}; {advice}")


def check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, Location], source: str) -> None:
    for name, needed in expected.items():
        path, family_name, shape, *_ = found[name]
        if shape != needed:
            raise InputError(f"{path}: {family_name} must be {tuple(needed)} as {source}, got {tuple(shape)}")


def locations(files: list[Path], model_type: str) -> dict[str, Location]:
    """Our name -> location, for all weights in the files. A name that we do not know keeps its form.

    Raises: InputError if a file is broken, a weight is no float, or two different weights have one name.
    """
    headers = []
    for path in files:
        with open_weights(path) as file:
            slices = ((name, file.get_slice(name)) for name in file.keys() if not name.endswith(NOT_WEIGHTS))  # noqa: SIM118
            headers += [(path, name, torch.Size(part.get_shape()), part.get_dtype()) for name, part in slices]
    if packed := [f"{name} ({dtype})" for _, name, _, dtype in headers if dtype not in DTYPES]:
        raise InputError(
            f"{files[0].parent}: needed weights in {', '.join(DTYPES)}, got {len(packed)} of another type: "
            f"{some(sorted(packed))}; the model is quantised or packed, so take its unquantised folder"
        )
    names = names_in_family([name for _, name, _, _ in headers], model_type)
    found: dict[str, Location] = {}
    for path, name, shape, dtype in headers:
        transposed = is_transposed(model_type, names[name])
        location = Location(path, name, shape[::-1] if transposed else shape, DTYPES[dtype], transposed)
        first = found.setdefault(name_here(model_type, names[name]), location)
        if first is not location and not _equal(first, location):
            raise InputError(f"{path}: {first.name} and {name} are one weight, but their numbers are different")
    return found


def names_in_family(names: list[str], model_type: str) -> dict[str, str]:
    """Name in a file -> the family's own name, without wrappers and with the family's first part.

    All layers must have one prefix: what stands before "layers.0." in a name. That prefix is replaced by the family's
    ("model."). The head stands outside of the trunk, so it loses only what stands before the family's prefix.
    """
    plain = {name: unwrapped(name) for name in names}
    root, layers = re.fullmatch(r"(\w+\.)(\w+\.)", name_in_family(model_type, "model.layers.")).groups()
    prefixes = _prefixes(plain.values(), layers)
    if len(prefixes) != 1:
        return plain
    (prefix,) = prefixes
    outer = prefix.removesuffix(root)

    def renamed(name: str) -> str:
        inside = name.startswith(prefix) and not name.startswith(tuple(outer + head for head in HEADS))
        return root + name.removeprefix(prefix) if inside else name.removeprefix(outer)

    return {name: renamed(inner) for name, inner in plain.items()}


def unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(names: Iterable[str], layers: str) -> set[str]:
    found = (re.match(rf"((?:[^.]+\.)*?){re.escape(layers)}\d+\.", name) for name in names)
    return {match[1] for match in found if match}


def _advice(found: dict[str, Location], tied: bool) -> str:
    """The likely reason why weights are missing."""
    names = [location.name for location in found.values()]
    if adapted := [name for name in names if ".lora_" in name]:
        return f"an adapter stands beside the weights ({adapted[0]}): save the model after PEFT's merge_and_unload()"
    prefixes = _prefixes(names, "layers.") | _prefixes(names, "h.")
    if len(prefixes) > 1:
        return f"the names begin in {len(prefixes)} ways ({some(sorted(prefixes))}), so save the one model alone"
    if not tied and (HEAD in found) != (EMBEDDING in found):
        return 'if the head is the embedding, write "tie_word_embeddings": true into config.json'
    return "is it another model?"


# The files of a folder


def weight_files(folder: Path) -> tuple[list[Path], Path]:
    """-> (the file or the shards of the model, the path that an error names).

    In this order: model.safetensors; the shards of the index; a complete set of shards without index; the only variant.
    Raises: InputError if a file is missing, or if several sets could be meant.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], folder / WEIGHTS
    if (folder / INDEX).is_file():
        return _indexed(folder), folder / INDEX
    sets: dict[tuple[str, str], list[Path]] = defaultdict(list)  # (variant, number of shards) -> files
    for path in sorted(folder.glob("model*.safetensors")):
        if match := FILE_NAME.fullmatch(path.name):
            sets[match[1] or match[4] or "", match[3] or ""].append(path)
    chosen = [key for key in sets if not key[0]] or list(sets)
    if not chosen and (folder / ADAPTER).is_file():
        raise InputError(f"{folder}: needed the weights of a model, found an adapter; {merge_advice(folder)}")
    if not chosen:
        raise missing_weights(folder / WEIGHTS, PICKLE)
    if len(chosen) > 1:
        first = [sets[key][0].name for key in chosen]
        raise InputError(
            f"{folder}: needed the weights of one model, found the beginnings of {len(first)}: {some(first)}; keep the "
            f"files of one model, and rename a single file to {WEIGHTS}"
        )
    ((variant, total),) = chosen
    files = sets[variant, total]
    if total:
        _check_complete(folder, files, total)
    if variant:
        say(f"{folder}: reads the variant {variant}, because the folder has no other weights")
    return files, files[0] if len(files) == 1 else folder


def merge_advice(folder: Path) -> str:
    return f"minirlhf adapter merge {folder} --output DIR makes a model of it"


def _check_complete(folder: Path, files: list[Path], total: str) -> None:
    """Raise InputError unless the set has each of its shards."""
    numbers = {FILE_NAME.fullmatch(path.name)[2] for path in files}
    if missing := [number for number in range(1, int(total) + 1) if f"{number:05}" not in numbers]:
        names = [re.sub(r"-\d{5}-", f"-{number:05}-", files[0].name) for number in missing]
        raise InputError(f"{folder}: needed {int(total)} files, found no {some(names)}; download them")


def _indexed(folder: Path) -> list[Path]:
    names = read_json(folder / INDEX, "a JSON object with weight_map", weight_map=dict)["weight_map"].values()
    if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise InputError(f"{folder / INDEX}: a shard must be in the same folder, got {shown(outside[0])}")
    names, present = sorted(set(names)), {path.name for path in folder.iterdir()}
    if missing := [name for name in names if name not in present]:
        raise InputError(f"{folder}: needed the shards that {INDEX} lists, found no {some(missing)}; download them")
    return [folder / name for name in names]


def some(names: list[str]) -> str:
    """The first five names."""
    return ", ".join(shown(name)[1:-1] for name in names[:5]) + (
        f" and {len(names) - 5} more" if len(names) > 5 else ""
    )


def _equal(first: Location, second: Location) -> bool:
    with open_weights(first.path) as first_file, open_weights(second.path) as second_file:
        tensors = first_file.get_tensor(first.name), second_file.get_tensor(second.name)
    return torch.equal(*tensors)
