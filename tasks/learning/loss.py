"""The mean squared error of a linear model over a batch, its gradient and its curvature, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.learning import kernels
from tasks.learning.reduction import Reduction, add_up, count_rows, multiply, multiply_columns, slice_rows


def differentiate(w: Tensor, b: Tensor, x: Tensor, y: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean squared error of x · w + b, a scalar of float64, and its gradients by w and by b.

    w [features, 1] and b [1, 1] are the model, x [rows, features] and y [rows, 1] this process's rows of the batch.
    """
    sums = _sum_errors(w, b, x, y, reduction).div_(count_rows(x, reduction)).view(-1, 1)
    gradient = (2 * sums).to(w.dtype)
    return sums[-1, 0], gradient[:-2], gradient[-2:-1]


def _sum_errors(w: Tensor, b: Tensor, x: Tensor, y: Tensor, reduction: Reduction) -> Tensor:
    """Return the sums of error · feature, of the error, and of its square, [features + 2] in float64."""
    if kernels.are_usable(x):
        return _add_up_by_kernel(w, b, x, y, reduction)

    def add_errors(x: Tensor, y: Tensor) -> Tensor:
        slices, rows, features = x.shape
        errors = torch.addmm(y.view(-1, 1), x.view(-1, features), w, beta=-1).add_(b).view(slices, 1, rows)
        along = multiply(x, errors.view(slices, rows, 1)).view(slices, 1, features)
        return torch.cat([along, errors.sum(2, keepdim=True), errors.square_().sum(2, keepdim=True)], dim=2)

    return add_up(add_errors, x, y, reduction=reduction).view(-1)


def _add_up_by_kernel(w: Tensor, b: Tensor, x: Tensor, y: Tensor | None, reduction: Reduction) -> Tensor:
    """Return the same from one read of x and y; without y, of predictions instead of errors."""
    return gather_slices(torch.cat([w, b]).view(-1), x, y, reduction).double().sum(dim=0)


def gather_slices(theta: Tensor, x: Tensor, y: Tensor | None, reduction: Reduction) -> Tensor:
    """Return what `kernels.sum_slices` makes of each slice of a batch, on every rank: [slices, features + 2]."""
    return reduction.gather(kernels.sum_slices(theta, x, y, slice_rows(count_rows(x, reduction))))


def curve_along(w: Tensor, b: Tensor, x: Tensor, reduction: Reduction) -> Tensor:
    """Return the second derivative of the mean squared error along the direction (w, b), a scalar of float64."""
    if kernels.are_usable(x):
        return 2 * _add_up_by_kernel(w, b, x, None, reduction)[-1] / count_rows(x, reduction)

    def add_changes(x: Tensor) -> Tensor:
        slices, rows, features = x.shape
        return torch.addmm(b, x.view(-1, features), w).square_().view(slices, rows).sum(1, keepdim=True)

    return 2 * add_up(add_changes, x, reduction=reduction)[0] / count_rows(x, reduction)


def take_hessian(x: Tensor, reduction: Reduction) -> Tensor:
    """Return the Hessian 2/rows · [x, 1]ᵀ[x, 1] of the mean squared error, [features + 1, features + 1] in float64."""

    def add_products(x: Tensor) -> Tensor:
        return torch.cat([multiply_columns(x), x.sum(dim=1, keepdim=True)], dim=1)

    products = 2 * add_up(add_products, x.double(), reduction=reduction) / count_rows(x, reduction)
    last = torch.cat([products[-1], products.new_full((1,), 2.0)])
    return torch.cat([products, last[:, None]], dim=1)
