"""torch.compile where it works. Inductor writes all kernels; no file of this project is in Triton."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._triton import has_triton


def default_backend() -> str:
    """The backend of torch.compile on this machine."""
    return "cudagraphs" if torch.cuda.is_available() and not has_triton() else "inductor"


def maybe_compile(function: Callable, enabled: bool, backend: str | None = None) -> Callable:
    """The compiled function if `enabled`, else the function. If the compiler fails, the wrapper warns and stays eager.

    On a GPU without Triton, Inductor cannot write kernels, so CUDA graphs are used. Shapes are dynamic, so a batch of
    another length needs no second compilation.
    """
    if not enabled:
        return function
    from torch._dynamo.exc import TorchDynamoException  # the import costs a second and 80 MB

    backend = backend or default_backend()
    # all blocks of policy, value model and reward model, with and without adapters, share one compiled function
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    compiled = torch.compile(function, dynamic=True, backend=backend)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:  # no C++ compiler, no code generator, or code that cannot be traced
            if compiled is function:
                raise
            reason = str(error).strip().splitlines()[:1]
            warnings.warn(f"torch.compile failed, continuing without it: {' '.join(reason)}", stacklevel=2)
            compiled = function
            return function(*args, **kwargs)

    return wrapped
