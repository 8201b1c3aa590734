"""A Linear that multiplies many rows by oneDNN where that is sooner (losses/products.py). I in, O out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minirlhf.losses.products import product, takes


class Linear(nn.Linear):
    """nn.Linear in parameters, values and gradients; only the last digits differ."""

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight, self.bias) if takes(x, self.weight) else super().forward(x)


class Product(torch.autograd.Function):
    """x [..., I], weight [O, I], bias [O] | None -> [..., O]. MKL has the sooner product for the weight's gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_NO = grad.flatten(0, -2)
        with torch.autocast("cpu", enabled=False):  # as in the forward pass
            grad_weight = grad_NO.t() @ x.flatten(0, -2) if needs_weight else None
        return product(grad, weight.t()) if needs_x else None, grad_weight, grad_NO.sum(0) if needs_bias else None
