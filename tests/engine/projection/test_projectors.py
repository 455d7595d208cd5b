"""Projectors of slices: exact transposes, equal engines, and line integrals that others confirm."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.geometry import FanBeam, ParallelBeam, VectorGeometry
from equipoise_engine.projection.contract import Projector
from equipoise_engine.projection.gather import GatherProjector
from equipoise_engine.projection.joseph import JosephProjector
from equipoise_engine.projection.projector import Footprint, build_projector, estimate_bytes
from equipoise_engine.projection.sparse import SparseProjector
from equipoise_engine.projection.strip import StripProjector

ANGLES = np.linspace(0, 2 * np.pi, 11, endpoint=False) + 0.05
COLUMNS = 29
SHAPE = (19, 26)
PIXEL_MM = 0.9

GEOMETRIES: dict[str, VectorGeometry] = {
    "parallel": ParallelBeam(ANGLES, 0.7, 13.2).vectors(),
    "axes": ParallelBeam(np.arange(4) * np.pi / 2, 0.9, 14.0).vectors(),
    "flat": FanBeam(ANGLES, 40.0, 70.0, 1.3, 15.4).vectors(),
    "wide": FanBeam(ANGLES, 18.0, 30.0, 2.1, 14.0, yaw_rad=0.2).vectors(),
    "curved": FanBeam(ANGLES, 40.0, 70.0, 1.3, 15.4, "curved").vectors(),
}


def every_projector(geometry: VectorGeometry) -> dict[str, Projector]:
    """Return all engines for Joseph's footprint, then all for the strip."""
    return {
        "joseph": JosephProjector(geometry, COLUMNS, SHAPE, PIXEL_MM),
        "joseph sparse": sparse(geometry, "joseph"),
        # small chunks, so that views and rays are cut
        "joseph gather": GatherProjector(
            geometry, COLUMNS, SHAPE, PIXEL_MM, device=torch.device("cpu"), chunk_bytes=2**18
        ),
        "strip": StripProjector(geometry, COLUMNS, SHAPE, PIXEL_MM),
        "strip sparse": sparse(geometry, "strip"),
    }


def sparse(geometry: VectorGeometry, footprint: Footprint) -> SparseProjector:
    return SparseProjector(geometry, COLUMNS, SHAPE, PIXEL_MM, footprint=footprint, device=torch.device("cpu"))


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_adjoint_is_the_exact_transpose(name: str) -> None:
    for projector in every_projector(GEOMETRIES[name]).values():
        x, y = random(5, *projector.shape) - 0.5, random(5, *projector.range) - 0.5
        ax, aty = projector.forward(x), projector.adjoint(y)
        bound = 50 * torch.finfo(torch.float64).eps * math.sqrt(x.numel())
        difference = (ax * y).sum() - (x * aty).sum()
        assert float(difference.abs()) < bound * float(ax.norm() * y.norm())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_engines_agree_to_rounding(name: str) -> None:
    projectors = every_projector(GEOMETRIES[name])
    x, y = random(3, *SHAPE), random(3, len(GEOMETRIES[name].source), COLUMNS)
    for first, others in (("joseph", ("joseph sparse", "joseph gather")), ("strip", ("strip sparse",))):
        ax, aty = projectors[first].forward(x), projectors[first].adjoint(y)
        for other in others:
            torch.testing.assert_close(projectors[other].forward(x), ax, rtol=0, atol=1e-13 * float(ax.max()))
            torch.testing.assert_close(projectors[other].adjoint(y), aty, rtol=0, atol=1e-13 * float(aty.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [JosephProjector, StripProjector])
def test_a_slice_does_not_depend_on_its_batch(kind: Any, dtype: torch.dtype) -> None:
    projector = kind(GEOMETRIES["flat"], COLUMNS, SHAPE, PIXEL_MM)
    x, y = random(11, *SHAPE, dtype=dtype), random(11, *projector.range, dtype=dtype)
    for run, values in ((projector.forward, x), (projector.adjoint, y)):
        together = run(values)
        assert together.dtype == dtype
        for batch in (1, 2, 3, 8, 10):
            assert torch.equal(run(values[:batch]), together[:batch])
        assert torch.equal(run(values[10:]), together[10:])


def test_an_empty_batch_and_scattered_memory_are_taken() -> None:
    for projector in every_projector(GEOMETRIES["flat"]).values():
        assert projector.forward(torch.zeros((0, *SHAPE))).shape == (0, *projector.range)
        assert projector.adjoint(torch.zeros((0, *projector.range))).shape == (0, *SHAPE)
        x = random(SHAPE[1], SHAPE[0], 2).permute(2, 1, 0)
        assert torch.equal(projector.forward(x), projector.forward(x.contiguous()))


def test_single_precision_is_rounded_double_precision() -> None:
    for projector in every_projector(GEOMETRIES["curved"]).values():
        x, y = random(2, *SHAPE), random(2, *projector.range)
        for run, values in ((projector.forward, x), (projector.adjoint, y)):
            expected = run(values)
            torch.testing.assert_close(
                run(values.float()).double(), expected, rtol=0, atol=2e-6 * float(expected.max())
            )


@pytest.mark.parametrize("name", GEOMETRIES)
def test_joseph_interpolates_where_rays_meet_image_lines(name: str) -> None:
    geometry = GEOMETRIES[name]
    image = random(*SHAPE).numpy()
    columns = np.arange(COLUMNS, dtype=float)
    points, directions = geometry.rays(columns, np.zeros(COLUMNS))
    x = (np.arange(SHAPE[1]) - (SHAPE[1] - 1) / 2) * PIXEL_MM
    y = ((SHAPE[0] - 1) / 2 - np.arange(SHAPE[0])) * PIXEL_MM
    wider_x = np.concatenate([[x[0] - PIXEL_MM], x, [x[-1] + PIXEL_MM]])
    wider_y = np.concatenate([[y[-1] - PIXEL_MM], y[::-1], [y[0] + PIXEL_MM]])
    expected = np.zeros((geometry.views, COLUMNS))
    for view in range(geometry.views):
        for column in range(COLUMNS):
            (px, py, _), (dx, dy, _) = points[view, column], directions[view, column]
            if abs(dy) >= abs(dx):
                for row in range(SHAPE[0]):
                    line = np.concatenate([[0.0], image[row], [0.0]])
                    expected[view, column] += np.interp(px + (y[row] - py) / dy * dx, wider_x, line, 0.0, 0.0)
            else:
                for place in range(SHAPE[1]):
                    line = np.concatenate([[0.0], image[::-1, place], [0.0]])
                    expected[view, column] += np.interp(py + (x[place] - px) / dx * dy, wider_y, line, 0.0, 0.0)
            expected[view, column] *= PIXEL_MM / max(abs(dx), abs(dy))
    found = JosephProjector(geometry, COLUMNS, SHAPE, PIXEL_MM).forward(torch.from_numpy(image)[None])[0].numpy()
    assert expected.max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


def test_a_parallel_strip_is_an_area_of_overlap() -> None:
    """The average chord of a pixel over a strip, by many thin rays, is the weight of the pixel."""
    geometry, shape = GEOMETRIES["parallel"], (3, 4)
    matrix = StripProjector(geometry, COLUMNS, shape, PIXEL_MM).forward(
        torch.eye(12, dtype=torch.float64).reshape(12, 3, 4)
    )
    thin = 1000
    fine = (np.arange(COLUMNS * thin) + 0.5) / thin - 0.5
    points, directions = geometry.rays(fine, np.zeros_like(fine))
    for pixel in range(12):
        middle = np.array([pixel % 4 - 1.5, 1.0 - pixel // 4]) * PIXEL_MM
        with np.errstate(divide="ignore"):
            ends = (middle + np.array([[-0.5], [0.5]]) * PIXEL_MM - points[:, :, None, :2]) / directions[:, :, None, :2]
        chord = np.clip(ends.max(axis=2).min(axis=-1) - ends.min(axis=2).max(axis=-1), 0, None)
        average = chord.reshape(geometry.views, COLUMNS, thin).mean(axis=-1)
        np.testing.assert_allclose(matrix[pixel].numpy(), average, rtol=0, atol=2e-6)


def disc(side: int, pixel_mm: float, middle: tuple[float, float], radius: float) -> Tensor:
    """Return a disc of density one, averaged over the pixels, `(1, y, x)`."""
    fine = 8
    axis = ((np.arange(side * fine) + 0.5) / fine - side / 2) * pixel_mm
    inside = (axis[None, :] - middle[0]) ** 2 + (-axis[:, None] - middle[1]) ** 2 <= radius**2
    return torch.from_numpy(inside.reshape(side, fine, side, fine).mean(axis=(1, 3)))[None]


@pytest.mark.parametrize("footprint", ["joseph", "strip"])
@pytest.mark.parametrize("name", ["parallel", "flat", "curved", "wide"])
def test_a_disc_gives_its_chords(name: str, footprint: Footprint) -> None:
    geometry, middle, radius = GEOMETRIES[name], np.array([1.3, -2.1]), 5.2
    rays = 16 if footprint == "strip" else 1
    fine = (np.arange(COLUMNS * rays) + 0.5) / rays - 0.5
    points, directions = geometry.rays(fine, np.zeros_like(fine))
    away = middle - points[..., :2]
    distance = away[..., 0] * directions[..., 1] - away[..., 1] * directions[..., 0]
    chord = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None)).reshape(geometry.views, COLUMNS, rays).mean(-1)
    errors = []
    for side in (24, 48, 96, 192):
        pixel_mm = 19.2 / side
        projector = build_projector(
            geometry, COLUMNS, (side, side), pixel_mm, footprint=footprint, engine="matrix-free"
        )
        found = projector.forward(disc(side, pixel_mm, (1.3, -2.1), radius))[0].numpy()
        errors.append(np.linalg.norm(found - chord) / np.linalg.norm(chord))
    # the edge of the disc is blurred by a pixel: an element that averages sees less of that than a ray
    fall, bound = (2.0, 1e-3) if footprint == "strip" else (1.5, 7e-3)
    assert errors[0] > fall * errors[1] > fall**2 * errors[2] > fall**3 * errors[3]
    assert errors[3] < bound


def test_the_far_fan_is_a_parallel_beam() -> None:
    far = FanBeam(ANGLES, 1e7, 1e7 + 1, 0.7, 13.2).vectors()
    x = random(2, *SHAPE)
    for footprint in ("joseph", "strip"):
        fan, parallel = (
            build_projector(beam, COLUMNS, SHAPE, PIXEL_MM, footprint=footprint, engine="matrix-free").forward(x)
            for beam in (far, GEOMETRIES["parallel"])
        )
        torch.testing.assert_close(fan, parallel, rtol=0, atol=1e-4)


def test_nothing_behind_the_source_is_seen() -> None:
    """The source stands within the image, straight below its middle."""
    geometry = FanBeam(np.zeros(1), 8.0, 30.0, 2.0, 10.0).vectors()
    seen = JosephProjector(geometry, 21, (31, 31), 1.0).adjoint(torch.ones((1, 1, 21), dtype=torch.float64))[0]
    assert float(seen[24:].abs().max()) == 0
    assert float(seen[:22, 15].min()) > 0


def test_threads_do_not_change_the_sums() -> None:
    projector = JosephProjector(GEOMETRIES["flat"], COLUMNS, (40, 40), PIXEL_MM)
    y = random(8, *projector.range, dtype=torch.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(projector.adjoint(y))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize(("footprint", "kind", "bound"), [("joseph", "linear", 1e-5), ("strip", "strip", 1e-5)])
def test_parallel_beams_agree_with_astra(footprint: Footprint, kind: str, bound: float) -> None:
    astra = pytest.importorskip("astra")
    # at a multiple of 90 degrees rays run along pixel edges, which belong to either side
    angles = np.linspace(0, np.pi, 24, endpoint=False) + 0.01
    beam = astra.create_proj_geom("parallel", 0.8, 70, angles)
    geometry = ParallelBeam(angles, 0.8, 34.5).vectors()
    compare_with_astra(astra, beam, kind, build_projector(geometry, 70, (40, 56), 1.0, footprint=footprint), bound)


@pytest.mark.parametrize(
    ("footprint", "kind", "bound"), [("joseph", "line_fanflat", 6e-2), ("strip", "strip_fanflat", 2e-3)]
)
def test_fan_beams_agree_with_astra(footprint: Footprint, kind: str, bound: float) -> None:
    """ASTRA has no interpolating fan on the CPU: its lines are cut into pixels, which back-projects a pattern."""
    astra = pytest.importorskip("astra")
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False) + 0.01
    beam = astra.create_proj_geom("fanflat", 1.1, 70, angles, 90.0, 60.0)
    geometry = FanBeam(angles, 90.0, 150.0, 1.1, 34.5).vectors()
    compare_with_astra(astra, beam, kind, build_projector(geometry, 70, (40, 56), 1.0, footprint=footprint), bound)


def compare_with_astra(astra: Any, beam: Any, kind: str, projector: Projector, bound: float) -> None:
    """Compare on a smooth image, and back from a smooth sinogram."""
    grid = astra.create_vol_geom(*projector.shape)
    identity = astra.create_projector(kind, beam, grid)
    try:
        theirs = astra.OpTomo(identity)
        rows, columns = (np.arange(side) - (side - 1) / 2 for side in projector.shape)
        image = np.exp(-((columns - 6) ** 2 / 90 + (rows[:, None] + 3) ** 2 / 50)).astype(np.float32)
        sums = torch.from_numpy(theirs.FP(image).astype(np.float64))
        mine = projector.forward(torch.from_numpy(image)[None].double())[0]
        assert float((mine - sums).norm() / sums.norm()) < bound
        back = torch.from_numpy(theirs.BP(sums.numpy().astype(np.float32)).astype(np.float64))
        mine = projector.adjoint(sums[None])[0]
        assert float((mine - back).norm() / back.norm()) < bound
    finally:
        astra.projector.delete(identity)


def test_the_engine_is_chosen_by_footprint_and_memory() -> None:
    def chosen(
        engine: Literal["auto", "sparse", "matrix-free"], footprint: Footprint, budget: int | None = None
    ) -> str:
        made = build_projector(
            GEOMETRIES["flat"], COLUMNS, SHAPE, PIXEL_MM, footprint=footprint, engine=engine, budget_bytes=budget
        )
        return made.engine

    assert chosen("auto", "joseph") == "matrix-free"
    assert chosen("auto", "strip") == "sparse"
    assert chosen("auto", "strip", 1000) == "matrix-free"
    assert chosen("sparse", "joseph") == "sparse"
    assert chosen("matrix-free", "strip") == "matrix-free"
    with pytest.raises(BadInput, match=r"take about .* MiB; 0 MiB are allowed"):
        chosen("sparse", "joseph", 1000)
    with pytest.raises(Unsupported, match="sparse matrices"):
        build_projector(
            GEOMETRIES["flat"],
            COLUMNS,
            SHAPE,
            PIXEL_MM,
            footprint="strip",
            engine="matrix-free",
            device=torch.device("meta"),
        )


@pytest.mark.parametrize("footprint", ["joseph", "strip"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_memory_of_matrices_is_known_beforehand(name: str, footprint: Footprint) -> None:
    projector = sparse(GEOMETRIES[name], footprint)
    assert projector.bytes == 0
    projector.forward(torch.zeros((1, *SHAPE)))
    estimate = estimate_bytes(GEOMETRIES[name], COLUMNS, SHAPE, PIXEL_MM, footprint=footprint)
    assert 0.97 * projector.bytes < estimate < 1.2 * projector.bytes


def test_bad_input_is_refused() -> None:
    for projector in every_projector(GEOMETRIES["flat"]).values():
        with pytest.raises(BadInput, match="an image of shape"):
            projector.forward(torch.zeros((1, SHAPE[1], SHAPE[0])))
        with pytest.raises(BadInput, match="a sinogram of shape"):
            projector.adjoint(torch.zeros(projector.range))
        with pytest.raises(BadInput, match="neither float32 nor float64"):
            projector.forward(torch.zeros((1, *SHAPE), dtype=torch.float16))
    with pytest.raises(BadInput, match="at least 1"):
        build_projector(GEOMETRIES["flat"], 0, SHAPE, PIXEL_MM)
    with pytest.raises(BadInput, match="not a length above zero"):
        build_projector(GEOMETRIES["flat"], COLUMNS, SHAPE, 0.0)
    with pytest.raises(BadInput, match="unknown footprint"):
        build_projector(GEOMETRIES["flat"], COLUMNS, SHAPE, PIXEL_MM, footprint="cubic")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="unknown engine"):
        build_projector(GEOMETRIES["flat"], COLUMNS, SHAPE, PIXEL_MM, engine="gpu")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="the source lies within the image"):
        build_projector(GEOMETRIES["flat"], COLUMNS, (200, 200), PIXEL_MM, footprint="strip")
    upright = VectorGeometry(
        *(np.tile(v, (1, 1)) for v in ([[0, 0, 1.0]], [[0, 0, 0.0]], [[1.0, 0, 0]], [[0, 1.0, 0]])), (0.0, 0.0), True
    )
    with pytest.raises(BadInput, match="no direction within the plane"):
        build_projector(upright, COLUMNS, SHAPE, PIXEL_MM)
