"""torch.compile where it can be had. Nothing in this project is written in Triton: Inductor writes the kernels."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._triton import has_triton


def maybe_compile(function: Callable, enabled: bool, backend: str | None = None) -> Callable:
    """The function compiled, if `enabled`; eager for good after the first time the compiler fails, with one warning.

    On a GPU without Triton, Inductor can write nothing, and CUDA graphs take its place. Shapes are dynamic: no second
    compilation when a batch has another length.
    """
    if not enabled:
        return function
    from torch._dynamo.exc import TorchDynamoException  # a second and 80 MB, for those who want it

    if backend is None:
        backend = "cudagraphs" if torch.cuda.is_available() and not has_triton() else "inductor"
    # one function serves all blocks of all models: policy, critic and reward model, with and without adapters
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    compiled = torch.compile(function, dynamic=True, backend=backend)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:  # no C++ compiler, no code generator, or something it cannot trace
            if compiled is function:
                raise
            why = str(error).strip().splitlines()[:1]
            warnings.warn(f"torch.compile failed, going on without it: {' '.join(why)}", stacklevel=2)
            compiled = function
            return function(*args, **kwargs)

    return wrapped
