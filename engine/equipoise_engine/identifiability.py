"""Whether a group of transforms can teach anything beyond what a scan measures, for the scan's own geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise_engine.groups import check_group, draw, virtual
from equipoise_engine.krylov import conjugate_gradients
from equipoise_engine.operators import Physics, norms

_COMPLETE = 0.02
"""A smaller hidden share is the highest frequencies, which no scan sees well."""


@dataclass(frozen=True)
class Information:
    """How much of what a scan does not see becomes visible through a group.

    Parameters
    ----------
    group
        See `groups.draw`.
    share
        0 where the group shows the scanner nothing new, about 1 where the unseen part is seen as well as anything.
    hidden
        Share of the energy of an image that the scan does not see.
    """

    group: str
    share: float
    hidden: float

    @property
    def useful(self) -> bool:
        """Whether equivariance under the group adds to the measurements."""
        return self.hidden > _COMPLETE and self.share > 0.1

    @property
    def message(self) -> str:
        """What to tell a person who wants to train with the group."""
        if self.useful:
            return (
                f"The group {self.group} shows {self.share:.0%} of what this scan's geometry hides: training by "
                "equivariance can learn it."
            )
        if self.hidden <= _COMPLETE:
            return (
                f"This scan is complete: its geometry hides {self.hidden:.1%} of an image, next to nothing that a "
                "group of transforms could show."
            )
        return (
            f"The group {self.group} brings no information for this scan's geometry: the transformed object is "
            "measured in the same way, so what the scan misses stays unseen. Try another group; rotations by arbitrary "
            "angles suit most scans."
        )


@torch.no_grad()
def information(
    physics: Physics,
    group: str,
    generator: torch.Generator,
    *,
    device: torch.device | None = None,
    avoid_step_rad: float | None = None,
    draws: int = 6,
    steps: int = 20,
) -> Information:
    """Return how much of the null space of A the group makes visible.

    For random images v without the part that conjugate gradients recover from A v, and random g: the mean of
    <A T_g v, W A T_g v> / <v, v>, less its value at the identity, relative to its value for the whole images.

    Where A T_g has the null space of A for all g, equivariance tells nothing: J. Tachella, D. Chen, M. Davies 2023,
    arXiv:2201.12151.

    Parameters
    ----------
    physics
        Its first slice is used.
    avoid_step_rad
        See `groups.rotation_angles`.
    draws
        Number of transforms.
    steps
        Conjugate gradient steps that take the visible part out of the images.
    """
    check_group(group, physics)
    first = physics.select(torch.zeros(1, dtype=torch.int64))
    rows, columns = physics.domain
    image = _smooth(2, rows, columns, generator).to(device)
    image = image if physics.complex_image else image.real.contiguous()
    hidden = image - _visible(first, image, steps)
    before = _energy(first, hidden)
    after = 0.0
    for _ in range(draws):
        transform = draw(group, 1, generator, shape=(rows, columns), avoid_step_rad=avoid_step_rad, device=device)
        after += max(0.0, _energy(virtual(first, transform), hidden) - before) / draws
    unseen = (float(norms(hidden).norm()) / float(norms(image).norm())) ** 2
    return Information(group, min(1.0, after / _energy(first, image)), unseen)


def _energy(physics: Physics, image: Tensor) -> float:
    return float(torch.sum((image.conj() * physics.normal(image)).real)) / float(norms(image).norm()) ** 2


def _visible(physics: Physics, image: Tensor, steps: int) -> Tensor:
    """Return A^+ A x by conjugate gradients on A^H W A, whose null space is that of A."""
    # in single precision there is nothing below this residual to recover
    return conjugate_gradients(physics.normal, physics.normal(image), tolerance=1e-6, max_steps=steps).value


def _smooth(batch: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw noise with the 1/f spectrum of images within the disc that scanners see `(batch, y, x)`, complex64."""
    noise = torch.view_as_complex(torch.randn((batch, rows, columns, 2), generator=generator))
    fy, fx = torch.fft.fftfreq(rows), torch.fft.fftfreq(columns)
    frequency = torch.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2).clamp(min=1 / max(rows, columns))
    y = (torch.arange(rows) - (rows - 1) / 2) / (rows / 2)
    x = (torch.arange(columns) - (columns - 1) / 2) / (columns / 2)
    radius = torch.sqrt(y[:, None] ** 2 + x[None, :] ** 2)
    taper = 0.5 * (1 + torch.cos(math.pi * ((radius - 0.7) / 0.25).clamp(0, 1)))
    drawn: Tensor = torch.fft.ifft2(torch.fft.fft2(noise) / frequency)
    return drawn * taper
