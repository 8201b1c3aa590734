"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), and Gemma's, which multiplies by 1 + weight.

N rows, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class PlusOneRMSNorm(nn.RMSNorm):
    """A weight of 0 changes nothing."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, 1 + wide(self.weight), self.eps)


def wide(x: Tensor) -> Tensor:
    """Half precision in fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / root(mean(x^2) + eps) * weight [D], in fp32 at least -> the dtype of x.

    Compilers and GPUs have one kernel for it. On a CPU torch takes seven operations, more for the gradients, and keeps
    a second tensor as large as x.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return RMSNormStep.apply(x, weight, eps)
    return F.rms_norm(x.to(torch.promote_types(x.dtype, weight.dtype)), weight.shape, weight, eps).to(x.dtype)


class RMSNormStep(Function):
    """Keeps x and one number a row."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        numbers = wide(x)
        length = torch.linalg.vector_norm(numbers, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (numbers * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With r the inverse root, g the gradient and w the weight: dx = r g w - r^3 x mean(g w x), dw = sum(r g x)."""
        kept, weight, inverse = ctx.saved_tensors  # read once: a checkpointed block gives them once
        x, gradient = wide(kept), wide(gradient)
        product = gradient * x
        product_ND = product.reshape(-1, x.shape[-1])
        dx = dweight = None
        if ctx.needs_input_grad[1]:
            dweight = torch.mv(product_ND.t(), inverse.flatten()).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            # copied, because MKL rounds by the place of a vector in memory, and a loaded weight stands where its file
            # has it: the run that goes on after a stop would differ from the run that was not stopped
            slope = torch.mv(product_ND, weight.to(product.dtype, copy=True)).view_as(inverse)
            slope.mul_(inverse.pow(3)).div_(-x.shape[-1])
            dx = torch.mul(gradient, weight, out=product).mul_(inverse).addcmul_(x, slope)
            dx = dx.to(kept.dtype)
        return dx, dweight, None
