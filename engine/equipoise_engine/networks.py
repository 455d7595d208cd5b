"""Denoisers: bias-free networks, so that D(a x) = a D(x) for a >= 0 and no image needs to be normalised."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualUNet(nn.Module):
    """D(x) = x - R(x) with R a three-level U-Net without biases or normalisation.

    Bias-free: S. Mohan et al. 2020, arXiv:1906.05478.

    Parameters
    ----------
    image_channels
        1 for real images, 2 for the real and imaginary part of complex ones.
    widths
        Channels of the three levels.
    """

    def __init__(self, image_channels: int, widths: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.enter = _pair(image_channels, fine)
        self.down_middle = nn.Conv2d(fine, middle, 2, stride=2, bias=False)
        self.encode_middle = _pair(middle, middle)
        self.down_coarse = nn.Conv2d(middle, coarse, 2, stride=2, bias=False)
        self.encode_coarse = _pair(coarse, coarse)
        self.up_middle = nn.ConvTranspose2d(coarse, middle, 2, stride=2, bias=False)
        self.decode_middle = _pair(middle, middle)
        self.up_fine = nn.ConvTranspose2d(middle, fine, 2, stride=2, bias=False)
        self.decode_fine = _pair(fine, fine)
        self.leave = nn.Conv2d(fine, image_channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return D(x) `(batch, channel, y, x)` for an image of the same shape, any size."""
        rows, columns = x.shape[-2:]
        padded = functional.pad(x, (0, -columns % 4, 0, -rows % 4), mode="replicate")
        fine = self.enter(padded)
        middle = self.encode_middle(self.down_middle(fine))
        coarse = self.encode_coarse(self.down_coarse(middle))
        middle = self.decode_middle(middle + self.up_middle(coarse))
        fine = self.decode_fine(fine + self.up_fine(middle))
        residual: Tensor = self.leave(fine)[..., :rows, :columns]
        return x - residual


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.ReLU(),
    )


def expansion(network: nn.Module, image: Tensor, direction: Tensor, *, steps: int = 2) -> tuple[Tensor, Tensor]:
    """Return how much the network expands its worst direction at an image: the largest singular value of J.

    J is its Jacobian. Power iteration on J^T J, with J v from a finite difference (exact within a linear piece of a
    ReLU network) and J^T u by automatic differentiation. A map that expands nothing has a fixed point that iterations
    find (J.-C. Pesquet et al. 2021, arXiv:2012.13247).

    Parameters
    ----------
    image
        `(batch, channel, y, x)`.
    direction
        Where the power iteration starts, shaped as the image.
    steps
        Of the power iteration.

    Returns
    -------
    tuple
        ||J v|| / ||v|| `(batch,)`, an estimate from below, differentiable in the parameters; and the direction v
        `(batch, channel, y, x)` in which it was found.
    """

    def unit(v: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp(min=torch.finfo(v.dtype).tiny)
        return v / size[:, None, None, None]

    image = image.detach()
    # small against the image, large against rounding
    length = 0.01 * torch.linalg.vector_norm(image.flatten(1), dim=1)[:, None, None, None].clamp(min=1e-6)
    v = unit(direction)
    with torch.enable_grad():
        x = image.clone().requires_grad_()
        value = network(x)
    for _ in range(steps):
        with torch.no_grad():
            forward = (network(image + length * v) - value) / length
        (v,) = torch.autograd.grad(value, x, forward, retain_graph=True)
        v = unit(v)
    change = (network(image + length * v) - network(image)) / length
    return torch.linalg.vector_norm(change.flatten(1), dim=1), v.detach()


def as_channels(image: Tensor) -> Tensor:
    """Return a real `(batch, y, x)` image as one channel, a complex one as two `(batch, channel, y, x)`."""
    return torch.view_as_real(image).permute(0, 3, 1, 2) if image.is_complex() else image[:, None]


def from_channels(channels: Tensor) -> Tensor:
    """Undo `as_channels`."""
    if channels.shape[1] == 1:
        return channels[:, 0]
    return torch.view_as_complex(channels.permute(0, 2, 3, 1).contiguous())
