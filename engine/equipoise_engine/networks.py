"""Denoisers: homogeneous networks, D(a x) = a D(x) for a > 0, so that no image needs to be normalised.

Three kinds: an unconstrained U-Net, one whose Jacobian is symmetric, and one that never expands a distance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise_engine.errors import BadInput

SIZES: dict[str, tuple[int, int, int]] = {"small": (16, 32, 64), "base": (32, 64, 128)}
"""Channels of the three levels, by name."""


class _SmoothReLU(nn.Module):
    """(t + sqrt(t^2 + e^2) - e) / 2: infinitely differentiable, increasing, zero at zero, like ReLU for |t| >> e."""

    def __init__(self, roundness: float = 0.1) -> None:
        super().__init__()
        self.roundness = roundness

    def forward(self, t: Tensor) -> Tensor:
        return (t + torch.sqrt(t.square() + self.roundness**2) - self.roundness) / 2


class _UNet(nn.Module):
    """A three-level U-Net R without biases or normalisation; R(0) = 0.

    Parameters
    ----------
    image_channels
        1 for real images, 2 for the real and imaginary part of complex ones.
    widths
        Channels of the three levels.
    activation
        Zero at zero.
    """

    def __init__(self, image_channels: int, widths: tuple[int, int, int], activation: nn.Module) -> None:
        super().__init__()
        fine, middle, coarse = widths

        def pair(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                activation,
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                activation,
            )

        self.enter = pair(image_channels, fine)
        self.down_middle = nn.Conv2d(fine, middle, 2, stride=2, bias=False)
        self.encode_middle = pair(middle, middle)
        self.down_coarse = nn.Conv2d(middle, coarse, 2, stride=2, bias=False)
        self.encode_coarse = pair(coarse, coarse)
        self.up_middle = nn.ConvTranspose2d(coarse, middle, 2, stride=2, bias=False)
        self.decode_middle = pair(middle, middle)
        self.up_fine = nn.ConvTranspose2d(middle, fine, 2, stride=2, bias=False)
        self.decode_fine = pair(fine, fine)
        self.leave = nn.Conv2d(fine, image_channels, 3, padding=1, bias=False)

    def residual(self, x: Tensor) -> Tensor:
        """Return R(x) `(batch, channel, y, x)` for an image of the same shape, any size."""
        rows, columns = x.shape[-2:]
        padded = functional.pad(x, (0, -columns % 4, 0, -rows % 4), mode="replicate")
        fine = self.enter(padded)
        middle = self.encode_middle(self.down_middle(fine))
        coarse = self.encode_coarse(self.down_coarse(middle))
        middle = self.decode_middle(middle + self.up_middle(coarse))
        fine = self.decode_fine(fine + self.up_fine(middle))
        residual: Tensor = self.leave(fine)[..., :rows, :columns]
        return residual


class ResidualUNet(_UNet):
    """D(x) = x - R(x) with R a bias-free U-Net of ReLUs; the identity before it is trained.

    Source: S. Mohan et al. 2020, arXiv:1906.05478.
    """

    symmetric = False

    def __init__(self, image_channels: int, widths: tuple[int, int, int] = SIZES["small"]) -> None:
        super().__init__(image_channels, widths, nn.ReLU())
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return D(x) `(batch, channel, y, x)` for an image of the same shape, any size."""
        return x - self.residual(x)


class GradientStep(_UNet):
    """D(x) = x - grad g(x) with g(x) = ||R(x)||^2 / 2: the Jacobian of D is symmetric, and continuous for x != 0.

    R(x) = s U(x / s) with s the root mean square of x and U a smooth U-Net without biases, so that R is homogeneous of
    degree one though its activation is not.

    Source: S. Hurault, A. Leclaire, N. Papadakis 2022, arXiv:2110.03220: the gradient step denoiser, its N(x) being
    x - R(x).
    """

    symmetric = True

    def __init__(self, image_channels: int, widths: tuple[int, int, int] = SIZES["small"]) -> None:
        super().__init__(image_channels, widths, _SmoothReLU())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight)
        # near the identity; at it, R = 0 and no weight would have a gradient
        with torch.no_grad():
            self.leave.weight *= 0.1

    def residual(self, x: Tensor) -> Tensor:
        """Return R(x) `(batch, channel, y, x)` for an image of the same shape, any size."""
        # the addend keeps the derivatives at the zero image finite
        scale = torch.sqrt(x.square().mean(dim=(1, 2, 3), keepdim=True) + 1e-30)
        return scale * super().residual(x / scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return D(x) `(batch, channel, y, x)` for an image of the same shape, any size; under no_grad, too."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            image = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            residual = self.residual(image)
            (gradient,) = torch.autograd.grad(residual, image, residual, create_graph=differentiable)
        difference: Tensor = x - gradient
        return difference


def convolution_norm_bound(kernel: Tensor, samples: int = 16) -> Tensor:
    """Return an upper bound of the operator norm of a convolution, differentiable in its kernel.

    The norm on images of any size, periodic or padded with zeros, is at most the largest singular value of the
    kernel's Fourier matrix K over all frequencies. For fixed u and v, u^H K v is along each axis, up to a phase, a
    trigonometric polynomial of degree n = (size - 1) / 2; at a distance t from its largest modulus M, this is at least
    M cos(n t) (M. Riesz). So M is at most the largest one on a grid of N points divided by cos(pi n / N) for each axis.

    Parameters
    ----------
    kernel
        `(output channel, input channel, y, x)`, float.
    samples
        N; at least the size of the kernel.

    Source: H. Sedghi, V. Gupta, P. M. Long 2019, arXiv:1805.10408; H. Ehlich, K. Zeller 1964, Math. Z. 86,
    41-44; compare L. Pfister, Y. Bresler 2018, arXiv:1802.09588.
    """
    # half of the frequencies: those of a real kernel come in conjugate pairs
    matrices = torch.fft.rfft2(kernel, s=(samples, samples)).flatten(2).permute(2, 0, 1)
    with torch.no_grad():
        wide = matrices.shape[1] < matrices.shape[2]
        gram = matrices @ matrices.mH if wide else matrices.mH @ matrices
        largest = torch.linalg.eigvalsh(gram)[:, -1].argmax()
    between = math.prod(math.cos(math.pi * (size - 1) / (2 * samples)) for size in kernel.shape[-2:])
    norm: Tensor = torch.linalg.matrix_norm(matrices[largest], ord=2)
    return norm / between


class LipschitzNetwork(nn.Module):
    """D with ||D(a) - D(b)|| <= contraction ||a - b||, whatever the weights are.

    The image, with channels of zeros appended, passes through the layers h - 2 W^T ReLU(W h): steps along the gradient
    of convex functions that no distance grows in, where W is a convolution divided by max(1, bound of its norm).
    A bound that is not tight shortens the steps and attenuates nothing.

    Source: L. Meunier et al. 2022, arXiv:2110.12690: convex potential layers.

    Parameters
    ----------
    image_channels
        1 for real images, 2 for the real and imaginary part of complex ones.
    width
        Channels of the layers, at least `image_channels`.
    depth
        Number of layers.
    contraction
        In (0, 1]. Below one, the equilibrium is unique.
    """

    symmetric = False

    def __init__(self, image_channels: int, width: int, depth: int, *, contraction: float = 0.99) -> None:
        super().__init__()
        self.image_channels, self.width, self.contraction = image_channels, width, contraction
        # norms of about 6 sqrt(width) std = 1/2, where the bound does not act yet
        self.kernels = nn.ParameterList(torch.randn(width, width, 3, 3) / (12 * width**0.5) for _ in range(depth))
        self._kept: tuple[list[object], list[Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return D(x) `(batch, channel, y, x)` for an image of the same shape, any size."""
        h = functional.pad(x, (0, 0, 0, 0, 0, self.width - self.image_channels))
        for kernel in self.normalised():
            h = h - 2 * functional.conv_transpose2d(functional.conv2d(h, kernel, padding=1).relu(), kernel, padding=1)
        return self.contraction * h[:, : self.image_channels]

    def normalised(self) -> list[Tensor]:
        """Return the kernels `(output channel, input channel, y, x)` of convolutions whose norm is at most one.

        Without a graph, they are kept until a parameter changes: the steps of a solve share them.
        """
        if torch.is_grad_enabled() and any(kernel.requires_grad for kernel in self.kernels):
            return [kernel / convolution_norm_bound(kernel).clamp(min=1) for kernel in self.kernels]
        state: list[object] = [(k._version, k.data_ptr(), k.dtype, k.device) for k in self.kernels]
        if self._kept is None or self._kept[0] != state:
            with torch.no_grad():
                self._kept = state, [kernel / convolution_norm_bound(kernel).clamp(min=1) for kernel in self.kernels]
        return self._kept[1]


def build_denoiser(network: str, image_channels: int, widths: tuple[int, int, int]) -> nn.Module:
    """Return a denoiser `(batch, channel, y, x) -> (batch, channel, y, x)` for images of any size.

    Its attribute `symmetric` says whether its Jacobian is symmetric by construction.

    Parameters
    ----------
    network
        "unet", "gradient-step" or "lipschitz".
    image_channels
        1 for real images, 2 for the real and imaginary part of complex ones.
    widths
        Channels of the three levels of a U-Net; the Lipschitz network has those of the second one throughout.

    Raises
    ------
    BadInput
        There is no such network.
    """
    match network:
        case "unet":
            return ResidualUNet(image_channels, widths)
        case "gradient-step":
            return GradientStep(image_channels, widths)
        case "lipschitz":
            return LipschitzNetwork(image_channels, widths[1], 8)
    raise BadInput(f"there is no network {network!r}", "Choose unet, gradient-step or lipschitz.")


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
    change = (network(image + length * v) - value) / length
    return torch.linalg.vector_norm(change.flatten(1), dim=1), v.detach()


def as_channels(image: Tensor) -> Tensor:
    """Return a real `(batch, y, x)` image as one channel, a complex one as two `(batch, channel, y, x)`."""
    return torch.view_as_real(image).permute(0, 3, 1, 2) if image.is_complex() else image[:, None]


def from_channels(channels: Tensor) -> Tensor:
    """Undo `as_channels`."""
    if channels.shape[1] == 1:
        return channels[:, 0]
    return torch.view_as_complex(channels.permute(0, 2, 3, 1).contiguous())
