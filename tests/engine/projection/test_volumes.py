"""Projection of volumes against samples taken one by one, against chords of a ball, and against its own transpose."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from equipoise_engine.errors import BadInput
from equipoise_engine.geometry import ConeBeam, FanBeam, ParallelBeam, VectorGeometry
from equipoise_engine.projection.volumes import VolumeProjector

ANGLES = np.linspace(0, 2 * np.pi, 7, endpoint=False) + 0.05


def cone(angle_rad: np.ndarray = ANGLES, **changed: object) -> VectorGeometry:
    settings: dict[str, object] = {
        "source_axis_mm": 40.0,
        "source_detector_mm": 70.0,
        "pixel_mm": 2.0,
        "row_mm": 1.8,
        "middle_px": 5.5,
        "centre_px": 7.5,
    }
    return ConeBeam(angle_rad, **(settings | changed)).vectors()  # type: ignore[arg-type]


def turn(axis: int, angle: float) -> np.ndarray:
    """Rotation about an axis."""
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
    return np.roll(matrix, (axis + 1, axis + 1), (0, 1))


SCANS = {
    "cone": cone(),
    "cone, tilted": cone(roll_rad=0.05, pitch_rad=-0.1, yaw_rad=0.08),
    "cone, off the middle": cone(centre_px=4.2, middle_px=2.7),
    "cone, shifted": cone().moved(np.eye(3), np.array([1.3, -0.7, 2.1])),
    "cone, wide": cone(source_axis_mm=14.0, source_detector_mm=20.0),
    "cone, wandering": cone().moved(turn(0, 0.8), np.random.default_rng(0).normal(size=(7, 3))),
    "parallel": replace(ParallelBeam(ANGLES, 1.1, 7.2).vectors(), reference_px=(5.5, 7.2)),
    "parallel, lying": replace(ParallelBeam(ANGLES, 1.1, 7.2).vectors(), reference_px=(5.5, 7.2)).moved(
        turn(1, 1.2), np.array([0.0, 0.4, -0.3])
    ),
    "curved fan": replace(FanBeam(ANGLES, 40.0, 70.0, 2.0, 7.4, "curved").vectors(), reference_px=(5.5, 7.4)),
    "single view": cone(ANGLES[:1]),
}
DETECTOR, SHAPE, VOXEL = (12, 16), (9, 14, 11), 1.2


@pytest.fixture(params=SCANS, name="geometry")
def _geometry(request: pytest.FixtureRequest) -> VectorGeometry:
    return SCANS[request.param]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def elements(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of every detector element `(row * column,)`."""
    row, column = np.meshgrid(np.arange(rows, dtype=float), np.arange(columns, dtype=float), indexing="ij")
    return column.ravel(), row.ravel()


def sampled(volume: np.ndarray, geometry: VectorGeometry, sides: np.ndarray) -> np.ndarray:
    """Sums of samples in the planes across each ray's main axis `(view, row * column)`, from the rays themselves."""
    points, directions = geometry.rays(*elements(*DETECTOR))
    size = np.array(volume.shape[::-1])
    flip = np.array([1.0, -1.0, 1.0]) / sides
    points, directions = points * flip + (size - 1) / 2, directions * flip
    total = np.zeros(points.shape[:2])
    main = np.abs(directions).argmax(axis=-1)
    for axis in range(3):
        ahead = np.where(main == axis, directions[..., axis], 1.0)[..., None]
        for plane in range(size[axis]):
            crossing = points + (plane - points[..., axis : axis + 1]) / ahead * directions
            crossing[..., axis] = plane
            values = map_coordinates(volume, crossing[..., ::-1].reshape(-1, 3).T, order=1, mode="grid-constant")
            length = np.linalg.norm(directions * sides, axis=-1) / np.abs(ahead[..., 0])
            total += np.where(main == axis, values.reshape(total.shape) * length, 0.0)
    return total


@pytest.mark.parametrize("slice_mm", [None, 0.7])
def test_a_projection_is_the_sum_of_samples_along_each_ray(geometry: VectorGeometry, slice_mm: float | None) -> None:
    projector = VolumeProjector(geometry, DETECTOR, SHAPE, VOXEL, slice_mm=slice_mm)
    volume = draw(1, *SHAPE)
    sides = np.array([VOXEL, VOXEL, slice_mm or VOXEL])
    expected = sampled(volume[0].numpy(), geometry, sides).reshape(geometry.views, *DETECTOR)
    np.testing.assert_allclose(projector.forward(volume)[0].numpy(), expected, rtol=1e-11, atol=1e-11)
    assert np.linalg.norm(expected) > 10


def test_the_scans_use_every_main_axis_and_both_ways_of_computing() -> None:
    ways = {name: VolumeProjector(scan, DETECTOR, SHAPE, VOXEL)._upright for name, scan in SCANS.items()}
    assert all(ways[name] for name in ("cone", "parallel", "curved fan"))
    assert not ways["cone, tilted"]
    _, directions = SCANS["cone, wandering"].rays(*elements(*DETECTOR))
    assert set(np.abs(directions).argmax(axis=-1).ravel()) == {0, 1, 2}


def test_the_adjoint_is_the_transpose(geometry: VectorGeometry) -> None:
    projector = VolumeProjector(geometry, DETECTOR, SHAPE, VOXEL)
    x, y = draw(2, *SHAPE), draw(2, *projector.range, seed=1)
    ax, aty = projector.forward(x), projector.adjoint(y)
    error = abs(float(torch.sum(ax * y) - torch.sum(x * aty))) / float(ax.norm() * y.norm())
    assert error < 50 * np.finfo(np.float64).eps * math.sqrt(x.numel() + y.numel())


@pytest.mark.parametrize("name", ["cone", "cone, wandering"])
def test_the_adjoint_is_the_transpose_entry_by_entry(name: str) -> None:
    geometry = SCANS[name].select(np.arange(7) < 2)
    projector = VolumeProjector(geometry, (4, 5), (4, 5, 3), 2.5)
    matrix = projector.forward(torch.eye(60, dtype=torch.float64).reshape(60, 4, 5, 3)).reshape(60, 40)
    transpose = projector.adjoint(torch.eye(40, dtype=torch.float64).reshape(40, 2, 4, 5)).reshape(40, 60)
    torch.testing.assert_close(transpose, matrix.T, rtol=1e-12, atol=1e-13)
    assert float(matrix.abs().sum()) > 10


@pytest.mark.parametrize("name", ["cone", "cone, tilted", "cone, wandering"])
def test_neither_batch_nor_threads_change_a_bit(name: str) -> None:
    projector = VolumeProjector(SCANS[name], DETECTOR, SHAPE, VOXEL)
    x, y = draw(3, *SHAPE).float(), draw(3, *projector.range).float()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = projector.forward(x[1:2]), projector.adjoint(y[1:2])
        torch.set_num_threads(2)
        together = projector.forward(x), projector.adjoint(y)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0][0], together[0][1])
    assert torch.equal(alone[1][0], together[1][1])


def test_single_precision_is_double_rounded(geometry: VectorGeometry) -> None:
    projector = VolumeProjector(geometry, DETECTOR, SHAPE, VOXEL)
    x, y = draw(1, *SHAPE), draw(1, *projector.range)
    assert projector.forward(x.float()).dtype == projector.adjoint(y.float()).dtype == torch.float32
    torch.testing.assert_close(projector.forward(x.float()).double(), projector.forward(x), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(projector.adjoint(y.float()).double(), projector.adjoint(y), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("axis", "axes"), [(2, (-2, -1)), (0, (-3, -2)), (1, (-3, -1))], ids=["about z", "about x", "about y"]
)
def test_turning_volume_and_scanner_together_changes_nothing(
    geometry: VectorGeometry, axis: int, axes: tuple[int, int]
) -> None:
    cube = draw(1, 10, 10, 10)
    plain = VolumeProjector(geometry, DETECTOR, (10, 10, 10), VOXEL).forward(cube)
    turned = geometry.moved(turn(axis, math.pi / 2), np.zeros(3))
    object_turned = torch.rot90(cube, 1, axes)
    moved = VolumeProjector(turned, DETECTOR, (10, 10, 10), VOXEL).forward(object_turned)
    torch.testing.assert_close(moved, plain, rtol=1e-10, atol=1e-10)


def ball(side: int, voxel: float, centre: tuple[float, float, float], radius: float) -> torch.Tensor:
    """A ball `(1, z, y, x)` whose surface voxels hold the share that lies inside."""
    fine = 3
    axis = (np.arange(side * fine) - (side * fine - 1) / 2) * voxel / fine
    z, y, x = axis[:, None, None] - centre[2], -axis[:, None] - centre[1], axis - centre[0]
    inside = (x**2 + y**2 + z**2 <= radius**2).astype(np.float64)
    return torch.from_numpy(inside.reshape(side, fine, side, fine, side, fine).mean((1, 3, 5)))[None]


@pytest.mark.parametrize("name", ["cone", "cone, tilted", "cone, shifted", "parallel, lying", "curved fan"])
def test_projection_of_a_ball_is_its_chord_and_converges(name: str) -> None:
    geometry, centre, radius = SCANS[name], (1.0, -2.0, 0.8), 4.0
    points, directions = geometry.rays(*elements(*DETECTOR))
    distance = np.linalg.norm(np.cross(np.array(centre) - points, directions), axis=-1)
    exact = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    errors = []
    for side in (12, 24, 48):
        voxel = 14.0 / side
        projector = VolumeProjector(geometry, DETECTOR, (side, side, side), voxel)
        values = projector.forward(ball(side, voxel, centre, radius))[0].numpy().reshape(exact.shape)
        errors.append(np.linalg.norm(values - exact) / np.linalg.norm(exact))
    assert errors[-1] < 0.035
    assert errors[0] > 1.6 * errors[1] > 2.56 * errors[2]
    assert values.sum() == pytest.approx(exact.sum(), rel=2e-3)


def test_the_middle_row_sees_a_disc_as_a_fan_does() -> None:
    geometry = cone(row_mm=0.05, middle_px=1.0)
    side, voxel, radius = 64, 14.0 / 64, 4.0
    axis = (np.arange(side * 4) - (side * 4 - 1) / 2) * voxel / 4
    inside = ((axis - 1.0) ** 2 + (-axis[:, None] + 2.0) ** 2 <= radius**2).astype(np.float64)
    disc = torch.from_numpy(inside.reshape(side, 4, side, 4).mean((1, 3))).expand(1, 5, side, side)
    seen = VolumeProjector(geometry, (3, 16), (5, side, side), voxel).forward(disc)[0, :, 1].numpy()
    fan = FanBeam(ANGLES, 40.0, 70.0, 2.0, 7.5).vectors()
    points, directions = fan.rays(np.arange(16.0), np.zeros(16))
    distance = np.linalg.norm(np.cross(np.array([1.0, -2.0, 0.0]) - points, directions), axis=-1)
    exact = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    assert np.linalg.norm(seen - exact) < 0.01 * np.linalg.norm(exact)


def test_a_ray_along_the_grid_adds_up_its_voxels() -> None:
    geometry = replace(ParallelBeam(np.array([0.0, np.pi / 2]), 1.0, 2.0).vectors(), reference_px=(1.0, 2.0))
    volume = draw(1, 3, 5, 5)
    seen = VolumeProjector(geometry, (3, 5), (3, 5, 5), 1.0).forward(volume)[0]
    torch.testing.assert_close(seen[0], volume[0].sum(1))
    # at a quarter turn, columns grow with y
    torch.testing.assert_close(seen[1], volume[0].sum(2).flip(1))


def test_rays_that_miss_the_volume_see_nothing() -> None:
    projector = VolumeProjector(cone().moved(np.eye(3), np.array([0.0, 0.0, 90.0])), DETECTOR, SHAPE, VOXEL)
    assert float(projector.forward(torch.ones((1, *SHAPE))).abs().max()) == 0.0
    assert float(projector.adjoint(torch.ones((1, *projector.range))).abs().max()) == 0.0


def test_wrong_shapes_and_sizes_are_refused(geometry: VectorGeometry) -> None:
    projector = VolumeProjector(geometry, DETECTOR, SHAPE, VOXEL)
    with pytest.raises(BadInput, match="does not fit"):
        projector.forward(torch.zeros((1, 9, 14, 12)))
    with pytest.raises(BadInput, match="does not fit"):
        projector.adjoint(torch.zeros((1, geometry.views, 16, 12)))
    with pytest.raises(BadInput, match="needs one at least"):
        VolumeProjector(geometry, (0, 3), SHAPE, VOXEL)
    with pytest.raises(BadInput, match="voxel of -1 mm"):
        VolumeProjector(geometry, DETECTOR, SHAPE, -1.0)


def test_astra_projects_the_same() -> None:
    astra = pytest.importorskip("astra")
    if not astra.use_cuda():
        pytest.skip("ASTRA projects volumes on a GPU only")
    side, rows, columns = 48, 40, 52
    geometry = cone(np.linspace(0, 2 * np.pi, 9), pixel_mm=0.6, row_mm=0.5, middle_px=19.5, centre_px=26.0)
    middle = geometry.detector + (columns / 2 - 0.5 - 26.0) * geometry.column_step
    vectors = np.concatenate([geometry.source, middle, geometry.column_step, geometry.row_step], axis=1)
    volume = ball(side, 0.25, (1.0, -2.0, 0.8), 3.0)
    # ASTRA's volumes have rows that grow with y
    flipped = np.ascontiguousarray(volume[0].flip(1).numpy(), dtype=np.float32)
    half = side * 0.25 / 2
    grid = astra.create_vol_geom(side, side, side, -half, half, -half, half, -half, half)
    detector = astra.create_proj_geom("cone_vec", rows, columns, vectors)
    number, sinogram = astra.create_sino3d_gpu(flipped, detector, grid)
    astra.data3d.delete(number)
    ours = VolumeProjector(geometry, (rows, columns), (side, side, side), 0.25).forward(volume)[0].numpy()
    assert np.linalg.norm(sinogram.transpose(1, 0, 2) - ours) < 0.01 * np.linalg.norm(ours)
