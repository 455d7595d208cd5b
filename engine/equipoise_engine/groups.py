"""The transforms T_g under which images are assumed to look alike, and what a scanner sees through them.

All are exact (flips, quarter turns, circular shifts, a global phase) or nearly so (rotations by any angle), and the
adjoint of each is its inverse, but for what a rotation turns out of the frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.operators import Physics

GROUPS = ("rotation", "rot90", "flip", "shift", "phase")


@dataclass(frozen=True)
class Transform:
    """T_g for each sample: mirror, then rotate, then shift, then multiply by a phase; None leaves a step out.

    One sample's parameters serve a batch of any size.

    Parameters
    ----------
    mirrored
        Whether the column axis is reversed `(batch,)`, bool.
    angle_rad
        Counter-clockwise rotation about the centre `(batch,)`.
    shift
        Circular shift along `(row, column)` in pixels `(batch, 2)`, int64.
    phase_rad
        `(batch,)`, for complex images.
    """

    mirrored: Tensor | None = None
    angle_rad: Tensor | None = None
    shift: Tensor | None = None
    phase_rad: Tensor | None = None

    def apply(self, image: Tensor) -> Tensor:
        """Return T_g x `(batch, y, x)`, differentiable."""
        if self.mirrored is not None:
            image = _mirror(image, self.mirrored)
        if self.angle_rad is not None:
            image = rotate(image, self.angle_rad.expand(image.shape[0]))
        if self.shift is not None:
            image = _roll(image, self.shift)
        if self.phase_rad is not None:
            image = image * _phasor(self.phase_rad)
        return image

    def inverse(self, image: Tensor) -> Tensor:
        """Return T_g^-1 x, which is T_g^H x, `(batch, y, x)`."""
        if self.phase_rad is not None:
            image = image * _phasor(-self.phase_rad)
        if self.shift is not None:
            image = _roll(image, -self.shift)
        if self.angle_rad is not None:
            image = rotate(image, -self.angle_rad.expand(image.shape[0]))
        if self.mirrored is not None:
            image = _mirror(image, self.mirrored)
        return image

    def cropped(self, image: Tensor) -> Tensor:
        """Return T_g x without what lies outside the disc that rotations keep; unchanged where the frame fits itself.

        The disc is about the centre and reaches the farther edges.
        """
        rows, columns = image.shape[-2:]
        symmetry = 2 if rows == columns else 1
        if self.angle_rad is None or bool((torch.sin(symmetry * self.angle_rad).abs() < 1e-5).all()):
            return image
        y = torch.arange(rows, device=image.device) - (rows - 1) / 2
        x = torch.arange(columns, device=image.device) - (columns - 1) / 2
        return image * ((y[:, None] ** 2 + x[None, :] ** 2) <= (max(rows, columns) / 2) ** 2)

    @property
    def batch(self) -> int:
        """Number of samples with parameters of their own."""
        return max((value.shape[0] for value in self._values().values()), default=1)

    def select(self, samples: Tensor) -> Transform:
        """Return the transform of a part of the batch; `samples (batch,)` int64 indexes it."""
        if self.batch == 1:
            return self
        return Transform(**{name: value[samples.to(value.device)] for name, value in self._values().items()})

    def joined(self, others: Sequence[Transform]) -> Transform:
        """Return the transform of these samples, then those of others of the same group."""
        return Transform(
            **{
                name: torch.cat([value, *(other._values()[name] for other in others)])
                for name, value in self._values().items()
            }
        )

    def to(self, device: torch.device) -> Transform:
        """Return the transform with its parameters on `device`."""
        return Transform(**{name: value.to(device) for name, value in self._values().items()})

    def _values(self) -> dict[str, Tensor]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


def draw(
    group: str,
    batch: int,
    generator: torch.Generator,
    *,
    shape: tuple[int, int],
    avoid_step_rad: float | None = None,
    device: torch.device | None = None,
) -> Transform:
    """Draw an element of a group for each sample; of the finite ones, one that is not the identity.

    Parameters
    ----------
    group
        One of `GROUPS`, or several joined by "+": "rotation+flip".
    shape
        `(rows, columns)` of the images.
    avoid_step_rad
        See `rotation_angles`.

    Raises
    ------
    BadInput
        An unknown group.
    """
    names = group.split("+")
    if unknown := [name for name in names if name not in GROUPS]:
        raise BadInput(f"unknown group of transforms {unknown[0]!r}", f"Choose among {', '.join(GROUPS)}.")
    angle: Tensor | None = None
    mirrored: Tensor | None = None
    shift: Tensor | None = None
    phase: Tensor | None = None
    if "rotation" in names:
        angle = rotation_angles(batch, generator, avoid_step_rad=avoid_step_rad)
    elif "rot90" in names:
        angle = torch.randint(1, 4, (batch,), generator=generator) * (math.pi / 2)
    if "flip" in names:
        # left to right, upside down, or both: upside down is left to right and half a turn
        which = torch.randint(1, 4, (batch,), generator=generator)
        mirrored = which < 3
        angle = (which > 1) * math.pi + (0 if angle is None else angle)
    if "shift" in names:
        shift = torch.stack([torch.randint(0, side, (batch,), generator=generator) for side in shape], dim=1)
    if "phase" in names:
        phase = torch.rand(batch, generator=generator) * (2 * math.pi)
    drawn = Transform(mirrored, angle, shift, phase)
    return drawn if device is None else drawn.to(device)


def check_group(group: str, physics: Physics) -> None:
    """Raise BadInput where a group does not suit the images of a physics."""
    if "phase" in group.split("+") and not physics.complex_image:
        raise BadInput(
            f"the group {group} has a global phase, and these images are real", "A phase is for complex images (MRI)."
        )


class TransformedPhysics(Physics):
    """The virtual operator A T_g: what the scanner would have measured of the transformed object.

    Images are those of the object before the transform. Source: arXiv:2103.14756, eq. 5.
    """

    def __init__(self, physics: Physics, transform: Transform) -> None:
        super().__init__(physics.domain, physics.range)
        self.physics = physics
        self.transform = transform
        self.complex_image = physics.complex_image
        self.truncated = physics.truncated

    @property
    def slices(self) -> int:
        """Number of slices that differ in their physics."""
        return max(self.physics.slices, self.transform.batch)

    def _forward(self, x: Tensor) -> Tensor:
        return self.physics._forward(self.transform.apply(x))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.transform.inverse(self.physics._adjoint(y))

    def weight(self, residual: Tensor) -> Tensor:
        """Return W r `(batch, *range)` with the W of A."""
        return self.physics.weight(residual)

    def analytic(self, y: Tensor) -> Tensor:
        """Return the direct image of y, transformed back `(batch, y, x)`."""
        return self.transform.inverse(self.physics.analytic(y))

    def select(self, slices: Tensor) -> TransformedPhysics:
        """Return the physics of a part of the batch."""
        return TransformedPhysics(self.physics.select(slices), self.transform.select(slices))

    def joined(self, others: Sequence[Physics]) -> TransformedPhysics:
        """Return the physics of these slices, then those of others that look through the same group."""
        alike = [other for other in others if isinstance(other, TransformedPhysics)]
        # what serves any batch goes on doing so
        physics, transform = self.physics, self.transform
        if physics.slices > 1:
            physics = physics.joined([other.physics for other in alike])
        if transform.batch > 1:
            transform = transform.joined([other.transform for other in alike])
        return TransformedPhysics(physics, transform)

    def thinned(self, kept: Tensor) -> TransformedPhysics:
        """Return the physics of a part of the measurements."""
        return TransformedPhysics(self.physics.thinned(kept), self.transform)

    def part(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return the measurements that the thinned physics has."""
        return self.physics.part(y, kept)

    def withheld(self, y: Tensor, kept: Tensor) -> Tensor:
        """Return y with zeros where measurements are kept."""
        return self.physics.withheld(y, kept)

    def random_split(self, generator: torch.Generator, share: float = 0.6) -> Tensor:
        """Draw which measurements to keep. Raises BadInput when there are too few."""
        return self.physics.random_split(generator, share)

    def to(self, device: torch.device) -> TransformedPhysics:
        """Return the physics with its tensors on `device`."""
        return TransformedPhysics(self.physics.to(device), self.transform.to(device))

    def noise_like(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return white noise of unit standard deviation where y was measured."""
        return self.physics.noise_like(y, generator)

    def seen(self, image: Tensor) -> Tensor:
        """Return the image without what the scanner says next to nothing about once it is transformed."""
        return self.transform.inverse(self.physics.seen(self.transform.apply(image)))

    def framed(self, image: Tensor) -> Tensor:
        """Return the part of an image `(batch, y, x)` that people look at."""
        return self.physics.framed(image)


def virtual(physics: Physics, transform: Transform) -> Physics:
    """Return the physics of A T_g, without turning any image where one angle serves all and the geometry allows it."""
    values = transform._values()
    if list(values) == ["angle_rad"] and transform.batch == 1:
        turned = physics.turned(float(values["angle_rad"]))
        if turned is not None:
            return turned
    return TransformedPhysics(physics, transform)


def rotate(image: Tensor, angle_rad: Tensor) -> Tensor:
    """Return each image turned counter-clockwise about its centre by its own angle.

    Quarter turns exchange axes; the rest (at most 45 degrees) is three shears, each an exact shift of every line in
    Fourier space, on an image zero-padded to twice its size. Differentiable; what is turned out of the frame is lost.
    Turning by the negative angle is the adjoint.

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
    # an odd function, so that -angle gives the exact opposite
    signed = angle_rad - torch.round(angle_rad / (2 * math.pi)) * (2 * math.pi)
    quarter = torch.round(signed / (math.pi / 2))
    rest = (signed - quarter * (math.pi / 2)).to(image.real.dtype)
    # the quarter turn comes first for positive angles, last for negative ones: -angle undoes angle step by step
    first = torch.where(signed >= 0, quarter, torch.zeros_like(quarter))
    turned = _quarter_turns(image, first)
    # what is left of multiples of 90 degrees in single precision moves no pixel
    if not bool((rest.abs() > 2e-6).any()):
        return _quarter_turns(turned, quarter - first)[..., above : above + rows, left : left + columns]
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


def _mirror(image: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None], image.flip(-1), image)


def _roll(image: Tensor, shift: Tensor) -> Tensor:
    offsets = shift.expand(image.shape[0], 2).tolist()
    return torch.stack([torch.roll(one, offset, (-2, -1)) for one, offset in zip(image, offsets, strict=True)])


def _phasor(phase_rad: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(phase_rad), phase_rad)[:, None, None]


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
