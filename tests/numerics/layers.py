"""Small correlated layers, and the plain definitions that the fast code is compared with."""

import torch

from laconic.numerics.obs import UniformGrid


def layer(rows=16, columns=24, *, decay=1.5, tokens=400, seed=0):
    """A weight and the second moment of inputs whose spectrum falls by `decay` decades."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(columns, columns, generator=generator).double()).Q
    x = torch.randn(tokens, columns, generator=generator).double()
    x = x * torch.logspace(0, -decay, columns, dtype=torch.float64) @ mix
    weight = torch.randn(rows, columns, generator=generator)
    return weight, x.T @ x / tokens


def damped(h, damp=0.01):
    return h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def output_loss(difference, h):
    """(R,) d H d^T of each row."""
    difference = difference.double()
    return (difference @ h * difference).sum(dim=1)


def row_grid(weight, bits, group=None):
    """Symmetric grids over the extremes of each group."""
    group = group or weight.shape[1]
    high = 2 ** (bits - 1) - 1
    parts = weight.split(group, dim=1)
    scale = torch.stack([part.abs().amax(dim=1) for part in parts], dim=1) / high
    return UniformGrid(scale, torch.full_like(scale, high + 1), group, 1, 2 * high + 1)


def clipped_grid(weight, bits):
    """Symmetric grids of each row, shrunk to the least sum of |w - q|^2.4."""
    widest = row_grid(weight, bits)
    high, best, scale = widest.high // 2, torch.full((len(weight), 1), torch.inf), widest.scale
    for shrink in torch.linspace(1, 0.2, 81):
        s = widest.scale * shrink
        values = (weight / s).round().clamp(-high, high) * s
        error = (weight - values).abs().pow(2.4).sum(dim=1, keepdim=True)
        scale = torch.where(error < best, s, scale)
        best = torch.minimum(error, best)
    return widest._replace(scale=scale)


def mixed_layer(rows=64, columns=48, seed=0):
    """A weight, and the second moment of normal inputs under a random square map."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    x = torch.randn(512, columns, generator=generator).double()
    x = x @ torch.randn(columns, columns, generator=generator).double()
    return weight, x.T @ x / 512


def brute_force(weight, h, project):
    """Column by column: fix one, then find the best rest from scratch."""
    w = weight.double().clone()
    for j in range(w.shape[1]):
        error = torch.zeros_like(w[:, : j + 1])
        error[:, j] = project(w[:, j : j + 1].clone(), j).squeeze(1) - w[:, j]
        rest = slice(j + 1, None)
        w[:, j] += error[:, j]
        if j + 1 < w.shape[1]:
            w[:, rest] -= torch.linalg.solve(h[rest, rest], h[rest, : j + 1] @ error.T).T
    return w
