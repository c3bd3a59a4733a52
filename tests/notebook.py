"""The notebook's own loop in plain torch over rows in memory: what the `notebook` preset is held to."""

import torch
from torch.nn.init import kaiming_uniform_


def train_as_the_notebook(rows: torch.Tensor, batch_size: int, iterations: int = 50) -> list[float]:
    """The MSE by iteration over [rows, 9] of float64, the first column being the target; batches wrap at the end."""
    torch.manual_seed(0)
    w = kaiming_uniform_(torch.empty(8, 1, dtype=torch.float64)).requires_grad_()
    b = kaiming_uniform_(torch.empty(1, 1, dtype=torch.float64)).requires_grad_()
    optimizer, curve = torch.optim.SGD([w, b], lr=0.03), []
    for iteration in range(iterations):
        batch = rows[torch.arange(iteration * batch_size, (iteration + 1) * batch_size) % len(rows)]
        mse = torch.nn.functional.mse_loss(batch[:, 1:] @ w + b, batch[:, :1])
        optimizer.zero_grad()
        mse.backward()
        torch.nn.utils.clip_grad_norm_([w, b], 0.5)
        optimizer.step()
        curve.append(mse.item())
    return curve
