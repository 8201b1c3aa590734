"""`minirlhf adapter`: list LoRA adapters, show an adapter, merge adapters into their base model.

minirlhf adapter list runs                     # every adapter below a folder
minirlhf adapter show DIR                      # the settings of an adapter and the size of each update
minirlhf adapter merge DIR --output OUT        # write base + adapter as a model that any tool loads
minirlhf adapter merge A B --weights 0.7 0.3 --output OUT
"""

from __future__ import annotations

import argparse
import glob
import math
import os
from collections.abc import Sequence
from pathlib import Path

from minirlhf.adapters.lora import merge_lora
from minirlhf.errors import InputError, shown
from minirlhf.foreign import one_line
from minirlhf.jobs.given_models import check_vocabulary
from minirlhf.jobs.models import resolve_model
from minirlhf.model.transformer import Transformer
from minirlhf.pretrained.adapter_config import CONFIG
from minirlhf.pretrained.adapter_files import AdapterFile, load_adapter, read_adapter, update_sizes
from minirlhf.pretrained.saving import save_pretrained
from minirlhf.pretrained.weights import load_pretrained, size_of
from minirlhf.text.checkpoint_tokenizer.folder import MODEL
from minirlhf.text.tokenizer import Tokenizer
from minirlhf.training.checkpoint import holds_anything, remove_leftovers, written_whole
from minirlhf.training.lock import lock, unlocked_at_end
from minirlhf.training.table import table


def list_adapters(folder: Path) -> str:
    """A table of the adapters below a folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: needed a folder to look in, found none; check the path")
    found = sorted(path.parent for path in folder.rglob(CONFIG))
    if not found:
        raise InputError(f"{folder}: needed a folder with adapters in it ({CONFIG}), found none below it")
    rows = []
    for path in found:
        try:
            file = read_adapter(path)
            facts = [file.variant, file.config.r, f"{file.numbers:,}", file.model_class.__name__]
            rows.append([str(path), *facts, one_line(file.base or "-", 200)])
        except InputError as error:  # a broken adapter must not hide the rest
            rows.append([str(path), "cannot be read", "-", "-", "-", str(error).removeprefix(f"{path}/")])
    return table(["adapter", "type", "r", "numbers", "model", "base"], rows)


def show_adapter(folder: Path) -> str:
    """An adapter's settings, and the shape and norm of each update."""
    file = read_adapter(folder)
    facts = {
        "type": file.variant,
        "r": file.config.r,
        "alpha": f"{file.config.alpha:g}",
        "scale": f"{file.config.scale:.4g}",
        "dropout": f"{file.config.dropout:g}",
        "targets": one_line(", ".join(file.config.target_modules), 200),
        **({"of single modules": one_line(file.patterns, 200)} if file.patterns else {}),
        **({"whole weights": one_line(", ".join(file.whole), 200)} if file.whole else {}),
        "model": file.model_class.__name__,
        "base": one_line(file.base or "not named", 200),
        "numbers": f"{file.numbers:,}",
    }
    described = table(["", str(folder)], [[name, value] for name, value in facts.items()])
    sizes = [[one_line(name, 200), *shape, f"{norm:.4g}"] for name, (shape, norm) in update_sizes(folder).items()]
    return f"{described}\n\n{table(['module', 'out', 'in', '|scale B A|'], sizes)}"


def merge_adapters(folders: Sequence[Path], weights: Sequence[float], base: Path | None, output: Path) -> str:
    """Write base + sum of weight * adapter as a plain model, with a tokenizer.

    The tokenizer comes from the first adapter's folder, because it was trained with the adapter, else from the base.
    """
    files = [read_adapter(folder) for folder in folders]
    if len(weights) != len(folders):
        raise InputError(f"--weights: needed a weight for each of the {len(folders)} adapters, got {len(weights)}")
    if holds_anything(output):
        raise InputError(f"{output}: holds files already; choose another --output")
    if not all(math.isfinite(weight) for weight in weights):
        raise InputError(f"--weights: needed finite numbers, got {', '.join(map(str, weights))}")
    if len(files) > 1 and any(file.model_class is not Transformer for file in files):
        raise InputError("merge: adapters of reward models have heads, and heads cannot be added; merge one adapter")
    base = resolve_model(base or base_of_all(folders, files))
    model = load_pretrained(base)
    if isinstance(model, Transformer) and files[0].model_class is not Transformer:
        model = files[0].model_class(model)
    names = [f"adapter{number}" for number in range(len(folders))]
    for folder, name in zip(folders, names, strict=True):
        load_adapter(model, folder, name)
    merge_lora(model, dict(zip(names, weights, strict=True)))
    source = next((folder for folder in (folders[0], base) if (folder / MODEL).is_file()), None)
    tokenizer = Tokenizer.load(source) if source else None
    if tokenizer:
        check_vocabulary(model.config, tokenizer, source)
    with unlocked_at_end():
        lock(output)  # another merge may have taken the folder since the check above
        if holds_anything(output):
            raise InputError(f"{output}: holds files already; choose another --output")
        remove_leftovers(output.parent, glob.escape(output.name))  # of a merge that was killed
        with written_whole(output) as part:
            save_pretrained(model, part, tokenizer and tokenizer.token_ids)
            if tokenizer:
                tokenizer.save(part)
    parts = " + ".join(f"{weight:g} * {folder}" for weight, folder in zip(weights, folders, strict=True))
    named = {file.base for file in files if file.base}
    others = sorted(name for name in named if not os.path.isdir(name) or not base.samefile(name))
    note = f"\nnote: adapters made for {one_line(', '.join(others), 400)}" if others else ""
    return f"{output}: {base} + {parts}\n{size_of(output)}{note}"


def base_of_all(folders: Sequence[Path], files: Sequence[AdapterFile]) -> Path:
    """The base model that all adapters name. Raises: InputError if they name several, or the name is no folder."""
    named = [shown(name or "none")[1:-1] for name in sorted({file.base for file in files}, key=str)]
    if len(named) > 1:
        raise InputError(f"merge: the adapters must be for one base, they name {', '.join(named)}; choose with --base")
    if not files[0].base or not os.path.isdir(files[0].base):  # False for a name that no file can have
        raise InputError(f"{folders[0]}: its base must be a folder, it names {named[0]}; give the folder with --base")
    return Path(files[0].base)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "minirlhf adapter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="list | show | merge")
    listing = commands.add_parser("list", help="every adapter below a folder")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("."))
    showing = commands.add_parser("show", help="the settings of an adapter and the size of each update")
    showing.add_argument("folder", type=Path)
    merging = commands.add_parser("merge", help="write base + adapters as a model")
    merging.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    merging.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    merging.add_argument("--base", type=Path, metavar="DIR", help="the base model; default: the adapters name it")
    merging.add_argument("--weights", type=float, nargs="+", metavar="W", help="a factor for each adapter; default: 1")
    return top


def main(argv: list[str]) -> None:
    asked = parser().parse_args(argv)
    match asked.command:
        case "list":
            print(list_adapters(asked.folder))
        case "show":
            print(show_adapter(asked.folder))
        case "merge":
            weights = asked.weights or [1.0] * len(asked.folders)
            print(merge_adapters(asked.folders, weights, asked.base, asked.output))
