"""Products of many rows by oneDNN, on processors where it multiplies sooner than MKL. N rows, I in, O out."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS, WEIGHTS = 768, 2**14  # at least: below, oneDNN's start of a product takes what it gains


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] weight^T + bias by oneDNN -> [..., O], without a graph."""
    # the gradient of a sum has stride 0, which oneDNN cannot read
    return torch.ops.mkldnn._linear_pointwise.default(x.contiguous(), weight, bias, "none", [], "")


def takes(x: Tensor, weight: Tensor, rows: int = ROWS) -> bool:
    """True if `product` is sooner than F.linear, for at least this many rows."""
    large = x.numel() >= rows * weight.shape[1] and weight.numel() >= WEIGHTS
    if torch.compiler.is_compiling() or not large or torch.is_autocast_enabled("cpu"):
        return False
    plain = x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return plain and not hasattr(weight, "to_local") and wins()


def wins() -> bool:
    """True on processors of AMD with AVX-512. Elsewhere nothing was measured, so torch's own products stay.

    No measurement at run time decides: a resumed run must round as the first did.
    """
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    cpu = torch.cpu.get_capabilities() if known and hasattr(torch.cpu, "get_capabilities") else {}
    return "AMD" in cpu.get("cpu_name", "") and cpu.get("avx512_f", False)
