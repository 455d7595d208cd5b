"""Generated objects with varied anatomy, and simulated measurements of them, for pretraining and tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from equipoise_engine.mri import centred_fft


def random_images(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw nonnegative images `(batch, y, x)`, float32, zero outside the inscribed disc, largest value about one.

    A body of soft ellipses, occluded by leaves (ellipses and rectangles) of many sizes, some filled with band-limited
    texture, with a slow shading over all. Edges are one pixel wide.
    """
    return torch.stack([_image(side, generator) for _ in range(batch)])


def tissue_images(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw nonnegative images like `random_images`, but of soft and fibrous matter: hardly any part is constant.

    A shaded body with a soft edge, blobs with smooth profiles, bundles of fibres, band-limited texture, and a few
    inclusions with sharp edges.
    """
    return torch.stack([_tissue(side, generator) for _ in range(batch)])


def random_phase(batch: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw smooth phase factors exp(i phi) `(batch, y, x)`, complex64."""
    phase = torch.stack([_smooth(side, 3.0, generator) for _ in range(batch)])
    strength = torch.rand((batch, 1, 1), generator=generator) * math.pi
    return torch.polar(torch.ones_like(phase), strength * phase)


def random_coil_maps(coils: int, side: int, generator: torch.Generator) -> Tensor:
    """Draw smooth coil sensitivities `(coil, y, x)`, complex64, with sum of squares one everywhere."""
    y, x = _grid(side)
    maps = []
    turn = torch.rand((), generator=generator) * 2 * math.pi
    for coil in range(coils):
        angle = turn + 2 * math.pi * coil / coils
        distance = 1.0 + 0.4 * torch.rand((), generator=generator)
        width = 0.7 + 0.6 * torch.rand((), generator=generator)
        apart = (x - distance * torch.cos(angle)) ** 2 + (y - distance * torch.sin(angle)) ** 2
        magnitude = torch.exp(-apart / (2 * width**2))
        slope = torch.randn(2, generator=generator)
        maps.append(torch.polar(magnitude, slope[0] * x + slope[1] * y + angle))
    stacked = torch.stack(maps)
    size: Tensor = torch.linalg.vector_norm(stacked, dim=0)
    return stacked / size


def simulate_kspace(image: Tensor, maps: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return noisy multi-coil k-space `(batch, coil, ky, kx)` of images `(batch, y, x)` under maps `(coil, y, x)`.

    `noise` is the standard deviation of the real and of the imaginary part.
    """
    kspace = centred_fft(image[:, None] * maps)
    drawn = torch.randn((*kspace.shape, 2), generator=generator)
    return kspace + noise * torch.view_as_complex(drawn)


def _image(side: int, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    y, x = _grid(side)
    pixel = 2.0 / side
    body = _ellipse(
        x, y, 0.1 * uniform(-1, 1), 0.1 * uniform(-1, 1), uniform(0.55, 0.9), uniform(0.55, 0.9), uniform(0, 3.2), pixel
    )
    image = body * uniform(0.2, 0.7)
    if uniform(0, 1) < 0.3:
        rim = _ellipse(x, y, 0, 0, uniform(0.6, 0.85), uniform(0.6, 0.85), uniform(0, 3.2), pixel)
        image = torch.where(body > 0.5, image + uniform(0.1, 0.5) * (1 - rim), image)
    count = int(uniform(4, 40))
    for _ in range(count):
        radius = 0.5 * uniform(0.04, 1.0) ** 2 + 1.5 * pixel
        angle, away = uniform(0, 2 * math.pi), 0.75 * math.sqrt(uniform(0, 1))
        place = (away * math.cos(angle), away * math.sin(angle))
        shape = _rectangle if uniform(0, 1) < 0.25 else _ellipse
        leaf = shape(x, y, *place, radius, radius * uniform(0.25, 1.0), uniform(0, 3.2), pixel)
        value = torch.tensor(uniform(0.0, 1.0))
        filled = value * torch.ones_like(x)
        if uniform(0, 1) < 0.35:
            texture = _smooth(side, uniform(4.0, side / 4), generator)
            filled = (filled + uniform(0.05, 0.3) * texture).clamp(min=0)
        if uniform(0, 1) < 0.5:
            image = image * (1 - leaf) + filled * leaf
        else:
            image = image + uniform(0.03, 0.25) * leaf * (1 if uniform(0, 1) < 0.6 else -1)
    image = image * body * (1 + 0.15 * _smooth(side, 2.0, generator))
    inside = _ellipse(x, y, 0, 0, 0.97, 0.97, 0, pixel)
    image = (image * inside).clamp(min=0)
    return image / image.max().clamp(min=0.1)


def _tissue(side: int, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    y, x = _grid(side)
    pixel = 2.0 / side
    soft = uniform(0.04, 0.12)
    body = _ellipse(x, y, 0, 0, uniform(0.65, 0.88), uniform(0.65, 0.88), uniform(0, 3.2), soft)
    image = uniform(0.35, 0.6) * (1 + 0.35 * _smooth(side, 2.5, generator))
    for _ in range(int(uniform(4, 12))):
        turn, wide, high = uniform(0, 3.2), uniform(0.05, 0.3), uniform(0.05, 0.3)
        along, across = _turned(x - uniform(-0.6, 0.6), y - uniform(-0.6, 0.6), turn)
        image = image + uniform(-0.3, 0.4) * torch.exp(-((along / wide) ** 2 + (across / high) ** 2) / 2)
    for _ in range(int(uniform(1, 4))):
        turn, cycles = uniform(0, 3.2), uniform(6.0, 16.0)
        along, across = _turned(x - uniform(-0.5, 0.5), y - uniform(-0.5, 0.5), turn)
        region = torch.exp(-((along / uniform(0.2, 0.5)) ** 2 + (across / uniform(0.15, 0.4)) ** 2) / 2)
        bend = uniform(0.2, 1.0) * _smooth(side, 3.0, generator)
        image = image + uniform(0.08, 0.2) * region * torch.cos(math.pi * cycles * across + bend)
    grain = _smooth(side, 14.0, generator) * (0.5 + 0.5 * _smooth(side, 3.0, generator)).clamp(min=0)
    image = image + uniform(0.02, 0.08) * grain
    for _ in range(int(uniform(0, 5))):
        radius = uniform(0.03, 0.12)
        place = (uniform(-0.5, 0.5), uniform(-0.5, 0.5))
        leaf = _ellipse(x, y, *place, radius, radius * uniform(0.4, 1.0), uniform(0, 3.2), pixel)
        image = image + uniform(-0.3, 0.4) * leaf
    image = (image * body).clamp(min=0)
    return image / image.max().clamp(min=0.1)


def _turned(x: Tensor, y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _grid(side: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(side) - (side - 1) / 2) * (2.0 / side)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    return y, x


def _ellipse(x: Tensor, y: Tensor, x0: float, y0: float, wide: float, high: float, turn: float, pixel: float) -> Tensor:
    along, across = _turned(x - x0, y - y0, turn)
    radius = torch.sqrt((along / wide) ** 2 + (across / high) ** 2)
    return ((1 - radius) * min(wide, high) / pixel + 0.5).clamp(0, 1)


def _rectangle(
    x: Tensor, y: Tensor, x0: float, y0: float, wide: float, high: float, turn: float, pixel: float
) -> Tensor:
    along, across = _turned(x - x0, y - y0, turn)
    inside = torch.minimum(wide - along.abs(), high - across.abs())
    return (inside / pixel + 0.5).clamp(0, 1)


def _smooth(side: int, cycles: float, generator: torch.Generator) -> Tensor:
    """Draw a random field `(y, x)` of unit standard deviation without frequencies above `cycles` per image side."""
    noise = torch.randn((side, side), generator=generator)
    frequency = torch.fft.fftfreq(side) * side
    falloff = torch.exp(-(frequency[:, None] ** 2 + frequency[None, :] ** 2) / (2 * (cycles / 2) ** 2))
    field: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) * falloff).real
    return (field - field.mean()) / field.std()
