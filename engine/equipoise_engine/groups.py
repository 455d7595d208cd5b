"""The transforms T_g under which images are assumed to look alike: rotations that are exact, or nearly."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotate(image: Tensor, angle_rad: Tensor) -> Tensor:
    """Return each image turned counter-clockwise about its centre by its own angle.

    Quarter turns exchange axes; the rest (at most 45 degrees) is three shears, each an exact shift of every line in
    Fourier space, on an image zero-padded to twice its size. Differentiable; what is turned out of the frame is lost.

    Parameters
    ----------
    image
        `(batch, y, x)`, real or complex, pixels as high as wide.
    angle_rad
        `(batch,)`.

    Returns
    -------
    Tensor
        `(batch, y, x)`.

    Source: A. W. Paeth 1986, "A fast algorithm for general raster rotation"; M. Unser, P. Thevenaz, L. Yaroslavsky
    1995, doi:10.1109/83.469936.
    """
    rows, columns = image.shape[-2:]
    side = max(rows, columns)
    above, left = (side - rows) // 2, (side - columns) // 2
    image = torch.nn.functional.pad(image, (left, side - columns - left, above, side - rows - above))
    signed = torch.remainder(angle_rad + math.pi, 2 * math.pi) - math.pi
    quarter = torch.round(signed / (math.pi / 2))
    rest = (signed - quarter * (math.pi / 2)).to(image.real.dtype)
    # the quarter turn comes first for positive angles, last for negative ones: -angle undoes angle step by step
    first = torch.where(signed >= 0, quarter, torch.zeros_like(quarter))
    turned = _quarter_turns(image, first)
    margin = side // 2
    padded = torch.nn.functional.pad(turned, (margin, side - margin, margin, side - margin))
    # the centre (side - 1) / 2 of the frame lies at `centre` of the padded one
    centre = margin + (side - 1) / 2
    across, along = torch.tan(rest / 2), -torch.sin(rest)
    padded = _shear(padded, across, centre, -1)
    padded = _shear(padded, along, centre, -2)
    padded = _shear(padded, across, centre, -1)
    square = _quarter_turns(padded[..., margin : margin + side, margin : margin + side], quarter - first)
    return square[..., above : above + rows, left : left + columns]


def _quarter_turns(image: Tensor, counts: Tensor) -> Tensor:
    return torch.stack(
        [torch.rot90(one, int(count), (-2, -1)) for one, count in zip(image, counts.tolist(), strict=True)]
    )


def _shear(image: Tensor, slope: Tensor, centre: float, axis: int) -> Tensor:
    """Shift every line along `axis` by slope times its distance from the centre, through the shift theorem."""
    side = image.shape[-1]
    frequency = torch.fft.fftfreq(side, dtype=slope.dtype, device=image.device)
    distance = torch.arange(side, dtype=slope.dtype, device=image.device) - centre
    shift = slope[:, None] * distance
    if axis == -1:
        phase = shift[:, :, None] * frequency
    else:
        frequency = frequency[:, None]
        phase = shift[:, None, :] * frequency
    factor = torch.exp(-2j * math.pi * phase)
    # the highest frequency of an even length stands for its negative too: a real image has to stay real
    factor = torch.where(frequency == -0.5, factor.real.to(factor.dtype), factor)
    spectrum = torch.fft.fft(image, dim=axis) * factor
    sheared: Tensor = torch.fft.ifft(spectrum, dim=axis)
    return sheared if image.is_complex() else sheared.real


def rotation_angles(
    batch: int, generator: torch.Generator, *, avoid_step_rad: float | None = None, device: torch.device | None = None
) -> Tensor:
    """Draw rotation angles `(batch,)` in radians, uniform over the full turn.

    Parameters
    ----------
    avoid_step_rad
        Spacing of equally spaced views: turning by a multiple of it only permutes the measurements and teaches
        nothing, so angles within a quarter step of such a multiple are moved out to it.
    """
    angles = torch.rand(batch, generator=generator) * (2 * math.pi)
    if avoid_step_rad is not None:
        nearest = torch.round(angles / avoid_step_rad) * avoid_step_rad
        offset = angles - nearest
        least = avoid_step_rad / 4
        direction = torch.where(offset >= 0, 1.0, -1.0)
        angles = nearest + direction * offset.abs().clamp(min=least)
    return angles.to(device) if device is not None else angles
