"""Training losses that use measurements only. Each returns one value per sample, relative to the size of the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from equipoise_engine.groups import rotate
from equipoise_engine.operators import Physics

Reconstruction = Callable[[Tensor, Physics], Tensor]
"""f(y, physics)"""


def measurement_consistency(x_hat: Tensor, y: Tensor, physics: Physics) -> Tensor:
    """Return <A x - y, W (A x - y)> / <y, W y> `(batch,)`.

    Parameters
    ----------
    x_hat
        Reconstruction f(y) `(batch, y, x)`.
    y
        Measurements `(batch, ...)`.
    """
    residual = physics.forward(x_hat) - y
    return _inner(residual, physics.weight(residual)) / _inner(y, physics.weight(y))


def recorrupt(y: Tensor, noise: Tensor, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """Return y + t w and y - w / t, whose noises are independent when y has white noise of the same level as w.

    Reconstructing from the first and comparing with the second is, in expectation, comparing with noise-free
    measurements.

    Source: T. Pang, H. Zheng, Y. Quan, H. Ji 2021, doi:10.1109/CVPR46437.2021.00208; t^2 = a / (1 - a) with `share` a
    as in B. Monroy, J. Bacca, J. Tachella 2024, arXiv:2412.04648.

    Parameters
    ----------
    y
        Measurements `(batch, ...)`.
    noise
        w, shaped as y.
    """
    spread = (share / (1 - share)) ** 0.5
    return y + spread * noise, y - noise / spread


def equivariance(
    x_hat: Tensor, physics: Physics, reconstruct: Reconstruction, *, angles: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Return ||T_g x - f(A T_g x + e)||^2 / ||T_g x||^2 `(batch,)`: reconstruction commutes with turning the object.

    Both norms are over the part of the image that is seen (`Physics.seen`).

    The gradient flows through both T_g x and f. Source: D. Chen, J. Tachella, M. E. Davies 2021, arXiv:2103.14756,
    eq. 8; with noise e: 2022, arXiv:2111.12855.

    Parameters
    ----------
    x_hat
        Reconstruction f(y) `(batch, y, x)`.
    angles
        Rotation of each sample `(batch,)` in radians.
    noise
        e, shaped as the measurements.
    """
    turned = _crop(rotate(x_hat, angles))
    measured = physics.forward(turned)
    again = reconstruct(measured if noise is None else measured + noise, physics)
    difference, whole = physics.seen(again - turned), physics.seen(turned)
    return _inner(difference, difference) / _inner(whole, whole).detach().clamp(
        min=torch.finfo(difference.real.dtype).tiny
    )


def _crop(image: Tensor) -> Tensor:
    """Zero the image outside the disc about its centre that reaches its farther edges: rotations keep that disc."""
    rows, columns = image.shape[-2:]
    y = torch.arange(rows, device=image.device) - (rows - 1) / 2
    x = torch.arange(columns, device=image.device) - (columns - 1) / 2
    return image * ((y[:, None] ** 2 + x[None, :] ** 2) <= (max(rows, columns) / 2) ** 2)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.reshape(a.shape[0], -1).sum(1)
