"""torch.compile where it works; else eager with one warning. No file uses Triton."""

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException, Unsupported
from torch.testing import assert_close

import minirlhf
from minirlhf.losses import gspo_policy_loss, ppo_policy_loss
from minirlhf.runtime.compile import maybe_compile


def surrogate(logps, old_logps, advantages):
    """A loss."""
    return ppo_policy_loss(logps, old_logps=old_logps, advantages=advantages)


def inputs(rows=3, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps, old, advantages = torch.randn(3, rows, width, generator=generator, dtype=torch.float64)
    return logps.requires_grad_(), old, advantages


def value_and_gradient(function, *arguments):
    value = function(*arguments)
    return value.detach(), torch.autograd.grad(value.sum(), arguments[0])[0]


def test_without_compilation_it_returns_the_function_itself():
    assert maybe_compile(surrogate, False) is surrogate
    assert maybe_compile(surrogate, False, backend="no such thing") is surrogate


def test_compiled_values_and_gradients_equal_the_eager_ones_for_every_shape():
    compiled = maybe_compile(surrogate, True, backend="aot_eager")
    assert compiled is not surrogate and compiled.__name__ == "surrogate" and compiled.__doc__ == "A loss."
    for shape in ((3, 5), (7, 4)):
        assert_close(value_and_gradient(compiled, *inputs(*shape)), value_and_gradient(surrogate, *inputs(*shape)))


def test_keyword_arguments_reach_the_function():
    compiled = maybe_compile(gspo_policy_loss, True, backend="eager")
    logps, old, advantages = inputs()
    options = {"old_logps": old, "advantages": advantages, "mask": torch.ones(3, 5, dtype=torch.bool), "clip_eps": 0.1}
    assert_close(compiled(logps, **options), gspo_policy_loss(logps, **options))


def broken(monkeypatch, error):
    """Make torch.compile return functions that raise `error`.   Returns: the list of their calls."""
    calls = []

    def compiled(*arguments):
        calls.append(arguments)
        raise error

    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled)
    return calls


def test_a_compiler_that_fails_warns_once_and_is_not_called_again(monkeypatch):
    calls = broken(monkeypatch, Unsupported("no code generator\nhere is a long story"))
    function = maybe_compile(surrogate, True)
    with pytest.warns(UserWarning, match="^torch.compile failed, continuing without it: no code generator$"):
        first = function(*inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = function(*inputs(seed=1))
    assert len(calls) == 1
    assert_close((first, second), (surrogate(*inputs()), surrogate(*inputs(seed=1))))


@pytest.mark.parametrize("error", [ValueError("shapes differ"), RuntimeError("out of memory")])
def test_an_error_of_the_function_is_not_taken_for_a_compiler_error(monkeypatch, error):
    calls = broken(monkeypatch, error)
    function = maybe_compile(surrogate, True)
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            function(*inputs())
    assert len(calls) == 2


def test_bad_shapes_raise_the_error_of_the_function_when_compiled():
    logps, old, advantages = inputs()
    with pytest.raises(ValueError, match="ppo_policy_loss: needed tensors of one shape"):
        maybe_compile(surrogate, True, backend="eager")(logps, old[:, :4], advantages)


def test_an_error_of_the_compiler_in_the_eager_function_is_raised(monkeypatch):
    # after the fallback to eager, an error of the compiler's type comes from the function
    broken(monkeypatch, Unsupported("first"))

    def itself(x):
        raise TorchDynamoException("the function's own")

    function = maybe_compile(itself, True)
    for _ in range(2):
        with warnings.catch_warnings(), pytest.raises(TorchDynamoException, match="the function's own"):
            warnings.simplefilter("ignore")
            function(torch.ones(1))


@pytest.mark.parametrize(
    ("cuda", "triton", "backend"),
    [(False, False, "inductor"), (True, True, "inductor"), (True, False, "cudagraphs")],
)
def test_cuda_graphs_replace_inductor_on_a_gpu_without_triton(monkeypatch, cuda, triton, backend):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: calls.append(options) or function)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr("minirlhf.runtime.compile.has_triton", lambda: triton)
    maybe_compile(surrogate, True)
    assert calls == [{"dynamic": True, "backend": backend}]


HIDDEN = """
import warnings, torch, torch._inductor.config
torch._inductor.config.cpp.cxx = ("/nowhere/c++",)
torch._inductor.config.fx_graph_cache = False
torch._inductor.config.force_disable_caches = True
from minirlhf.runtime.compile import maybe_compile
function = maybe_compile(lambda x: torch.exp(x) + x.sin(), True)
x = torch.linspace(0, 1, 1000)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    results = [function(x) for _ in range(2)]
ours = [str(w.message) for w in caught if "continuing without it" in str(w.message)]
assert len(ours) == 1, ours
assert all(torch.equal(r, torch.exp(x) + x.sin()) for r in results)
"""


@pytest.mark.slow
def test_without_a_cpp_compiler_it_runs_eagerly():
    found = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]


@pytest.mark.slow
def test_inductor_computes_the_same_as_eager():
    compiled = maybe_compile(surrogate, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="torch")
        found = [value_and_gradient(compiled, *inputs(*shape)) for shape in ((3, 5), (4, 9))]
    assert_close(found, [value_and_gradient(surrogate, *inputs(*shape)) for shape in ((3, 5), (4, 9))])


def test_no_file_of_the_package_uses_triton():
    """Looks at names, attributes, imports and strings except docstrings. compile.py asks whether Triton exists."""
    package, found = Path(minirlhf.__file__).parent, []
    files = sorted(package.rglob("*.py"))
    assert len(files) > 40
    for path in files:
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            words = [getattr(node, name, None) for name in ("id", "attr", "name", "module", "value")]
            if id(node) not in docstrings and any("triton" in w.lower() for w in words if isinstance(w, str)):
                found.append((path.name, next(w for w in words if isinstance(w, str) and "triton" in w.lower())))
    assert sorted(found) == [
        ("compile.py", "has_triton"),
        ("compile.py", "has_triton"),
        ("compile.py", "torch.utils._triton"),
    ]
