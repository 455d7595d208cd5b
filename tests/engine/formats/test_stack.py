"""Stacks of images: what an image is, frames with roles, angles, and parts that do not fit."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.formats.frames import Frames, Scaled, Taken, Turned
from equipoise_engine.formats.stacks.stack import Stack, scan_of_stack
from equipoise_engine.formats.stacks.viewangles import trimmed
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.preprocess.centre import find_centre
from equipoise_engine.recipe import AngleRange, Known, Role

VIEWS, ROWS, COLUMNS = 60, 9, 64


def object_of(angles_deg: np.ndarray, rows: int = ROWS, columns: int = COLUMNS, centre: float = 34.0) -> np.ndarray:
    """Return exact attenuation `(view, row, column)` of balls without any symmetry."""
    angle = np.deg2rad(angles_deg)[:, None, None]
    height = (np.arange(rows) - rows / 2)[None, :, None]
    across = np.arange(columns)[None, None, :] - centre
    values = np.zeros((angle.size, rows, columns))
    for x, y, z, radius, value in (
        (0, 0, 1, 20, 0.02),
        (9, 4, -1, 6, 0.05),
        (-6, 10, 2, 4, 0.08),
        (3, -12, 0, 5, 0.03),
    ):
        left = radius**2 - (height - z) ** 2 - (across - x * np.cos(angle) - y * np.sin(angle)) ** 2
        values += value * 2 * np.sqrt(np.maximum(left, 0.0))
    return values


def half_turn(views: int = VIEWS) -> np.ndarray:
    return np.arange(views) * 180.0 / views


def counts_of(attenuation: np.ndarray, noise: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(11)
    counts = 100 + 30000 * np.exp(-attenuation)
    return np.rint(counts + noise * random.normal(size=counts.shape)).astype(np.uint16)


def scan_of(images: np.ndarray, *roles: tuple[str, str], **known: object) -> CtAcquisition:
    told = tuple(Role(role=role, source=source) for role, source in roles)
    return scan_of_stack(Stack(path=Path("s.tif"), format="a stack", images=images), Known(roles=told, **known))


# --- arrays that are read when they are asked for ---------------------------------------------------

KEYS = (
    ...,
    0,
    -1,
    slice(1, 4),
    slice(None, None, 2),
    (slice(None), 2),
    (slice(None), slice(1, 3), slice(2, 5)),
    (3, slice(None), -1),
    (slice(0, 0),),
    np.array([4, 0, 2]),
    (np.array([3, 1]), slice(0, 2), 3),
    (slice(None), -1, 2),
    (2, 1, 3),
)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_lazy_arrays_are_indexed_as_arrays_are(key: object) -> None:
    values = np.arange(5 * 4 * 6).reshape(5, 4, 6).astype(np.int16)
    lazy = Frames(lambda index: values[index], (5, 4, 6), values.dtype)
    order = np.array([4, 2, 3, 0, 1])
    for found, expected in (
        (lazy, values),
        (Taken(lazy, order), values[order]),
        (Turned(Frames(lambda index: values.swapaxes(0, 1)[index], (4, 5, 6), values.dtype)), values),
        (Scaled(lazy, 3.0, 2.0), (values.astype(np.float32) - 3) / 2),
    ):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        part = np.asarray(found[key])
        assert part.shape == expected[key].shape
        assert np.array_equal(part, expected[key])


def test_sinograms_in_hdf5_are_turned(tmp_path: Path) -> None:
    values = np.arange(5 * 4 * 6).reshape(5, 4, 6)
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["data"] = values
    with h5py.File(tmp_path / "s.h5") as file:
        turned = Turned(file["data"])
        assert np.array_equal(turned[np.array([3, 1])], values.swapaxes(0, 1)[[3, 1]])
        assert np.array_equal(turned[:, 1:3, ::2], values.swapaxes(0, 1)[:, 1:3, ::2])


# --- what an image is -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["projections", "sinograms"])
@pytest.mark.parametrize("state", ["attenuation", "transmission", "counts", "bright"])
@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize("turn", [1, 2])
def test_the_layout_is_seen(layout: str, state: str, rows: int, turn: int) -> None:
    attenuation = object_of(half_turn(61) * turn, rows)
    attenuation += 1e-3 * np.random.default_rng(4).random(attenuation.shape)
    images: np.ndarray = {
        "attenuation": attenuation.astype(np.float32),
        "transmission": np.exp(-attenuation).astype(np.float32),
        "counts": counts_of(attenuation, 50.0),
        "bright": np.rint(attenuation / attenuation.max() * 60000 + 2000).astype(np.uint16),
    }[state]
    scan = scan_of(images if layout == "projections" else images.swapaxes(0, 1))
    assert scan.shape == (61, rows, COLUMNS)
    assert "layout" not in scan.guessed
    assert {"angles", "state"} <= set(scan.guessed)
    assert scan.state.value == ("attenuation" if state == "bright" else state)
    assert f"the images are {layout}" in scan.matched[0].reason
    assert np.ptp(scan.geometry.angle_rad) == pytest.approx(np.deg2rad(180 * turn * 60 / 61))
    if rows == 2:
        assert find_centre(scan).centre_px == pytest.approx(34.0, abs=0.2)


def test_the_layout_of_noise_is_a_guess() -> None:
    images = np.random.default_rng(1).normal(1000, 10, (20, 20, 30))
    scan = scan_of(images)
    assert "layout" in scan.guessed
    assert any("Whether an image is a projection or a sinogram was guessed" in text for text in scan.warnings)


def test_a_told_layout_is_taken() -> None:
    images = counts_of(object_of(half_turn()))
    assert scan_of(images, layout="sinograms").shape == (ROWS, VIEWS, COLUMNS)
    assert "layout" not in scan_of(images, layout="sinograms").guessed


def test_the_number_of_angles_tells_the_layout() -> None:
    images = counts_of(object_of(half_turn(), rows=12))
    for stored in (images, images.swapaxes(0, 1)):
        scan = scan_of_stack(Stack(path=Path("s.tif"), format="a stack", images=stored, angle_deg=half_turn()), Known())
        assert scan.shape == images.shape
        assert scan.guessed == ("state",)


# --- roles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["projections", "sinograms"])
def test_frames_of_a_stack_have_roles(layout: str) -> None:
    projections = counts_of(object_of(half_turn()))
    flats = np.full((5, ROWS, COLUMNS), 30100, np.uint16)
    darks = np.full((3, ROWS, COLUMNS), 100, np.uint16)
    stored = np.concatenate([darks, flats, projections])
    scan = scan_of(
        stored if layout == "projections" else stored.swapaxes(0, 1),
        ("darks", "#:3"),
        ("flats", "#3:8"),
        layout=layout,
    )
    assert scan.state is DataState.COUNTS
    assert scan.guessed == ("angles",)
    assert scan.flats is not None
    assert scan.darks is not None
    assert np.array_equal(np.asarray(scan.projections[...]), projections)
    assert np.array_equal(np.asarray(scan.flats[...]), flats)
    assert np.array_equal(np.asarray(scan.darks[...]), darks)
    assert [(match.role, match.shape[0]) for match in scan.matched[:3]] == [
        ("projections", VIEWS),
        ("flats", 5),
        ("darks", 3),
    ]


def test_angles_of_all_frames_go_with_them() -> None:
    stored = np.concatenate([np.full((4, ROWS, COLUMNS), 30100, np.uint16), counts_of(object_of(half_turn()))])
    told = Known(roles=(Role(role="flats", source="#0:4"),))
    angles = np.concatenate([np.full(4, -7.0), half_turn()])
    scan = scan_of_stack(Stack(path=Path("s.tif"), format="a stack", images=stored, angle_deg=angles), told)
    assert np.allclose(np.rad2deg(scan.geometry.angle_rad), half_turn())


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ([("flats", "#55:70")], "there are 60 frames, from 0 to 59"),
        ([("flats", "#0:4"), ("projections", "#3:60")], "frame 3 is given two roles"),
        ([("flats", "#0:60")], "no frame of 60 is left"),
        ([("kspace", "#0:60")], "no part of such a scan has the role 'kspace'"),
        ([("flats", "#5:5")], "takes no frame"),
        ([("angles", "nowhere.txt")], "there is no such file"),
        ([("flats", "nowhere.tif")], "there is no 'nowhere.tif'"),
    ],
)
def test_roles_that_cannot_be_are_refused(roles: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        scan_of(counts_of(object_of(half_turn())), *roles)


def test_flats_of_another_size_are_refused() -> None:
    images = counts_of(object_of(half_turn()))
    with pytest.raises(BadInput, match="flats have 9 rows and 60 columns, the projections 9 and 64"):
        scan_of_stack(
            Stack(path=Path("s.tif"), format="a stack", images=images, flats=images[:3, :, :60]),
            Known(layout="projections"),
        )


def test_a_stack_without_values_is_refused() -> None:
    with pytest.raises(Unsupported, match="complex64"):
        scan_of(np.zeros((9, 9, 9), np.complex64))
    with pytest.raises(BadInput, match=r"\(9, 9\)"):
        scan_of(np.zeros((9, 9)))
    with pytest.raises(EquipoiseError, match="none of the"):
        scan_of(np.full((9, 9, 9), np.nan))


# --- angles -----------------------------------------------------------------------------------------


def test_angles_in_a_text_file_are_taken(tmp_path: Path) -> None:
    images = counts_of(object_of(half_turn()))
    tifffile.imwrite(tmp_path / "s.tif", images, photometric="minisblack")
    np.savetxt(tmp_path / "angles.txt", half_turn() + 10)
    np.savetxt(tmp_path / "few.txt", half_turn()[:50])
    np.savetxt(tmp_path / "radians.txt", np.deg2rad(half_turn()))

    def with_angles(source: str) -> CtAcquisition:
        scan = read(tmp_path / "s.tif", known=Known(roles=(Role(role="angles", source=source),)))
        assert isinstance(scan, CtAcquisition)
        return scan

    scan = with_angles("angles.txt")
    assert np.allclose(np.rad2deg(scan.geometry.angle_rad), half_turn() + 10)
    assert "angles" not in scan.guessed
    assert any("angles.txt" in match.source for match in scan.matched)
    assert np.allclose(np.rad2deg(with_angles("radians.txt").geometry.angle_rad), half_turn())
    with pytest.raises(BadInput, match="60 projections but 50 angles; no angle for index 50"):
        with_angles("few.txt")


def test_given_angles_win() -> None:
    images = counts_of(object_of(half_turn()))
    known = Known(angles=AngleRange(start_deg=5.0, stop_deg=365.0))
    scan = scan_of_stack(Stack(path=Path("s.tif"), format="a stack", images=images, angle_deg=half_turn()), known)
    assert np.rad2deg(scan.geometry.angle_rad[[0, -1]]) == pytest.approx([5.0, 359.0])


def test_repeats_at_the_ends_are_left_out_where_it_fits() -> None:
    moving = np.linspace(-88.2, 91.8, 91)
    angles = np.concatenate([np.full(10, -88.2), moving, np.full(10, 91.8004)])
    found, said = trimmed(angles, 91)
    assert np.allclose(found, moving, atol=1e-3)
    assert "10 repeats of the first and 10 of the last" in said
    for views in (90, 92, 101, 111, 200):
        assert trimmed(angles, views)[0].size == angles.size
    assert trimmed(np.zeros(20), 10)[0].size == 20


# --- TIFF files -------------------------------------------------------------------------------------


def test_a_stack_in_a_file_is_a_scan(tmp_path: Path) -> None:
    images = counts_of(object_of(half_turn()))
    tifffile.imwrite(tmp_path / "s.tif", images, photometric="minisblack", compression="zlib")
    tifffile.imwrite(tmp_path / "white.tif", np.full((ROWS, COLUMNS), 30100, np.float32))
    scan = read(tmp_path / "s.tif", known=Known(roles=(Role(role="flats", source="white.tif"),)))
    assert isinstance(scan, CtAcquisition)
    assert (scan.format, scan.shape, scan.state) == ("TIFF stack", images.shape, DataState.COUNTS)
    assert isinstance(scan.geometry, ParallelBeam)
    assert scan.flats is not None
    assert scan.flats.shape == (1, ROWS, COLUMNS)


@pytest.mark.parametrize("layout", ["projections", "sinograms"])
def test_the_layout_of_measured_scans_is_seen(shared_data: Path, tmp_path: Path, layout: str) -> None:
    with h5py.File(shared_data / "ct-tooth-dxchange" / "tooth.h5") as file:
        tooth = file["exchange/data"][:]
    raw = np.stack([tifffile.imread(p) for p in sorted((shared_data / "ct-i13-24737" / "tiffs").iterdir())])
    for images, centre in ((tooth, 296.0), (raw, 85.8)):
        stored = images if layout == "projections" else images.swapaxes(0, 1)
        tifffile.imwrite(tmp_path / "s.tif", stored, photometric="minisblack")
        scan = read(tmp_path / "s.tif")
        assert isinstance(scan, CtAcquisition)
        assert scan.shape == images.shape
        assert "layout" not in scan.guessed
        assert find_centre(scan).centre_px == pytest.approx(centre, abs=0.5)


def _turning(views: int = 90, rows: int = 24, columns: int = 64) -> np.ndarray:
    """Return line integrals `(view, row, column)` of a ball in each row, of its own size, about column 31."""
    angle = np.deg2rad(np.arange(views) * 180 / views)[:, None, None]
    size = 14 - 0.3 * np.arange(rows)[None, :, None]
    position = np.arange(columns)[None, None, :] - 31.0
    large = np.sqrt(np.maximum(size**2 - position**2, 0.0))
    small = np.sqrt(np.maximum(16.0 - (position - 7 * np.cos(angle) - 4 * np.sin(angle)) ** 2, 0.0))
    return (0.02 * (large + 3 * small)).astype(np.float32)


@pytest.mark.parametrize(("order", "layout"), [((0, 2, 1), "projections"), ((1, 2, 0), "sinograms")])
def test_images_may_be_transposed(tmp_path: Path, order: tuple[int, int, int], layout: str) -> None:
    values = _turning()
    np.save(tmp_path / "scan.npy", values.transpose(order))
    unsure = read(tmp_path / "scan.npy")
    assert "layout" in unsure.guessed
    assert any("tell that they are transposed" in text for text in unsure.warnings)
    for told in ("", layout):
        scan = read(tmp_path / "scan.npy", Known(transposed=True, layout=told))  # type: ignore[arg-type]
        assert isinstance(scan, CtAcquisition)
        np.testing.assert_array_equal(scan.projections[:], values)
        np.testing.assert_array_equal(scan.projections[3:9, 5, ::2], values[3:9, 5, ::2])
        np.testing.assert_array_equal(scan.projections[7, :, 3], values[7, :, 3])
        assert "layout" not in scan.guessed
        assert "rows and columns swapped, given by the user" in scan.matched[0].reason


def test_open_beam_frames_lie_as_the_images(tmp_path: Path) -> None:
    values = np.exp(-_turning()) * 1000
    flats = np.linspace(900, 1100, 24)[None, :, None] * np.ones((2, 1, 64))
    np.savez(tmp_path / "side.npz", data=values.swapaxes(1, 2), flats=flats.swapaxes(1, 2))
    np.savez(tmp_path / "rows.npz", data=values.transpose(1, 2, 0), flats=flats)
    for name, layout in (("side", "projections"), ("rows", "sinograms")):
        scan = read(tmp_path / f"{name}.npz", Known(transposed=True, layout=layout))  # type: ignore[arg-type]
        assert isinstance(scan, CtAcquisition)
        assert scan.shape == (90, 24, 64)
        assert scan.flats is not None
        np.testing.assert_array_equal(scan.flats[:], flats)


def test_a_sinogram_whose_columns_are_views_can_be_told(tmp_path: Path) -> None:
    values = _turning(rows=1)[:, 0]
    tifffile.imwrite(tmp_path / "one.tif", np.ascontiguousarray(values.T))
    scan = read(tmp_path / "one.tif", Known(transposed=True))
    assert isinstance(scan, CtAcquisition)
    np.testing.assert_array_equal(scan.projections[:, 0], values)
    assert any("its 90 columns were taken as the views" in text for text in scan.warnings)
