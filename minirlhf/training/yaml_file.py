"""Settings in YAML, for files of `--config` that end in .yaml or .yml. PyYAML reads them, if it is installed."""

from __future__ import annotations

import re
from typing import Any

from minirlhf.errors import InputError, shown

FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")  # PyYAML takes 1e-3 for text


def read_yaml(path: str, text: str) -> dict[str, Any]:
    """The tables and keys of a document, as tomllib gives them: null is the text "none".

    Raises: InputError without PyYAML, and for a document that is no table.   ValueError for broken YAML.
    """
    try:
        import yaml
    except ImportError:
        raise InputError(
            f"--config {path}: YAML needs the package PyYAML, which is not installed; pip install pyyaml, or write TOML"
        ) from None

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            for i, name in enumerate(names):
                if not isinstance(name, str):
                    raise yaml.YAMLError(f"line {node.start_mark.line + 1}: needed names that are text, got {name!r}")
                if name in names[:i]:  # PyYAML would drop the first value
                    raise yaml.YAMLError(f"line {node.value[i][0].start_mark.line + 1}: {name!r} stands twice")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
    try:
        document = yaml.load(text, Loader)  # a SafeLoader makes plain values only
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"--config {path}: needed tables and keys, got {shown(document)}; write `name: value`")
    return _without_null(document)


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(entry) for key, entry in value.items()}
    return "none" if value is None else value
