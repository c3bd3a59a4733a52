"""Gradients made to fit the shape of the loss: what lets plain gradient descent converge in a few iterations.

The Hessian of the mean squared error over the first batch says in which directions the loss is steep and in which it
is flat. Its inverse turns a gradient into a step that goes as far in one as in the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from tasks.learning.loss import curve_along, take_hessian
from tasks.learning.reduction import ALONE, Reduction

FLATTEST = {torch.float64: 1e-6, torch.float32: 1e-3}  # of the steepest curvature: below, gradients are rounding noise
CONVERGED = 0.01  # what may be left of a weight's distance: of the error that it makes, a ten-thousandth


def count_iterations(condition: float, dtype: torch.dtype) -> int:
    """Return after how many steps of size 1 the model has converged along the flattest direction too.

    Where its curvature was damped, to d times what it is, each step leaves 1 - 1/d of the way.
    """
    damped = condition * FLATTEST[dtype]
    return 1 if damped <= 1 else math.ceil(math.log(CONVERGED) / math.log1p(-1 / damped))


def most_condition(iterations: int, dtype: torch.dtype) -> float:
    """Return the condition number up to which so many iterations are enough."""
    return 1 / (FLATTEST[dtype] * -math.expm1(math.log(CONVERGED) / iterations))


@dataclass(frozen=True)
class Preconditioner:
    """The damped inverse of the Hessian of the mean squared error of [x, 1], from one batch.

    inverse: [features + 1, features + 1] in float64
    condition: largest curvature over the smallest one that is not zero; None where it is not known
    """

    inverse: Tensor
    condition: float | None = None

    @classmethod
    def of(cls, x: Tensor, reduction: Reduction = ALONE, l2: float = 0.0) -> Self:
        """Take the Hessian of the mean squared error over x [rows, features], with a penalty `l2`, and invert it."""
        return cls.invert(take_hessian(x, reduction).cpu(), x.dtype, l2).to(x.device)

    @classmethod
    def invert(cls, hessian: Tensor, dtype: torch.dtype, l2: float = 0.0) -> Self:
        """Invert a Hessian [features + 1, features + 1] in float64 on the CPU, of batches in `dtype`.

        Curvatures below a millionth of the largest (float32: a thousandth) count as that. Where there is none at all,
        as for a column that is constant in the first batch, steps are as short as along the steepest direction.
        """
        width = len(hessian)
        hessian = hessian + torch.diag(torch.tensor([2 * l2] * (width - 1) + [0.0], dtype=torch.float64))
        curvatures, directions = torch.linalg.eigh(hessian)  # on the CPU: it is small
        steepest = curvatures[-1]
        known = curvatures > width * torch.finfo(torch.float64).eps * steepest
        damped = torch.where(known, curvatures.clamp(min=float(steepest) * FLATTEST[dtype]), steepest)
        return cls(directions / damped @ directions.T, float(steepest / curvatures[known][0]))

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""
        return replace(self, inverse=self.inverse.to(device))

    def turn(self, w: Tensor, b: Tensor, x: Tensor, reduction: Reduction = ALONE, l2: float = 0.0) -> None:
        """Replace the gradients of w [features, 1] and b [1, 1] by what a step of size 1 is to subtract.

        It is the preconditioned gradient, shortened where the loss over x [rows, features] is least before its end
        (the exact line search of a quadratic: Nocedal and Wright 2006, Numerical Optimization, equation 3.55). So no
        step raises its own batch's loss, whatever the first batch looked like.
        """
        assert w.grad is not None and b.grad is not None
        gradient = torch.cat([w.grad, b.grad]).double()
        step = self.inverse @ gradient
        downward = step.to(w.dtype)
        slope = (gradient * step).sum()
        curvature = curve_along(downward[:-1], downward[-1:], x, reduction)
        if l2:
            curvature = curvature + 2 * l2 * downward[:-1].double().square().sum()
        step *= torch.where(curvature > 0, slope / curvature, 0).clamp(0, 1)
        w.grad.copy_(step[:-1])
        b.grad.copy_(step[-1:])
