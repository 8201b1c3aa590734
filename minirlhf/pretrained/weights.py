"""Read and write models as folders in the Hugging Face layout: config.json and safetensors, whole or in shards.

families.py has the names of each family; the value head, which that layout does not know, stands in a file of its own
beside them. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minirlhf.errors import InputError
from minirlhf.model.config import ModelConfig
from minirlhf.model.names import name_here, name_in_family
from minirlhf.model.policy import Policy, ProcessRewardModel, RewardModel, ValueModel
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained.config_json import config_from, config_to
from minirlhf.pretrained.families import family_of, is_transposed

CONFIG, VALUE_HEAD = "config.json", "value_head.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# what stands after a family's name in config.json's `architectures`
KINDS = {
    Transformer: "ForCausalLM",
    RewardModel: "ForSequenceClassification",
    ProcessRewardModel: "ForTokenClassification",
    ValueModel: "ForTokenClassification",  # whose number at a token is our value of the next one
}
IS_VALUE_MODEL = "value_model"  # a key of ours in config.json, which tells it from a process reward model
OTHER_NAMES = {("gpt2", Transformer): "GPT2LMHeadModel"}
OTHER_NAMES |= {("gemma3_text", RewardModel): "Gemma3TextForSequenceClassification"}
NUMBERS = ("score.", "value_head.")  # heads of one number
HEADS = ("lm_head.", *NUMBERS)
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # buffers that older files hold


def save_pretrained(
    model: Transformer | Policy | RewardModel | ValueModel, folder: str | Path, token_ids: dict[str, Any] | None = None
) -> None:
    """Write config.json and model.safetensors (and value_head.safetensors for a policy that has one) into `folder`.

    `token_ids` (pad_token_id, bos_token_id, eos_token_id; see `Tokenizer.token_ids`) go into config.json, where other
    tools look for them; `Tokenizer.save` writes the other files that a text needs.
    Raises: InputError if the model's config is a mixture that no family's config.json can say.
    """
    folder, transformer = Path(folder), model.transformer if isinstance(model, Policy) else model
    unknown = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))  # null; left out, it would be a default
    config = {**_config_json(transformer), **(token_ids or unknown)}  # refuses before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, Policy):
        if model.value_head is not None:
            _save(_on_cpu(model.value_head.state_dict()), folder / VALUE_HEAD)
        else:
            (folder / VALUE_HEAD).unlink(missing_ok=True)  # of a policy that was saved here before
    _save(_on_cpu(_named_as_there(transformer)), folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_pretrained(
    folder: str | Path, dtype: torch.dtype | None = None
) -> Transformer | RewardModel | ProcessRewardModel | ValueModel:
    """The model in a folder, on the CPU; config.json's `architectures` says which kind.

    dtype: of the weights; None: as in the files, which are then mapped and read where they are first used. The model is
    never in memory twice: it is made without storage, and each weight takes its place as it is read.
    Raises: InputError if a file is missing or broken, or a weight is missing, left over or of another shape.
    """
    folder = Path(folder)
    config, kind = read_config(folder)
    with torch.device("meta"), Uninitialised():
        transformer = Transformer(config)
        model = transformer if kind is Transformer else kind(transformer)
    model.load_state_dict(_weights(find_weights(model, folder), dtype), assign=True)
    return model


class Uninitialised(TorchFunctionMode):
    """Within, no weight is drawn. A first normal_ without storage would import torch._dynamo: 1 s and 80 MB."""

    DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return kwargs["tensor"] if func in self.DRAWS else func(*args, **(kwargs or {}))


def load_into(model: Transformer | Policy | RewardModel | ValueModel, folder: str | Path) -> None:
    """Fill a model that exists from the folder `save_pretrained` wrote it to. Raises: InputError as `find_weights`."""
    if isinstance(model, Policy):
        if model.value_head is not None:
            _fill_value_head(model, Path(folder))
        model = model.transformer
    own = model.state_dict()
    with torch.no_grad():
        for name, place in find_weights(model, Path(folder)).items():
            with _opened(place.path) as file:  # for each anew, as in `_weights`
                own[name].copy_(_read(file, place))


def load_policy(folder: str | Path, value_head: bool = False, dtype: torch.dtype | None = None) -> Policy:
    """A policy from a folder of a causal model; its value head too if one is asked for and stands there.

    Raises: InputError as `load_pretrained`, and if the folder holds a reward or value model.
    """
    transformer = load_pretrained(folder, dtype)
    if not isinstance(transformer, Transformer):
        raise InputError(f"{folder}: needed a language model, got a {type(transformer).__name__}; check the folder")
    policy = Policy(transformer, value_head)
    if value_head and (Path(folder) / VALUE_HEAD).exists():
        _fill_value_head(policy, Path(folder))
    return policy


def load_reward_model(folder: str | Path, dtype: torch.dtype | None = None) -> RewardModel:
    """A reward model from its folder. Raises: InputError as `load_pretrained`, and if the folder holds another kind."""
    model = load_pretrained(folder, dtype)
    if not isinstance(model, RewardModel):
        raise InputError(f"{folder}: needed a reward model, got a {type(model).__name__}; check the folder")
    return model


def read_config(folder: str | Path) -> tuple[ModelConfig, type[nn.Module]]:
    """config.json -> (ModelConfig, which class its weights are for). Raises: InputError."""
    path = Path(folder) / CONFIG
    if not path.is_file():
        advice = "check the path; a hub's model must be downloaded first"
        if finished := sorted(Path(folder).glob("*/model/config.json")):
            advice = f"did you mean {finished[-1].parents[1]}?"
        if (Path(folder) / "adapter_config.json").is_file():
            advice = f"it is an adapter: minirlhf adapter merge {folder} --output DIR makes a model of it"
        raise InputError(f"{folder}: needed a model folder with {CONFIG}, found none; {advice}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        architectures = list(raw["architectures"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: needed a model's JSON with vocab_size and architectures ({error!r})") from None
    try:
        config = config_from(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    kinds = {architecture(config.model_type, kind): kind for kind in KINDS if kind is not ValueModel}
    kind = next((kinds[name] for name in architectures if name in kinds), None)
    kind = ValueModel if kind is ProcessRewardModel and raw.get(IS_VALUE_MODEL) else kind
    if kind is None:
        raise InputError(f"{path}: architecture must be one of {', '.join(kinds)}, got {architectures}")
    if kind is RewardModel and len(raw.get("id2label") or {0: ""}) != 1:
        raise InputError(
            f"{path}: a reward model needs one label, got {len(raw['id2label'])}; it is a classifier of another kind"
        )
    return config, kind


def architecture(model_type: str, kind: type[nn.Module]) -> str:
    """The class that other tools load such a folder with."""
    return OTHER_NAMES.get((model_type, kind), family_of(model_type).architecture + KINDS[kind])


class Stored(NamedTuple):
    """Where a weight of ours stands."""

    path: Path
    name: str  # there
    shape: torch.Size  # here
    transposed: bool


def find_weights(model: nn.Module, folder: Path) -> dict[str, Stored]:
    """Our name -> where it stands, for every weight of the model.

    Raises: InputError if a file is missing or broken, or a weight is missing, left over or of another shape.
    """
    expected = model.state_dict()
    places = _places(_weight_files(folder), model.config.model_type)
    if isinstance(model, ValueModel):
        places = {name.replace("score.", "value_head."): place for name, place in places.items()}
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    where = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
    if missing := sorted(expected.keys() - places.keys()):
        raise InputError(f"{where}: {len(missing)} weights are missing: {_some(missing)}; is it another model?")
    if tied & places.keys() and not _same(places["lm_head.weight"], places["model.embed_tokens.weight"]):
        raise InputError(
            f"{where}: config.json ties the head to the embedding, but lm_head.weight is not equal to it; write "
            '"tie_word_embeddings": false if the head is right, else leave it out of the file'
        )
    surplus = {name for name in places.keys() - expected.keys() - tied if not name.endswith(NOT_WEIGHTS)}
    if surplus:
        raise InputError(f"{where}: {len(surplus)} weights are not the model's: {_some(sorted(surplus))}")
    for name, own in expected.items():
        path, there, shape, _ = places[name]
        if shape != own.shape:
            raise InputError(f"{path}: {there} must be {tuple(own.shape)} as config.json says, got {tuple(shape)}")
    return {name: places[name] for name in expected}


def _places(files: list[Path], kind: str) -> dict[str, Stored]:
    """What the headers of the files say, by our names."""
    found = []
    for path in files:
        with _opened(path) as file:
            found += [(path, name, torch.Size(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    # the first GPT-2 files
    bare = kind == "gpt2" and not any(name.startswith("transformer.") for _, name, _ in found)
    places = {}
    for path, name, shape in found:
        full = f"transformer.{name}" if bare and not name.startswith(HEADS) else name
        transposed = is_transposed(kind, full)
        places[name_here(kind, full)] = Stored(path, name, shape[::-1] if transposed else shape, transposed)
    return places


def _same(one: Stored, other: Stored) -> bool:
    with _opened(one.path) as first, _opened(other.path) as second:
        return torch.equal(_read(first, one), _read(second, other))


def _weights(places: dict[str, Stored], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors themselves. What a file holds as the model wants it is mapped; the rest is copied.

    dtype: None is the embedding's, in mixed files too, but for heads of one number, which have their own.
    Each copy reads from a map of its own: pages of a file stay resident as long as the map that they were read through.
    """
    weights = {}
    with ExitStack() as stack:
        files = {path: stack.enter_context(_opened(path)) for path in {place.path for place in places.values()}}
        embedding = places["model.embed_tokens.weight"]
        usual = _read(files[embedding.path], embedding).dtype
        for name, place in places.items():
            tensor = _read(files[place.path], place)
            wanted = dtype or (tensor.dtype if name.startswith(NUMBERS) else usual)
            if place.transposed or tensor.dtype != wanted:
                with _opened(place.path) as alone:
                    copy = torch.empty(place.shape, dtype=wanted)
                    tensor = copy.copy_(_read(alone, place))
            weights[name] = tensor
    return weights


def _weight_files(folder: Path) -> list[Path]:
    """The one file, or the shards that the index names. Raises: InputError if there is none, or a shard is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX}: needed a JSON object with weight_map ({error!r})") from None
        if outside := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise InputError(f"{folder / INDEX}: a shard must stand in the same folder, got {outside[0]!r}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputError(f"{folder}: needed the shards {INDEX} names, found no {_some(missing)}; download them")
        return [folder / name for name in names]
    there = sorted(p.name for p in folder.iterdir() if p.suffix in (*PICKLES, ".safetensors"))
    advice = "save the model as safetensors"
    if any(name.endswith(PICKLES) for name in there):
        advice = (
            "a pickle can run any program and is not read: convert it where you trust it, with safetensors.torch."
            'save_file(torch.load(FILE, weights_only=True), "model.safetensors")'
        )
    raise InputError(f"{folder / WEIGHTS}: needed this file, found {', '.join(there) or 'no weights'}; {advice}")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: needed a complete safetensors file ({error}); copy or save it again") from None


def _read(file: Any, place: Stored) -> Tensor:
    """A view of the mapped file, turned as the model has it."""
    try:
        tensor = file.get_tensor(place.name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{place.path}: needed a complete safetensors file ({error}); copy or save it again") from None
    return tensor.T if place.transposed else tensor


def _fill_value_head(policy: Policy, folder: Path) -> None:
    path = folder / VALUE_HEAD
    if not path.is_file():
        raise InputError(f"{path}: needed this file, found none; was the policy saved without a value head?")
    with _opened(path) as file, torch.no_grad():
        there = list(file.keys())
        for name, own in policy.value_head.state_dict().items():
            if name not in there:
                raise InputError(f"{path}: 1 weights are missing: {name}; is it another model?")
            if (shape := tuple(file.get_slice(name).get_shape())) != own.shape:
                raise InputError(f"{path}: {name} must be {tuple(own.shape)} as the policy is, got {shape}")
            own.copy_(_read(file, Stored(path, name, own.shape, False)))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _named_as_there(model: nn.Module) -> dict[str, Tensor]:
    named = {}
    for name, tensor in model.state_dict().items():
        there = name_in_family(model.config.model_type, name.replace("value_head.", "score."))
        named[there] = tensor.T if is_transposed(model.config.model_type, there) else tensor
    return named


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}


def _save(state: dict[str, Tensor], path: Path) -> None:
    """Aside first: a model that was loaded from this very file still reads its weights from it."""
    aside = path.with_name(f".{path.name}.part")
    save_file(state, aside, {"format": "pt"})
    os.replace(aside, path)


def _config_json(model: nn.Module) -> dict[str, Any]:
    dtype = next(model.parameters()).dtype
    labels = {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    return {
        "architectures": [architecture(model.config.model_type, type(model))],
        "torch_dtype": str(dtype).removeprefix("torch."),
        **config_to(model.config),
        **(labels if isinstance(model, RewardModel | ProcessRewardModel | ValueModel) else {}),
        **({IS_VALUE_MODEL: True} if isinstance(model, ValueModel) else {}),
    }
