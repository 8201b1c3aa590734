"""The house's order: which file may import what, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minirlhf

PACKAGE = Path(minirlhf.__file__).parent
ROOMS = [
    "lazy",
    "torchrun",
    "pipe",
    "nearest",
    "columns",
    "foreign",
    "errors",
    "manifest",
    "losses",
    "runtime",
    "model",
    "adapters",
    "pretrained",
    "text",
]
ROOMS += ["data", "generation", "rewards", "rollout", "environments", "training", "algorithms", "tasks", "evaluation"]
ROOMS += ["seeing", "jobs", "extras", "cli", "__main__"]
# The core: all that examples/ppo.py needs on the embedded task. A learner reads these files and no others.
CORE_FILES = {
    "lazy": "",
    "errors": "",
    "losses": "masking logprobs kl advantages policy reward supervised",
    "runtime": "device distributed randomness",
    "model": "config rope norms cache context attention transformer policy",
    "text": "parts tokenizer",
    "data": "encoding batches",
    "generation": "completion sampling engine",
    "rewards": "scoring",
    "rollout": "rollout read collect statistics",
    "training": "optimizer update fields settings run checkpoint vocabulary journal table",
    "algorithms": "on_policy offline sft reward_model ppo",
    "tasks": "task reviews",
    "evaluation": "texts policies",
    "jobs": "settings models opened prepare stage sft reward_model report job",
}
CORE = {*CORE_FILES, *(f"{room}.{name}" for room, names in CORE_FILES.items() for name in names.split())}
CORE_LINES = 6000  # at most, blank lines and docstrings too
RUN_TIME = {"torch", "tokenizers", "safetensors", "numpy", "tqdm"}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def module(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name):
    return name.split(".")[0]


def imports(path):
    """Full dotted names of what a file imports, inside functions too: names of our own without "minirlhf."."""
    return imported(ast.parse(path.read_text(encoding="utf-8")), str(path))


def imported(tree, path=""):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            ours = node.module.split(".")[0] == "minirlhf"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # "from minirlhf.x import y": y may be a module of its own
            found |= {name if ours and _is_module(name) else node.module for name in names}
    return found


def _is_module(name):
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def own(path):
    return {name.removeprefix("minirlhf.") for name in imports(path) if name.startswith("minirlhf.")}


def test_every_file_stands_in_a_room_of_the_layout():
    assert {room(module(path)) for path in FILES} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_only_from_its_room_and_those_above(path):
    here = ROOMS.index(room(module(path)))
    assert [name for name in own(path) if ROOMS.index(room(name)) > here] == []


def test_within_a_room_no_two_files_need_each_other():
    needs = {module(path): own(path) for path in FILES if path.name != "__init__.py"}
    while free := [name for name, wanted in needs.items() if not wanted & needs.keys() - {name}]:
        for name in free:
            del needs[name]
    assert needs == {}


def test_the_core_is_at_most_6000_lines():
    modules = {module(path): path for path in FILES}
    assert modules.keys() >= CORE
    assert sum(len(modules[name].read_text(encoding="utf-8").splitlines()) for name in CORE) <= CORE_LINES


@pytest.mark.parametrize("path", [path for path in FILES if module(path) in CORE], ids=module)
def test_the_core_imports_no_leaf(path):
    """At module level; a function may import a leaf when it needs it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        function.body = []
    found = {name.removeprefix("minirlhf.") for name in imported(tree) if name.startswith("minirlhf.")}
    assert sorted(found - CORE) == []


def test_loading_the_core_loads_no_leaf():
    program = """
import sys, minirlhf.jobs
print(*sorted(name.removeprefix("minirlhf.") for name in sys.modules if name.startswith("minirlhf.")))
assert not {"jinja2"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert sorted(set(done.stdout.split()) - CORE) == []


def test_losses_import_torch_and_one_another_only():
    for path in (PACKAGE / "losses").glob("*.py"):
        outside = {name for name in imports(path) if not name.startswith("minirlhf.losses")}
        tops = {name.split(".")[0] for name in outside}
        if path.name == "__init__.py":  # names that load on first use
            tops -= {"minirlhf"} if outside == {"minirlhf.lazy"} else set()
        assert tops <= {"torch", "__future__", "math", "collections"}, path  # collections.abc: types of arguments


OF_ONE_FILE = {  # file -> a further package that it loads when it is called
    "text.checkpoint_tokenizer.sandbox": {"jinja2"},  # comes with torch
    "training.yaml_file": {"yaml"},  # comes with tokenizers
    "pretrained.hub": {"huggingface_hub"},  # comes with tokenizers
    "data.reading.parquet": {"pyarrow"},  # an extra
    "extras.vision.images": {"PIL"},  # an extra
    "seeing.trackers": {"wandb", "trackio", "mlflow"},  # if --tracker names them
}


def test_only_the_five_packages_and_the_standard_library_are_imported():
    for path in FILES:
        tops = {name.split(".")[0] for name in imports(path)} - {"minirlhf"} - set(sys.stdlib_module_names)
        tops -= OF_ONE_FILE.get(module(path), set())
        assert tops <= RUN_TIME, path


def test_nothing_is_unpickled_or_evaluated():
    for path in FILES:
        assert not {"pickle", "marshal", "shelve", "dill"} & {name.split(".")[0] for name in imports(path)}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                # .eval() of a module has no argument; these take text or a file
                assert called not in ("eval", "exec", "compile", "__import__"), f"{path}:{node.lineno}"
                assert called not in ("torch.load", "torch.save", "numpy.load", "np.load"), f"{path}:{node.lineno}"
                assert not called.endswith("_object_list") and "gather_object" not in called, f"{path}:{node.lineno}"


def test_only_runtime_and_training_know_of_torch_distributed():
    for path in FILES:
        if room(module(path)) not in ("runtime", "training"):
            assert not any(name.startswith("torch.distributed") for name in imports(path)), path


def test_import_minirlhf_loads_nothing_and_names_arrive_on_first_use():
    program = """
import sys, minirlhf
heavy = {"torch", "numpy", "tokenizers", "safetensors", "tqdm", "jinja2"} & sys.modules.keys()
assert not heavy and not [name for name in sys.modules if name.startswith("minirlhf.")], heavy
assert "losses" in dir(minirlhf) and "torch" not in sys.modules
minirlhf.losses
assert "torch" in sys.modules and "tokenizers" not in sys.modules and "minirlhf.model" not in sys.modules
try:
    minirlhf.nonsense
except AttributeError as error:
    assert str(error) == "module 'minirlhf' has no attribute 'nonsense'"
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_room_arrives_by_name():
    for name in minirlhf._ROOMS:
        assert getattr(minirlhf, name).__name__ == f"minirlhf.{name}"
