"""Breaks the losses one small change at a time and counts how many changes the tests notice.

    python tests/mutation.py [--file policy.py] [--sample 100 --seed 0] [--jobs 2]

Each mutant is one change of one file of minirlhf/losses: a sign, a bound, a constant, a forgotten detach or check. A
forked child loads the changed file in place of the real file and runs the tests of that file (TESTS); the mutant is
killed if a test fails. The tool writes nothing to the package. It does not change text (docstrings, messages,
annotations). mutation_survivors.toml lists mutants that no test can kill, with reasons; they are not counted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import resource
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOSSES = ROOT / "minirlhf" / "losses"
EQUIVALENT = Path(__file__).with_name("mutation_survivors.toml")
GOAL = 0.95  # fraction to be killed of the mutants that a test could kill
SECONDS = 120  # of processor time for one mutant; a change may make a loop endless

TESTS = {  # of files whose tests stand elsewhere than in test_<file> alone
    "dpo.py": ["test_dpo.py", "test_preference_edges.py"],
    "logprobs.py": ["test_logprobs.py", "test_fused.py"],
    "online.py": ["test_online.py", "test_preference_edges.py"],
    "groups.py": ["test_groups.py", "test_advantages.py"],
    "policy_family.py": ["test_policy_family.py", "test_policy.py"],
    "reference_free.py": ["test_reference_free.py", "test_preference_edges.py"],
    "reward.py": ["test_reward.py", "test_unpaired.py"],
    "distillation.py": ["test_distillation.py", "test_preference_edges.py"],
    "supervised.py": ["test_supervised.py", "test_preference_edges.py"],
    "unpaired.py": ["test_unpaired.py", "test_preference_edges.py"],
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


@dataclass(frozen=True)
class Mutant:
    file: str
    name: str  # function | change | source line; "#2" at the end if the line has the same change a second time
    code: CodeType


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
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Tuple | ast.Dict | ast.Constant):
            yield "return 0 times it", changed(value=ast.BinOp(ast.Constant(0), ast.Mult(), value))
        case ast.Expr(value=ast.Call()):
            yield "drop the statement", ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield "drop the statement", ast.Pass()
        case ast.FunctionDef(decorator_list=[ast.Call(), *rest]):
            yield "drop the decorator", changed(decorator_list=rest)
    if isinstance(node, ast.AugAssign):
        yield "drop the statement", ast.Pass()
    if not isinstance(node, ast.Call):
        return
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
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


def mutants(file: str, source: str) -> list[Mutant]:
    """All mutants of one file, in the order of its lines."""
    tree, lines = ast.parse(source), source.splitlines()
    found, seen = [], Counter()

    def walk(node: ast.AST, scope: str, line: int) -> None:
        scope = f"{scope}.{node.name}".lstrip(".") if isinstance(node, ast.FunctionDef | ast.ClassDef) else scope
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for i, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST) and not isinstance(child, TEXT):
                    at = getattr(child, "lineno", line)
                    for change, new in changes(child):
                        put(node, field, i, ast.fix_missing_locations(ast.copy_location(new, child)))
                        name = f"{scope or 'module'} | {change} | {lines[at - 1].strip()}"
                        seen[name] += 1
                        name += f" #{seen[name]}" if seen[name] > 1 else ""
                        found.append(Mutant(file, name, compile(tree, str(LOSSES / file), "exec")))
                        put(node, field, i, child)
                    walk(child, scope, at)

    def put(node: ast.AST, field: str, i: int, new: ast.AST) -> None:
        if isinstance(getattr(node, field), list):
            getattr(node, field)[i] = new
        else:
            setattr(node, field, new)

    walk(tree, "", 1)
    return found


class Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from given code."""

    def __init__(self, module: str, code: CodeType) -> None:
        self.module, self.code = module, code

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.module else None

    def exec_module(self, module) -> None:
        exec(self.code, module.__dict__)


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
        sys.meta_path.insert(0, Replacement(f"minirlhf.losses.{file[:-3]}", code))
        tests = [ROOT / "tests" / "losses" / test for test in TESTS.get(file, [f"test_{file}"])]

        status = int(pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *map(str, tests)]))
    finally:
        os._exit(status)


def outcomes(todo: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """(mutant, was it killed), in the order in which the children end."""
    todo, running = todo[::-1], {}
    while todo or running:
        while todo and len(running) < jobs:
            mutant = todo.pop()
            running[start(mutant.file, mutant.code)] = mutant
        child, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        if code in (4, 5):
            raise SystemExit(f"mutation: pytest found no tests for {running[child].file}, see TESTS")
        yield running.pop(child), code != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", action="append", help="a file of minirlhf/losses; may be given again; default: all")
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

    files = args.file or sorted(path.name for path in LOSSES.glob("*.py") if path.name != "__init__.py")
    sources = {file: (LOSSES / file).read_text(encoding="utf-8") for file in files}
    equivalent = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    todo = [m for file in files for m in mutants(file, sources[file]) if m.name not in equivalent.get(file, {})]
    if args.sample and args.sample < len(todo):
        todo = random.Random(args.seed).sample(todo, args.sample)
    whole = [Mutant(file, "", compile(sources[file], str(LOSSES / file), "exec")) for file in {m.file for m in todo}]
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
    print(f"all: {killed.total()} of {made.total()} killed, {fraction:.1%} (goal {GOAL:.0%})")
    return 0 if fraction >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
