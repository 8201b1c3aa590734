"""A Linear that multiplies many rows by oneDNN where that is sooner (losses/products.py). I in, O out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minirlhf.losses.products import product, takes


class Linear(nn.Linear):
    """nn.Linear in parameters, values and gradients; only the last digits differ."""

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight, self.bias) if takes(x, self.weight) else super().forward(x)


class Product(torch.autograd.Function):
    """x [..., I], weight [O, I], bias [O] | None -> [..., O]. MKL has the sooner product for the weight's gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # a forward without autocast has a backward pass without it
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_NO = grad.flatten(0, -2)
        return (
            product(grad, weight.t()) if needs_x else None,
            grad_NO.t() @ x.flatten(0, -2) if needs_weight else None,
            grad_NO.sum(0) if needs_bias else None,
        )
