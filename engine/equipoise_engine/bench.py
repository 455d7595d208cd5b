"""How quick the operators are on this machine, beside other programs that happen to be installed.

All rows of a table are measured in one run; ratios between them hold where absolute figures do not. The last column is
the least time that moving the data takes at the memory bandwidth of the machine: image and measurements once, and,
where a matrix is stored, its entries once.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import finufft
import numpy as np
import torch
from torch import Tensor

from equipoise_engine.ct import TomographyPhysics
from equipoise_engine.errors import BadInput, EquipoiseError
from equipoise_engine.geometry import FanBeam, NonCartesian, ParallelBeam
from equipoise_engine.noncartesian import SINGLE, NonCartesianPhysics, radial_trajectory, spiral_trajectory
from equipoise_engine.projection.projector import Engine

SIZES = ((256, 60), (512, 180), (1024, 720))
"""Sides of the image and numbers of views."""
BATCHES = (1, 8, 32)
ENGINES: tuple[Engine, ...] = ("matrix-free", "sparse")
ENOUGH_S = 10.0
"""A map is not called again after so much time."""
LOOPED = 2
"""Slices that an implementation is timed on that works on one after the other."""

_Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Parameters
    ----------
    operator, implementation
        What was computed, and by what.
    size, views, batch
        Side of the image, number of views or spokes, number of slices.
    device
        "cpu" or "cuda".
    forward_ms, adjoint_ms
        Median time for the whole batch; None where there is no such map.
    adjoint_error
        |<A x, y> - <x, A^H y>| / (||A x|| ||y||) in the precision that is timed; None where it was not measured.
    bound_ms
        Least time for moving the data of one of the two.
    """

    operator: str
    implementation: str
    size: int
    views: int
    batch: int
    device: str
    forward_ms: float | None
    adjoint_ms: float | None
    adjoint_error: float | None
    bound_ms: float


@dataclass(frozen=True)
class Contender:
    """One implementation of an operator, as a pair of maps and the shapes that they take without the batch.

    Parameters
    ----------
    operator, implementation
        As of a row.
    forward, adjoint
        Maps of a batch; None where there is no such map.
    image, data
        Shapes of one sample.
    complex_values
        Whether images and data are complex.
    stored_bytes
        Of a stored matrix, read in each of the two.
    looped
        Whether slices are worked on one after the other: a few are timed, and stand for the batch.
    """

    operator: str
    implementation: str
    forward: _Map | None
    adjoint: _Map | None
    image: tuple[int, ...]
    data: tuple[int, ...]
    complex_values: bool = False
    stored_bytes: int = 0
    looped: bool = False


def bench_operators(
    sizes: Iterable[tuple[int, int]], batches: Iterable[int], device: torch.device, repeats: int = 5
) -> Iterator[Row]:
    """Measure all operators and yield a row as soon as it is known.

    Raises
    ------
    BadInput
        A size, a number of views, a batch or the number of repeats is below one.
    """
    pairs, chosen = tuple(sizes), tuple(batches)
    for size, views in pairs:
        if min(size, views, repeats, *chosen) < 1:
            raise BadInput(f"size {size}, {views} views, batches {chosen} and {repeats} repeats must all be at least 1")
    return _rows(pairs, chosen, device, repeats)


def _rows(
    sizes: tuple[tuple[int, int], ...], batches: tuple[int, ...], device: torch.device, repeats: int
) -> Iterator[Row]:
    bandwidth = memory_bandwidth(device)
    for size, views in sizes:
        for contender in _contenders(size, views, device):
            for batch in batches:
                yield _measured(contender, (size, views, batch), device, bandwidth, repeats)


def memory_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy of a large array reads and writes."""
    source = torch.ones(1 << 25, device=device)
    target = torch.empty_like(source)
    seconds = min(_seconds(lambda: target.copy_(source), device) for _ in range(5))
    return 2 * source.numel() * source.element_size() / seconds


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a table for people."""
    yield (
        f"{'operator':<18}{'implementation':<22}{'size/views':>11}{'batch':>6}  {'device':<6}"
        f"{'forward ms':>12}{'adjoint ms':>12}{'adjoint error':>15}{'bound ms':>10}"
    )
    for row in rows:
        yield (
            f"{row.operator:<18}{row.implementation:<22}{f'{row.size}/{row.views}':>11}{row.batch:>6}  "
            f"{row.device:<6}{_figure(row.forward_ms):>12}{_figure(row.adjoint_ms):>12}"
            f"{'-' if row.adjoint_error is None else f'{row.adjoint_error:.1e}':>15}{row.bound_ms:>10.3g}"
        )
    yield "bound: moving image and measurements once, and a stored matrix, at the bandwidth of this memory"


def _contenders(size: int, views: int, device: torch.device) -> Iterator[Contender]:
    angles = np.linspace(0, np.pi, views, endpoint=False)
    parallel = ParallelBeam(angles, 1.0, (size - 1) / 2)
    fan = FanBeam(2 * angles, 3.0 * size, 4.5 * size, 1.5, (size - 1) / 2)
    for name, geometry in (("joseph parallel", parallel), ("joseph fan", fan)):
        for engine in ENGINES:
            physics = TomographyPhysics(geometry, size, size, engine=engine)
            yield from _own(name, physics, device, gradient=engine == "matrix-free")
    yield from _own("strip parallel", TomographyPhysics(parallel, size, size, footprint="strip"), device)
    for name, geometry in (("fbp parallel", parallel), ("fbp fan", fan)):
        physics = TomographyPhysics(geometry, size, size)
        # from measurements to an image: what takes the time stands in the column of the adjoint
        yield Contender(name, "equipoise", None, physics.fbp, physics.domain, physics.range)
    if device.type == "cpu":
        yield from _astra(parallel, fan, size)
        yield from _skimage(angles, size)
    yield from _deepinv(angles, size, device)
    yield from _fourier(size, views, device)


def _own(name: str, physics: TomographyPhysics, device: torch.device, *, gradient: bool = False) -> Iterator[Contender]:
    try:
        projector = physics.projector(device)
    except EquipoiseError:
        # the matrix does not fit into memory: the other engine is what would be used
        return
    stored = projector.bytes // 2 if projector.engine == "sparse" else 0
    label = f"equipoise {projector.engine}"
    shapes = (physics.domain, physics.range)
    yield Contender(name, label, projector.forward, projector.adjoint, *shapes, stored_bytes=stored)
    if gradient:

        def through(x: Tensor) -> Tensor:
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(0.5 * torch.sum(physics(x) ** 2), x)
            return slope

        yield Contender(name.replace("joseph", "gradient"), label, through, None, *shapes)


def _astra(parallel: ParallelBeam, fan: FanBeam, size: int) -> Iterator[Contender]:
    if find_spec("astra") is None:
        return
    import astra

    grid = astra.create_vol_geom(size, size)
    straight = astra.create_proj_geom("parallel", 1.0, size, parallel.angle_rad)
    beyond = fan.source_detector_mm - fan.source_axis_mm
    spread = astra.create_proj_geom("fanflat", fan.pixel_mm, size, fan.angle_rad, fan.source_axis_mm, beyond)
    for name, beam, kind in (
        ("joseph parallel", straight, "linear"),
        ("strip parallel", straight, "strip"),
        ("line fan", spread, "line_fanflat"),
    ):
        projector = astra.OpTomo(astra.create_projector(kind, beam, grid))

        def forward(x: Tensor, projector: Any = projector) -> Tensor:
            return torch.from_numpy(np.stack([projector.FP(one) for one in x.numpy()]))

        def adjoint(y: Tensor, projector: Any = projector) -> Tensor:
            return torch.from_numpy(np.stack([projector.BP(one) for one in y.numpy()]))

        data = (parallel.angle_rad.size, size)
        yield Contender(name, "astra", forward, adjoint, (size, size), data, looped=True)


def _skimage(angles: np.ndarray[Any, np.dtype[np.float64]], size: int) -> Iterator[Contender]:
    transform: Any = importlib.import_module("skimage.transform")
    degrees = np.degrees(angles)
    # it warns of values outside the disc that it projects
    axis = np.arange(size) - size // 2
    disc = torch.from_numpy(axis[:, None] ** 2 + axis[None, :] ** 2 <= (size // 2) ** 2)

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([transform.radon(one, degrees, circle=True) for one in (x * disc).numpy()]))

    def direct(y: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([transform.iradon(one.T, degrees, circle=True) for one in y.numpy()]))

    shapes = ((size, size), (angles.size, size))
    yield Contender("rotation parallel", "scikit-image", forward, None, *shapes, looped=True)
    yield Contender("fbp parallel", "scikit-image", None, direct, *shapes, looped=True)


def _deepinv(angles: np.ndarray[Any, np.dtype[np.float64]], size: int, device: torch.device) -> Iterator[Contender]:
    if find_spec("deepinv") is None:
        return
    import deepinv

    degrees = torch.from_numpy(np.degrees(angles)).float()
    physics = deepinv.physics.Tomography(angles=degrees, img_width=size, circle=True, device=device)
    data = tuple(physics.A(torch.zeros((1, 1, size, size), device=device)).shape[1:])
    yield Contender(
        "rotation parallel",
        "deepinv",
        lambda x: physics.A(x[:, None]),
        lambda y: physics.A_adjoint(y)[:, 0],
        (size, size),
        data,
    )


def _fourier(size: int, readouts: int, device: torch.device) -> Iterator[Contender]:
    """One coil of sensitivity one: the number of transforms is that of the slices."""
    for name, trajectory in (
        ("nufft radial", radial_trajectory(readouts, size, size)),
        ("nufft spiral", spiral_trajectory(readouts, size, size)),
    ):
        geometry = NonCartesian(trajectory, (size, size), (float(size), float(size)))
        physics = NonCartesianPhysics(torch.ones((1, 1, size, size), dtype=torch.complex64, device=device), geometry)
        maps = (physics._forward, physics._adjoint)
        yield Contender(name, "equipoise", *maps, physics.domain, physics.range, complex_values=True)
        if device.type == "cpu":
            yield _finufft(name, trajectory, size)


def _finufft(name: str, trajectory: np.ndarray[Any, np.dtype[np.float64]], size: int) -> Contender:
    points = [
        np.ascontiguousarray((2 * np.pi / size * trajectory[..., axis]).ravel().astype(np.float32)) for axis in (0, 1)
    ]
    samples = points[0].size
    settings = {"eps": SINGLE.tolerance, "upsampfac": SINGLE.oversampling, "nthreads": torch.get_num_threads()}

    @cache
    def plan(kind: int, batch: int) -> Any:
        made = finufft.Plan(kind, (size, size), batch, dtype="complex64", isign=1 if kind == 1 else -1, **settings)
        made.setpts(*points)
        return made

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(
            plan(2, x.shape[0]).execute(np.squeeze(x.numpy(), axis=0) if len(x) == 1 else x.numpy())
        )

    def adjoint(y: Tensor) -> Tensor:
        return torch.from_numpy(
            plan(1, y.shape[0]).execute(np.squeeze(y.numpy(), axis=0) if len(y) == 1 else y.numpy())
        )

    return Contender(name, "finufft", forward, adjoint, (size, size), (samples,), complex_values=True)


def _measured(
    contender: Contender, numbers: tuple[int, int, int], device: torch.device, bandwidth: float, repeats: int
) -> Row:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.complex64 if contender.complex_values else torch.float32
    batch = numbers[2]
    timed = min(batch, LOOPED) if contender.looped else batch
    x = torch.randn((timed, *contender.image), generator=generator, dtype=dtype).to(device)
    y = torch.randn((timed, *contender.data), generator=generator, dtype=dtype).to(device)
    share = batch / timed
    forward = None if contender.forward is None else _median_ms(contender.forward, x, device, repeats)
    adjoint = None if contender.adjoint is None else _median_ms(contender.adjoint, y, device, repeats)
    error = None
    if contender.forward is not None and contender.adjoint is not None:
        error = _adjoint_error(contender.forward, contender.adjoint, x, y)
    moved = batch * (math.prod(contender.image) + math.prod(contender.data)) * x.element_size()
    return Row(
        contender.operator,
        contender.implementation,
        *numbers,
        device.type,
        None if forward is None else share * forward,
        None if adjoint is None else share * adjoint,
        error,
        1000 * (moved + contender.stored_bytes) / bandwidth,
    )


def _median_ms(apply: _Map, value: Tensor, device: torch.device, repeats: int) -> float:
    """Return the median time after a first call, which may compile; slow maps are called less often."""
    first = _seconds(lambda: apply(value), device)
    taken: list[float] = []
    while len(taken) < repeats and first + sum(taken) < ENOUGH_S:
        taken.append(_seconds(lambda: apply(value), device))
    return 1000 * statistics.median(taken or [first])


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _adjoint_error(forward: _Map, adjoint: _Map, x: Tensor, y: Tensor) -> float:
    wide = torch.complex128 if x.is_complex() else torch.float64
    ax, ahy = forward(x).detach().to(wide), adjoint(y).detach().to(wide)
    left, right = torch.sum(ax * y.to(wide).conj()), torch.sum(x.detach().to(wide) * ahy.conj())
    return float(torch.abs(left - right) / (torch.linalg.vector_norm(ax) * torch.linalg.vector_norm(y.to(wide))))


def _figure(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
