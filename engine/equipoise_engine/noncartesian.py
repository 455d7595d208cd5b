"""Multi-coil magnetic resonance imaging along spokes, spirals and other readouts: A = F S, F a nonuniform transform.

Positions in k-space are in cycles per field of view. The nonuniform transform is orthonormal in the sense of `mri`:
y(k) = sum over pixels r of x(r) exp(-2 pi i k r / n) / sqrt(n), so that a full Cartesian trajectory gives what
`CartesianPhysics` gives. It is computed by finufft (A. Barnett, J. Magland, L. af Klinteberg 2019,
doi:10.1137/18M120885X), and by cufinufft on a GPU.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import finufft
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import NonCartesian
from equipoise_engine.krylov import conjugate_gradients
from equipoise_engine.mri import centred_fft
from equipoise_engine.operators import LinearOperator, Physics, operator_norm
from equipoise_engine.preprocess.coils import MAX_CALIBRATION, calibration_size, coil_maps
from equipoise_engine.thinning import UnitPhysics

_Reals = NDArray[np.float64]

_log = logging.getLogger(__name__)

GOLDEN_ANGLE_RAD = math.pi * (math.sqrt(5) - 1) / 2
"""From one spoke to the next, about 111.25 degrees (S. Winkelmann et al. 2007, doi:10.1109/TMI.2006.885337)."""
DENSITY_TOLERANCE = 1e-3
"""The density is good once the density of weighted samples is one but for this (root mean square)."""
DENSITY_STEPS = 100
"""Largest number of iterations for the density."""
MAX_PLANS = 8
"""Transforms kept ready, of different numbers of images or precision."""
CALIBRATION_STEPS = 12
"""Conjugate gradients that fit a small Cartesian k-space to the samples of the centre."""
PROBED_SLICES = 2
"""Slices that the norm is found from."""
NORM_STEPS = 16
"""Lanczos steps for the norm, which miss less than a hundredth of it; as many power iterations miss a tenth."""
NORM_MARGIN = 1.01
"""They approach it from below."""
NEAR = 0.75
"""A Cartesian position counts as measured with a sample this near, in cycles per field of view."""


@dataclass(frozen=True)
class Accuracy:
    """Settings of a nonuniform transform. Both directions need the same grid, or they are not adjoint to rounding."""

    tolerance: float
    oversampling: float


# Rounded positions limit single precision to about 1e-5 whatever the kernel: the small grid is as good, and faster.
SINGLE = Accuracy(2e-5, 1.25)
SINGLE_CUDA = Accuracy(1e-6, 2.0)
DOUBLE = Accuracy(1e-13, 2.0)
_DENSITY = Accuracy(1e-8, 1.25)


class _Transform:
    """The nonuniform Fourier transform without scaling, and its adjoint, with plans kept for reuse.

    Parameters
    ----------
    positions
        `(sample, 2)` along (ky, kx) in cycles per field of view.
    matrix
        Rows and columns of the images.
    field
        Rows and columns of a field of view; other than `matrix` where images are larger than it.
    double
        Accuracy in double precision.
    """

    def __init__(
        self,
        positions: _Reals,
        matrix: tuple[int, int],
        *,
        field: tuple[int, int] | None = None,
        double: Accuracy = DOUBLE,
    ) -> None:
        size = np.asarray(matrix if field is None else field, dtype=np.float64)
        # one turn more or less changes nothing, and less of it is lost in single precision
        turns = positions / size
        self._phase_rad = 2 * np.pi * (turns - np.round(turns)).T
        self.samples = positions.shape[0]
        self.matrix = matrix
        self._double = double
        self._plans: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    def forward(self, images: Tensor) -> Tensor:
        """Return `(image, sample)` for images `(image, y, x)`, complex."""
        return self._execute(2, images, (images.shape[0], self.samples))

    def adjoint(self, values: Tensor) -> Tensor:
        """Return `(image, y, x)` for values `(image, sample)`, complex."""
        return self._execute(1, values, (values.shape[0], *self.matrix))

    def _execute(self, kind: int, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        given = values.detach().resolve_conj().contiguous()
        if 0 in given.shape or 0 in shape:
            return torch.zeros(shape, dtype=values.dtype, device=values.device)
        if given.device.type == "cuda" and _on_cuda():
            result = torch.empty(shape, dtype=given.dtype, device=given.device)
            with self._lock, torch.cuda.device(given.device):
                self._plan(kind, given).execute(given, out=result)
            return result
        whole = torch.empty(shape, dtype=given.dtype)
        with self._lock:
            self._plan(kind, given.cpu()).execute(given.cpu().numpy(), out=whole.numpy())
        return whole.to(values.device)

    def _plan(self, kind: int, values: Tensor) -> Any:
        single = values.dtype == torch.complex64
        if not single and values.dtype != torch.complex128:
            raise BadInput(f"values of {values.dtype} are not complex64 or complex128")
        device, threads = values.device, torch.get_num_threads()
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        key = (kind, values.shape[0], values.dtype, device, stream, threads)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        name = "complex64" if single else "complex128"
        sign = 1 if kind == 1 else -1
        down, across = np.ascontiguousarray(self._phase_rad, dtype=np.float32 if single else np.float64)
        if device.type == "cuda":
            accuracy = SINGLE_CUDA if single else self._double
            plan = importlib.import_module("cufinufft").Plan(
                kind,
                self.matrix,
                values.shape[0],
                accuracy.tolerance,
                sign,
                name,
                upsampfac=accuracy.oversampling,
                gpu_device_id=device.index or 0,
                gpu_stream=stream,
            )
            plan.setpts(torch.from_numpy(down).to(device), torch.from_numpy(across).to(device))
        else:
            accuracy = SINGLE if single else self._double
            plan = finufft.Plan(
                kind,
                self.matrix,
                values.shape[0],
                accuracy.tolerance,
                sign,
                name,
                upsampfac=accuracy.oversampling,
                nthreads=threads,
            )
            plan.setpts(down, across)
        self._plans[key] = plan
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return plan


@cache
def _on_cuda() -> bool:
    """Whether the transform runs on the GPU; where it does not, that is said once."""
    if importlib.util.find_spec("cufinufft") is not None:
        return True
    _log.warning("cufinufft is not installed: nonuniform Fourier transforms are computed on the CPU")
    return False


class _Neighbours:
    """How dense weighted samples lie: w convolved with the squared point spread of the field of view in k-space.

    Parameters
    ----------
    positions
        `(sample, 2)` along (ky, kx) in cycles per field of view.
    matrix
        Rows and columns of the image.
    """

    def __init__(self, positions: _Reals, matrix: tuple[int, int]) -> None:
        wide = (2 * matrix[0], 2 * matrix[1])
        self._transform = _Transform(positions, wide, field=matrix, double=_DENSITY)
        down, across = (1 - torch.arange(-size, size, dtype=torch.float64).abs() / size for size in matrix)
        self._window = down[:, None] * across / math.prod(matrix)

    def density(self, weights: _Reals) -> _Reals:
        """Return the density at the samples `(sample,)`; one where weights are the areas that samples stand for."""
        spread = self._transform.adjoint(torch.from_numpy(weights).to(torch.complex128)[None])
        return np.asarray(self._transform.forward(spread * self._window)[0].real.numpy())


def density_compensation(
    trajectory: _Reals,
    matrix: tuple[int, int],
    *,
    tolerance: float = DENSITY_TOLERANCE,
    max_steps: int = DENSITY_STEPS,
) -> _Reals:
    """Return the area of k-space that each sample stands for `(readout, sample)`, float64, positive.

    The kernel is the squared point spread of the field of view, for which a fixed point also minimises the distance
    (Frobenius norm) of F^H W F from the identity. A sample apart from all others gets one; so does each sample of a
    full Cartesian trajectory.

    Parameters
    ----------
    trajectory
        `(readout, sample, 2)` along (ky, kx) in cycles per field of view.
    matrix
        Rows and columns of the image.
    tolerance
        Stop once the root mean square of density - 1, each sample with its area, is below.
    max_steps
        Largest number of iterations.

    Raises
    ------
    BadInput
        There are no samples.

    Source: J. G. Pipe and P. Menon 1999,
    doi:10.1002/(SICI)1522-2594(199901)41:1<179::AID-MRM25>3.0.CO;2-V, eq. 5; the kernel: K. O. Johnson and J. G. Pipe
    2009, doi:10.1002/mrm.21840.
    """
    if trajectory.size == 0:
        raise BadInput(f"a trajectory of shape {trajectory.shape} holds no samples")
    positions = trajectory.reshape(-1, 2)
    neighbours = _Neighbours(positions, matrix)
    weights = np.ones(positions.shape[0])
    for _ in range(max_steps):
        density = np.maximum(neighbours.density(weights), 1e-6)
        if math.sqrt(float(np.average((density - 1) ** 2, weights=weights))) <= tolerance:
            break
        weights = weights / density
    return weights.reshape(trajectory.shape[:2])


class _Sampling:
    """What depends on the trajectory alone, and is shared by all slices of a scan.

    Parameters
    ----------
    geometry
        Where the samples lie.
    density
        Area that each sample stands for `(readout, sample)`, where it is known already.
    """

    def __init__(self, geometry: NonCartesian, density: Tensor | None = None) -> None:
        self.geometry = geometry
        self._positions = np.ascontiguousarray(geometry.trajectory.reshape(-1, 2))
        self._known = density
        self.transform = _Transform(self._positions, geometry.matrix)
        self._copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @cached_property
    def near_centre(self) -> NDArray[np.bool_]:
        """Which samples lie where k-space is covered `(readout, sample)`; all where none does."""
        near: NDArray[np.bool_] = np.linalg.norm(self.geometry.trajectory, axis=-1) <= max(
            2.0, max(self.geometry.matrix) / 16
        )
        return near if near.any() else np.ones_like(near)

    @cached_property
    def density(self) -> Tensor:
        """The area that each sample stands for `(readout, sample)`, float64, positive.

        A density that came with the scan may have any unit: near the centre, where k-space is covered, weighted
        samples are to have a density of one.
        """
        if self._known is not None:
            return self._known
        geometry = self.geometry
        if geometry.density is None:
            return torch.from_numpy(density_compensation(geometry.trajectory, geometry.matrix))
        given = np.asarray(geometry.density, dtype=np.float64)
        least, largest = float(given.min()), float(given.max())
        if not (least >= 0 and 0 < largest < math.inf):
            raise BadInput(
                f"the density compensation spans {least:g} to {largest:g}, and must be positive and finite",
                "Leave it out: it is then computed.",
            )
        weights = np.maximum(given / largest, 1e-6)
        density = _Neighbours(self._positions, geometry.matrix).density(weights.ravel()).reshape(weights.shape)
        near = self.near_centre
        return torch.from_numpy(weights * (weights[near].sum() / (weights * density)[near].sum()))

    def thinned(self, kept: NDArray[np.bool_]) -> _Sampling:
        """Return some of the readouts `(readout,)`; what they stand for near the centre grows to that of all."""
        density, near = self.density.numpy(), self.near_centre
        left = float(density[kept][near[kept]].sum())
        scale = float(density[near].sum()) / left if left > 0 else 1.0
        return _Sampling(
            replace(self.geometry, trajectory=self.geometry.trajectory[kept], density=density[kept]),
            torch.from_numpy(scale * density[kept]),
        )

    def on(self, name: str, like: Tensor) -> Tensor:
        """Return the "density", or the spectrum "weighted" by it, on the device and in the precision of `like`."""
        key = (name, like.device, like.real.dtype)
        if key not in self._copies:
            whole = self.density if name == "density" else self._spectrum(self.density)
            self._copies[key] = whole.to(like.device, like.real.dtype)
        return self._copies[key]

    def _spectrum(self, weights: Tensor) -> Tensor:
        """Return the spectrum of F^H W F as a convolution on twice the matrix `(2, 2, ky, kx)`, float64.

        Split into even and odd frequencies, so that it takes transforms of the matrix only.
        """
        rows, columns = self.geometry.matrix
        wide = _Transform(self._positions, (2 * rows, 2 * columns), field=(rows, columns))
        spread = wide.adjoint(weights.reshape(1, -1).to(torch.complex128))[0] / (rows * columns)
        # images of n pixels never meet the offset -n; without it the spectrum is real
        spread[0], spread[:, 0] = 0, 0
        whole: Tensor = torch.fft.fft2(torch.fft.ifftshift(spread)).real / 4
        return whole.reshape(rows, 2, columns, 2).permute(1, 3, 0, 2).contiguous()


class _Scale:
    """What makes the density a weight: the number for which the norm of A^H W A is one, for all slices of a scan.

    Parameters
    ----------
    maps
        Coil sensitivities `(batch, coil, y, x)`; a few slices stand for all.
    sampling
        Where the samples lie.
    """

    def __init__(self, maps: Tensor, sampling: _Sampling) -> None:
        self._maps = maps[:: -(-maps.shape[0] // PROBED_SLICES)].clone()
        self._sampling = sampling

    @cached_property
    def value(self) -> float:
        """The factor of the density."""
        maps = self._maps
        drawn = torch.randn((maps.shape[0], *maps.shape[2:], 2), generator=torch.Generator().manual_seed(0))
        start = torch.view_as_complex(drawn).to(maps.device)
        spectrum = self._sampling.on("weighted", start)
        norm = operator_norm(lambda x: _convolved(x, maps.to(x.dtype), spectrum), start, steps=NORM_STEPS)
        if norm <= 0:
            raise BadInput("the coil maps are zero everywhere")
        return 1 / (NORM_MARGIN * norm)


def _convolved(x: Tensor, maps: Tensor, spectrum: Tensor) -> Tensor:
    """Return the sum over coils of conj(s) T (s x) `(batch, y, x)`, T the convolution with `spectrum (2, 2, ky, kx)`.

    A transform of twice the size, of which half the pixels are zero along each axis, is four transforms of the image,
    turned by half a frequency or not along each axis.

    Parameters
    ----------
    x
        `(batch, y, x)`, complex.
    maps
        `(1 or batch, coil, y, x)`, complex.
    """
    result = torch.zeros_like(x)
    rows, columns = x.shape[1:]
    down, across = (
        torch.polar(torch.ones(size, dtype=x.real.dtype), -math.pi / size * torch.arange(size, dtype=x.real.dtype)).to(
            x.device
        )
        for size in (rows, columns)
    )
    for sample, image in enumerate(x):
        coils = maps[sample if maps.shape[0] > 1 else 0]
        for odd_row in (0, 1):
            for odd_column in (0, 1):
                turn = torch.ones((1, 1), dtype=x.dtype, device=x.device)
                if odd_row:
                    turn = turn * down[:, None]
                if odd_column:
                    turn = turn * across
                kspace = torch.fft.fft2(coils * (image * turn)).mul_(spectrum[odd_row, odd_column])
                result[sample] += turn.conj() * _combined(coils, torch.fft.ifft2(kspace))
    return result


def _combined(maps: Tensor, images: Tensor) -> Tensor:
    """Return the sum over coils of conj(s) x `(..., y, x)` for `(..., coil, y, x)`; may overwrite `images`."""
    combined: Tensor = torch.sum(images.mul_(maps.conj()), dim=-3)
    return combined


class _Normal(LinearOperator):
    """A^H W A as a convolution of twice the size."""

    def __init__(self, physics: NonCartesianPhysics) -> None:
        super().__init__(physics.domain, physics.domain)
        self._physics = physics

    def _forward(self, x: Tensor) -> Tensor:
        maps, spectrum = self._physics._maps(x), self._physics._sampling.on("weighted", x)
        return _convolved(self._physics._weight_scale.value * x, maps, spectrum)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)


class NonCartesianPhysics(UnitPhysics):
    """Multi-coil sampling along readouts of any shape.

    Images are complex `(batch, y, x)`; measurements are complex `(batch, coil, readout, sample)`. The density of the
    samples, where it did not come with the scan, is computed when it is first needed.

    Parameters
    ----------
    maps
        Coil sensitivities `(batch, coil, y, x)`, complex64, with sum over coils of |s|^2 at most one.
    geometry
        Where the samples lie; the same for all slices.

    Raises
    ------
    BadInput
        The maps do not have the matrix of the geometry, or there are no samples.
    """

    complex_image = True
    unit, unit_axis = "readout", 2

    def __init__(self, maps: Tensor, geometry: NonCartesian) -> None:
        if maps.ndim != 4 or tuple(maps.shape[2:]) != tuple(geometry.matrix):
            raise BadInput(f"coil maps {tuple(maps.shape)} do not fit (batch, coil, *{tuple(geometry.matrix)})")
        readouts, samples = geometry.trajectory.shape[:2]
        if readouts * samples == 0:
            raise BadInput(f"a trajectory of {readouts} readouts of {samples} samples holds none")
        super().__init__(tuple(maps.shape[2:]), (int(maps.shape[1]), readouts, samples))
        self.maps = maps
        self.geometry = geometry
        self._sampling = _Sampling(geometry)
        self._weight_scale = _Scale(maps, self._sampling)
        self._scale = 1 / math.sqrt(math.prod(geometry.matrix))

    @property
    def slices(self) -> int:
        """Number of slices with coil maps of their own."""
        return int(self.maps.shape[0])

    @property
    def density(self) -> Tensor:
        """The area of k-space that each sample stands for `(readout, sample)`, float64, in cycles^2 per field^2."""
        return self._sampling.density

    def _maps(self, x: Tensor) -> Tensor:
        maps = self.maps.to(x.dtype)
        if maps.shape[0] not in (1, x.shape[0]):
            raise BadInput(f"a batch of {x.shape[0]} does not fit the coil maps of {maps.shape[0]} slices")
        return maps

    def _forward(self, x: Tensor) -> Tensor:
        images = self._maps(x) * (self._scale * x)[:, None]
        values = self._sampling.transform.forward(images.reshape(-1, *self.domain))
        return values.reshape(x.shape[0], *self.range)

    def _adjoint(self, y: Tensor) -> Tensor:
        batch, coils = y.shape[:2]
        images = self._sampling.transform.adjoint(y.reshape(batch * coils, -1))
        return _combined(self._maps(y), images.reshape(batch, coils, *self.domain)).mul_(self._scale)

    def weight(self, residual: Tensor) -> Tensor:
        """Return the residual times the density of its samples, so scaled that the norm of A^H W A is one.

        The scale is that of all slices of the scan, also where only some of them are selected.
        """
        return residual * (self._weight_scale.value * self._sampling.on("density", residual))

    def analytic(self, y: Tensor) -> Tensor:
        """Return the density-compensated adjoint, coils combined with their maps `(batch, y, x)`, complex.

        Its scale is that of the object: an object that is smooth enough for the sampling comes out as it is.
        """
        return self.adjoint(y * self._sampling.on("density", y))

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H W A x `(batch, y, x)`, without any nonuniform transform.

        Source: J. A. Fessler, S. Lee, V. T. Olafsson, H. R. Shi, D. C. Noll 2005, doi:10.1109/TSP.2005.853152.
        """
        return _Normal(self).forward(x)

    def _with(self, maps: Tensor) -> NonCartesianPhysics:
        physics = copy.copy(self)
        physics.maps = maps
        return physics

    def select(self, slices: Tensor) -> NonCartesianPhysics:
        """Return the physics of a part of the batch."""
        return self if self.maps.shape[0] == 1 else self._with(self.maps[slices])

    def joined(self, others: Sequence[Physics]) -> NonCartesianPhysics:
        """Return the physics with the coil maps of all; the trajectory is that of the scan."""
        maps = [other.maps for other in others if isinstance(other, NonCartesianPhysics)]
        physics = self._with(torch.cat([self.maps, *maps]))
        physics._weight_scale = _Scale(physics.maps, self._sampling)
        return physics

    def to(self, device: torch.device) -> NonCartesianPhysics:
        """Return the physics with its maps on `device`."""
        return self._with(self.maps.to(device))

    def thinned(self, kept: Tensor) -> NonCartesianPhysics:
        """Return the physics of some of the readouts, with their part of the density; `kept (readout,)` bool."""
        chosen = kept.cpu().numpy()
        if not chosen.any():
            raise BadInput(f"none of {chosen.size} readouts is kept")
        physics = self._with(self.maps)
        physics._sampling = self._sampling.thinned(chosen)
        physics.geometry = physics._sampling.geometry
        physics._weight_scale = _Scale(physics.maps, physics._sampling)
        physics.range = (self.range[0], *physics.geometry.trajectory.shape[:2])
        return physics


def shift_field_of_view(
    kspace: Tensor, positions: _Reals, shift_px: tuple[float, float], matrix: tuple[int, int]
) -> Tensor:
    """Return the k-space of the image moved by `shift_px`, of the shape and dtype given.

    An object that lies off the centre by `d` pixels comes to the centre with a shift of `-d`.

    Parameters
    ----------
    kspace
        `(..., *positions)`, complex: any axes before those of the positions.
    positions
        `(..., 2)` along (ky, kx) in cycles per field of view, as of a trajectory or `cartesian_positions`.
    shift_px
        Along (y, x), with the pixels' indices; fractions are allowed.
    matrix
        Rows and columns of the image.

    Raises
    ------
    BadInput
        The positions do not fit the k-space.
    """
    shape = positions.shape[:-1]
    if positions.shape[-1] != 2 or tuple(kspace.shape[kspace.ndim - len(shape) :]) != shape:
        raise BadInput(f"positions of shape {positions.shape} do not fit k-space of shape {tuple(kspace.shape)}")
    turns = positions @ (np.asarray(shift_px, dtype=np.float64) / np.asarray(matrix))
    # whole turns are taken off while all digits are there
    phase = torch.from_numpy(np.exp(-2j * np.pi * (turns - np.round(turns))))
    return kspace * phase.to(kspace.device, kspace.dtype)


def cartesian_positions(matrix: tuple[int, int]) -> _Reals:
    """Return the positions of a Cartesian k-space `(ky, kx, 2)` in cycles per field of view, zero at `n // 2`."""
    down, across = (np.arange(size) - size // 2.0 for size in matrix)
    return np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1)


def radial_trajectory(spokes: int, samples: int, matrix: tuple[int, int] | int, *, golden: bool = False) -> _Reals:
    """Return spokes through the centre of k-space `(readout, sample, 2)` along (ky, kx), cycles per field of view.

    Sample `samples // 2` is the centre. With an even number of samples the first lies at the edge of k-space of the
    matrix, with an odd number the first and the last lie half a sample's distance within it.

    Parameters
    ----------
    spokes
        How many, at equal angles over half a turn, the first along kx.
    samples
        Of a spoke; twice the matrix for the usual twofold oversampling.
    matrix
        Rows and columns of the image; one number for a square.
    golden
        Whether each spoke is turned by the golden angle from the one before instead.

    Raises
    ------
    BadInput
        A number is not positive.
    """
    size = _sides(matrix, spokes=spokes, samples=samples)
    angle = np.arange(spokes) * (GOLDEN_ANGLE_RAD if golden else np.pi / spokes)
    along = (np.arange(samples) - samples // 2) / samples
    direction = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    return np.asarray(along[None, :, None] * direction[:, None] * size)


def spiral_trajectory(
    interleaves: int, samples: int, matrix: tuple[int, int] | int, *, turns: float | None = None
) -> _Reals:
    """Return Archimedean spirals from the centre of k-space to its edge `(readout, sample, 2)`, cycles per field.

    They are gone through at a constant speed.

    Parameters
    ----------
    interleaves
        How many spirals, at equal angles over a turn.
    samples
        Of a spiral.
    matrix
        Rows and columns of the image; one number for a square.
    turns
        Of a spiral; None takes as many as put neighbouring arms one cycle apart.

    Raises
    ------
    BadInput
        A number is not positive.
    """
    size = _sides(matrix, interleaves=interleaves, samples=samples)
    wound = float(size.max()) / 2 / interleaves if turns is None else turns
    if not 0 < wound < math.inf:
        raise BadInput(f"a spiral of {wound:g} turns does not go round")
    angle = np.linspace(0, 2 * np.pi * wound, 16 * samples + 1)
    length = angle * np.sqrt(1 + angle**2) + np.arcsinh(angle)
    along = np.interp(np.linspace(0, length[-1], samples), length, angle)
    radius = along / angle[-1]
    turned = along + 2 * np.pi * np.arange(interleaves)[:, None] / interleaves
    return np.asarray(0.5 * radius[:, None] * np.stack([np.sin(turned), np.cos(turned)], axis=-1) * size)


def calibration_kspace(y: Tensor, geometry: NonCartesian) -> NDArray[np.complex64]:
    """Return the centre of Cartesian k-space `(coil, ky, kx)`, complex64, zero frequency at index `n // 2`.

    As large as the samples cover it, at most 24 x 24: the least-squares fit to the samples of the centre.

    Parameters
    ----------
    y
        Measurements of one slice `(coil, readout, sample)`, complex.
    geometry
        Where the samples lie.

    Raises
    ------
    BadInput
        The measurements do not fit the geometry, or no sample lies in the centre.
    """
    if y.ndim != 3 or tuple(y.shape[1:]) != geometry.trajectory.shape[:2]:
        raise BadInput(f"measurements {tuple(y.shape)} do not fit (coil, *{geometry.trajectory.shape[:2]})")
    rows, columns = (min(size, 2 * MAX_CALIBRATION) for size in geometry.matrix)
    inside = np.all(np.abs(geometry.trajectory) <= np.array([rows, columns]) / 2, axis=-1)
    if not inside.any():
        raise BadInput("no sample lies in the centre of k-space", "Check the unit of the trajectory.")
    central = geometry.trajectory[inside][None]
    distance, _ = cKDTree(central[0]).query(cartesian_positions((rows, columns)))
    height, width = calibration_size(distance <= NEAR)
    small = replace(
        geometry,
        trajectory=central,
        matrix=(rows, columns),
        density=None if geometry.density is None else geometry.density[inside][None],
    )
    physics = NonCartesianPhysics(torch.ones((1, 1, rows, columns), dtype=torch.complex128), small)
    values = y.cpu()[:, torch.from_numpy(inside)].to(torch.complex128)[:, None, None]
    right = physics.adjoint(physics.weight(values))
    fitted = conjugate_gradients(physics.normal, right, tolerance=1e-3, max_steps=CALIBRATION_STEPS).value
    top, left = rows // 2 - height // 2, columns // 2 - width // 2
    kspace = centred_fft(fitted)[:, top : top + height, left : left + width]
    return np.asarray(kspace.to(torch.complex64).numpy())


def noncartesian_maps(y: Tensor, geometry: NonCartesian) -> NDArray[np.complex64]:
    """Return coil sensitivities `(coil, y, x)`, complex64, at the matrix of the image: those of `coils.coil_maps`.

    Parameters
    ----------
    y
        Measurements of one slice `(coil, readout, sample)`, complex.
    geometry
        Where the samples lie.

    Raises
    ------
    BadInput
        The measurements do not fit, or the covered centre of k-space is smaller than 8 x 8 or holds no signal.
    """
    if y.shape[0] == 1:
        return np.ones((1, *geometry.matrix), dtype=np.complex64)
    return coil_maps(*calibration_in_matrix(y, geometry))


def calibration_in_matrix(y: Tensor, geometry: NonCartesian) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Return the centre of Cartesian k-space laid into the matrix of the image `(coil, ky, kx)`, and where it lies.

    Parameters and Raises as `calibration_kspace`.
    """
    rows, columns = geometry.matrix
    centre = calibration_kspace(y, geometry)
    height, width = centre.shape[1:]
    top, left = rows // 2 - height // 2, columns // 2 - width // 2
    kspace = np.zeros((y.shape[0], rows, columns), dtype=np.complex64)
    sampled = np.zeros((rows, columns), dtype=np.bool_)
    kspace[:, top : top + height, left : left + width] = centre
    sampled[top : top + height, left : left + width] = True
    return kspace, sampled


def _sides(matrix: tuple[int, int] | int, **counts: int) -> _Reals:
    sides = (matrix, matrix) if isinstance(matrix, int) else matrix
    for name, count in (*counts.items(), ("rows", sides[0]), ("columns", sides[1])):
        if count < 1:
            raise BadInput(f"{count} {name} are none", "Give a number above zero.")
    return np.asarray(sides, dtype=np.float64)
