"""Breaks a room one small change at a time and counts how many changes the tests notice.

    python tests/mutation.py [--room generation] [--file policy.py] [--sample 100 --seed 0] [--jobs 2]

Each mutant is one change of one file of a room of minirlhf (default: losses): a sign, a bound, a constant, a forgotten
detach or check. A forked child loads the changed file in place of the real file and runs the tests of that file
(TESTS, ROOM_TESTS); the mutant is killed if a test fails. Programs that a test starts load the changed file too. The
tool writes nothing to the package. It does not change text (docstrings, messages, annotations) or `strict=`; outside
the losses it does not change default values. mutation_survivors.toml lists mutants that no test can kill, with
reasons; they are not counted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import marshal
import os
import random
import resource
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minirlhf"
EQUIVALENT = Path(__file__).with_name("mutation_survivors.toml")
GOALS = {"losses": 0.95}  # fraction to be killed of the mutants that a test could kill
OTHER_GOAL = 0.90  # of every other room
SECONDS = 120  # of processor time for one mutant; a change may make a loop endless

TESTS = {  # of files of the losses whose tests stand elsewhere than in losses/test_<file> alone
    "losses/dpo.py": ["losses/test_dpo.py", "losses/test_preference_edges.py"],
    "losses/logprobs.py": ["losses/test_logprobs.py", "losses/test_fused.py"],
    "losses/online.py": ["losses/test_online.py", "losses/test_preference_edges.py"],
    "losses/groups.py": ["losses/test_groups.py", "losses/test_advantages.py"],
    "losses/policy_family.py": ["losses/test_policy_family.py", "losses/test_policy.py"],
    "losses/reference_free.py": ["losses/test_reference_free.py", "losses/test_preference_edges.py"],
    "losses/correctness.py": ["losses/test_reward.py"],
    "losses/reward.py": ["losses/test_reward.py", "losses/test_unpaired.py"],
    "losses/distillation.py": ["losses/test_distillation.py", "losses/test_preference_edges.py"],
    "losses/supervised.py": ["losses/test_supervised.py", "losses/test_preference_edges.py"],
    "losses/unpaired.py": ["losses/test_unpaired.py", "losses/test_preference_edges.py"],
}

ROOM_TESTS = {  # of rooms whose folder of tests is not all
    "rollout": ["rollout", "algorithms/test_ppo.py"],
    "model": ["model", "pretrained/test_strangers.py"],
}

SWAPS = {  # operators and names; the other direction is added below
    ast.Add: ast.Sub,
    ast.Mult: ast.Div,
    ast.Lt: ast.LtE,
    ast.Gt: ast.GtE,
    ast.Eq: ast.NotEq,
    ast.Is: ast.IsNot,
    ast.In: ast.NotIn,
    ast.And: ast.Or,
    ast.BitAnd: ast.BitOr,
    "sum": "mean",
    "min": "max",
    "amin": "amax",
    "minimum": "maximum",
    "all": "any",
    "exp": "expm1",
    "log": "log1p",
}
SWAPS |= {new: old for old, new in SWAPS.items()}
SWAPS |= {ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, "nansum": "nanmean", "nanmean": "nansum", "cumsum": "cumprod"}
SYMBOLS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.FloorDiv: "//"}
SYMBOLS |= {ast.BitAnd: "&", ast.BitOr: "|", ast.And: "and", ast.Or: "or", ast.Lt: "<", ast.LtE: "<="}
SYMBOLS |= {ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is", ast.IsNot: "is not"}
SYMBOLS |= {ast.In: "in", ast.NotIn: "not in", ast.USub: "-", ast.Not: "not", ast.Invert: "~"}
IDENTITIES = ("detach", "clamp", "square", "log_softmax", "clone", "expand_as")  # methods that may be forgotten
TEXT = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)  # nothing in here is mutated
MESSAGES = ("say", "log", "print", "warn")  # functions that only tell

# Programs that a test starts find this file on PYTHONPATH as sitecustomize.py: it loads the mutant there.
IN_PROGRAMS = """
import importlib.abc, importlib.util, marshal, os, sys

class Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name != os.environ["MUTANT_MODULE"]:
            return None
        return importlib.util.spec_from_file_location(name, os.environ["MUTANT_FILE"], loader=self)

    def exec_module(self, module):
        with open(os.environ["MUTANT_CODE"], "rb") as code:
            exec(marshal.load(code), module.__dict__)

sys.meta_path.insert(0, Replacement())
"""


@dataclass(frozen=True)
class Mutant:
    file: str  # below minirlhf/
    name: str  # function | change | source line; "#2" at the end if the line has the same change a second time
    code: Callable[[], CodeType]  # compiles it: most readers of the list want few mutants or only their names


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(name of the change, changed node) for one node; its children stay as they are."""

    def changed(**fields) -> ast.AST:
        new = copy.copy(node)
        for field, value in fields.items():
            setattr(new, field, value)
        return new

    def swapped(operator: ast.AST) -> tuple[str, ast.AST] | None:
        new = SWAPS.get(type(operator))
        return new and (f"{SYMBOLS[type(operator)]} to {SYMBOLS[new]}", new())

    match node:
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if swap := swapped(node.op):
            yield swap[0], changed(op=swap[1])
        case ast.Compare():
            for i, swap in enumerate(map(swapped, node.ops)):
                if swap:
                    yield swap[0], changed(ops=[*node.ops[:i], swap[1], *node.ops[i + 1 :]])
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1)):
            pass  # mostly a dimension, and dimension 1 of [B, T] is dimension -1; the constant itself becomes 0
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield f"drop {SYMBOLS[type(node.op)]}", node.operand
        case ast.Constant(value=bool()):
            yield f"{node.value} to {not node.value}", changed(value=not node.value)
        case ast.Constant(value=int() | float()):
            new = 0 if node.value == 1 else node.value + 1
            yield f"{node.value} to {new}", changed(value=new)
        case ast.IfExp():
            yield "swap the branches", changed(body=node.orelse, orelse=node.body)
        case ast.If():
            if any(isinstance(statement, ast.Raise) for statement in node.body):
                yield "drop the check", ast.Pass()
            yield "negate the condition", changed(test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Return(value=ast.List(elts=[])):
            pass  # 0 times it is the same list
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Tuple | ast.Dict | ast.Constant):
            yield "return 0 times it", changed(value=ast.BinOp(ast.Constant(0), ast.Mult(), value))
        case ast.Expr(value=ast.Call(func=func)) if _name(func) not in MESSAGES:
            yield "drop the statement", ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield "drop the statement", ast.Pass()
        case ast.FunctionDef(decorator_list=[ast.Call(), *rest]):
            yield "drop the decorator", changed(decorator_list=rest)
    if isinstance(node, ast.AugAssign):
        yield "drop the statement", ast.Pass()
    if not isinstance(node, ast.Call):
        return
    called = _name(node.func)
    if called in SWAPS:
        func = copy.copy(node.func)
        setattr(func, "attr" if isinstance(func, ast.Attribute) else "id", SWAPS[called])
        yield f"{called} to {SWAPS[called]}", changed(func=func)
    if called in IDENTITIES and isinstance(node.func, ast.Attribute):
        yield f"drop .{called}()", node.func.value
    if called == "where" and len(node.args) == 3:
        yield "swap the choices of where", changed(args=[node.args[0], node.args[2], node.args[1]])
    for i, keyword in enumerate(node.keywords):
        if keyword.arg in ("min", "max"):
            new = ast.keyword(SWAPS[keyword.arg], keyword.value)
            yield f"{keyword.arg}= to {new.arg}=", changed(keywords=[*node.keywords[:i], new, *node.keywords[i + 1 :]])


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of one file, in the order of its lines."""
    tree, lines = ast.parse(source), source.splitlines()
    found, seen = [], Counter()
    with_defaults = file.startswith("losses/")

    def is_left_alone(node: ast.AST, field: str) -> bool:
        """Annotations, `strict=`, and outside the losses the default values of arguments and fields."""
        if field in ("annotation", "returns", "decorator_list"):
            return True
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return True
        is_default = field in ("defaults", "kw_defaults") or (isinstance(node, ast.AnnAssign) and field == "value")
        return is_default and not with_defaults

    def walk(node: ast.AST, scope: str, line: int) -> None:
        scope = f"{scope}.{node.name}".lstrip(".") if isinstance(node, ast.FunctionDef | ast.ClassDef) else scope
        for field, value in ast.iter_fields(node):
            if is_left_alone(node, field):
                continue
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST) and not isinstance(child, TEXT):
                    at = getattr(child, "lineno", line)
                    for change, new in changes(child):
                        name = f"{scope or 'module'} | {change} | {lines[at - 1].strip()}"
                        seen[name] += 1
                        name += f" #{seen[name]}" if seen[name] > 1 else ""
                        ast.fix_missing_locations(ast.copy_location(new, child))
                        found.append(Mutant(file, name, partial(compiled, (node, field, i), child, new)))
                    walk(child, scope, at)

    def compiled(place: tuple[ast.AST, str, int], old: ast.AST, new: ast.AST) -> CodeType:
        put(*place, new)
        code = compile(tree, str(PACKAGE / file), "exec")
        put(*place, old)
        return code

    def put(node: ast.AST, field: str, i: int, new: ast.AST) -> None:
        if isinstance(getattr(node, field), list):
            getattr(node, field)[i] = new
        else:
            setattr(node, field, new)

    walk(tree, "", 1)
    return found


def tests_of(file: str) -> list[str]:
    """Files and folders below tests/ that a mutant of the file must pass to survive."""
    room, _, name = file.partition("/")
    if room == "losses":
        return TESTS.get(file, [f"losses/test_{name}"])
    return ROOM_TESTS.get(room, [room])


def load_in_place(file: str, code: CodeType, folder: str) -> None:
    """Load `code` in place of the file, in this process and in the programs that it starts."""
    (Path(folder) / "sitecustomize.py").write_text(IN_PROGRAMS, encoding="utf-8")
    (Path(folder) / "code").write_bytes(marshal.dumps(code))
    os.environ["MUTANT_MODULE"] = ".".join(("minirlhf", *Path(file).with_suffix("").parts))
    os.environ["MUTANT_FILE"] = str(PACKAGE / file)
    os.environ["MUTANT_CODE"] = str(Path(folder) / "code")
    os.environ["PYTHONPATH"] = os.pathsep.join((folder, str(ROOT)))
    sys.path.insert(0, folder)  # the worker of chat templates hands its own path on
    exec(compile(IN_PROGRAMS, "sitecustomize.py", "exec"), {})


@dataclass
class OwnTestsFirst:
    """Plugin of pytest: the tests in the file of this name run first, because they kill most mutants soonest."""

    name: str

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.path.name != self.name)


def start(file: str, code: CodeType) -> int:
    """Fork a child that runs the tests of `file` with `code` in place of the file -> the child's process id."""
    child = os.fork()
    if child:
        return child
    status = 3
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # not wall time: neighbours would kill mutants
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        with tempfile.TemporaryDirectory() as folder:
            load_in_place(file, code, folder)
            tests = [str(ROOT / "tests" / test) for test in tests_of(file)]
            options = ["-x", "-q", "--tb=no", "-n", "0", "-p", "no:cacheprovider"]
            status = int(pytest.main([*options, *tests], plugins=[OwnTestsFirst(f"test_{Path(file).name}")]))
    finally:
        os._exit(status)


def outcomes(todo: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """(mutant, was it killed), in the order in which the children end."""
    todo, running = todo[::-1], {}
    while todo or running:
        while todo and len(running) < jobs:
            mutant = todo.pop()
            running[start(mutant.file, mutant.code())] = mutant
        child, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        if code in (4, 5):
            raise SystemExit(f"mutation: pytest found no tests for {running[child].file}, see TESTS")
        yield running.pop(child), code != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--room", default="losses", help="a folder of minirlhf/; default: losses")
    parser.add_argument("--file", action="append", help="a file of the room; may be given again; default: all")
    parser.add_argument("--sample", type=int, help="run only this number of mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import hypothesis  # loaded once for all children; minirlhf must not be loaded here
    import torch

    torch.set_num_threads(1)
    # do not shrink: any failing example kills the mutant
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutation", phases=phases, database=None)
    hypothesis.settings.load_profile("mutation")

    room = PACKAGE / args.room
    paths = [room / file for file in args.file or ()] or [
        p for p in sorted(room.rglob("*.py")) if p.name != "__init__.py"
    ]
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    equivalent = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    todo = [m for file in sources for m in mutants(file, sources[file]) if m.name not in equivalent.get(file, {})]
    if args.sample and args.sample < len(todo):
        todo = random.Random(args.seed).sample(todo, args.sample)
    unchanged = {file: partial(compile, sources[file], str(PACKAGE / file), "exec") for file in {m.file for m in todo}}
    whole = [Mutant(file, "", code) for file, code in unchanged.items()]
    if broken := [mutant.file for mutant, failed in outcomes(whole, args.jobs) if failed]:
        raise SystemExit(f"mutation: the tests of {', '.join(broken)} fail without a mutant")

    made, killed = Counter(), Counter()
    for mutant, dead in outcomes(todo, args.jobs):
        made[mutant.file] += 1
        killed[mutant.file] += dead
        if not dead:
            print(f"survived: {mutant.file} | {mutant.name}", flush=True)
    for file in sorted(made):
        print(f"{file}: {killed[file]} of {made[file]} killed, {len(equivalent.get(file, {}))} equivalent")
    fraction = killed.total() / max(made.total(), 1)
    goal = GOALS.get(args.room, OTHER_GOAL)
    print(f"{args.room}: {killed.total()} of {made.total()} killed, {fraction:.1%} (goal {goal:.0%})")
    return 0 if fraction >= goal else 1


if __name__ == "__main__":
    sys.exit(main())
