"""Gradients made to fit the shape of the loss: what lets plain gradient descent converge in a few iterations.

The Hessian of the mean squared error over the first batch says in which directions the loss is steep and in which it
is flat. Its inverse turns a gradient into a step that goes as far in one as in the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FLATTEST = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the steepest curvature: below, gradients are rounding noise


@dataclass(frozen=True)
class Preconditioner:
    """The damped inverse of the Hessian of the mean squared error of [x, 1], from one batch.

    inverse: [features + 1, features + 1] in float64
    condition: largest curvature over the smallest one that is not zero; None where it is not known
    """

    inverse: Tensor
    condition: float | None = None

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Take the Hessian 2/rows · [x, 1]ᵀ[x, 1] of x [rows, features], and invert it.

        Curvatures below a millionth of the largest (float32: a thousandth) count as that. Where there is none at all,
        as for a column that is constant in the first batch, steps are as short as along the steepest direction.
        """
        moments, rows = x.double(), len(x)
        width = x.shape[1] + 1
        hessian = torch.empty(width, width, dtype=torch.float64)
        hessian[:-1, :-1] = moments.T @ moments / rows
        hessian[-1, :-1] = hessian[:-1, -1] = moments.mean(dim=0)
        hessian[-1, -1] = 1
        curvatures, directions = torch.linalg.eigh(2 * hessian)  # on the CPU: it is small
        steepest = curvatures[-1]
        known = curvatures > width * torch.finfo(torch.float64).eps * steepest
        damped = torch.where(known, curvatures.clamp(min=float(steepest) * FLATTEST[x.dtype]), steepest)
        return cls((directions / damped @ directions.T).to(x.device), float(steepest / curvatures[known][0]))

    @torch.no_grad()
    def turn(self, w: Tensor, b: Tensor, x: Tensor) -> None:
        """Replace the gradients of w [features, 1] and b [1, 1] by what a step of size 1 is to subtract.

        It is the preconditioned gradient, shortened where the loss over x [rows, features] is least before its end
        (the exact line search of a quadratic: Nocedal and Wright 2006, Numerical Optimization, equation 3.55). So no
        step raises its own batch's loss, whatever the first batch looked like.
        """
        assert w.grad is not None and b.grad is not None
        gradient = torch.cat([w.grad, b.grad])
        step = (self.inverse @ gradient.double()).to(w.dtype)
        slope = (gradient * step).sum()
        curvature = 2 * (x @ step[:-1] + step[-1]).square().mean()
        size = torch.where(curvature > 0, slope / curvature, 0).clamp(0, 1)
        w.grad.copy_(size * step[:-1])
        b.grad.copy_(size * step[-1:])
