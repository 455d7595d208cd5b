"""Folders of images: roles by names, angles beside them, and what does not fit together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, Incomplete
from equipoise_engine.formats import read
from equipoise_engine.formats.stacks.folder import is_image_folder
from equipoise_engine.formats.stacks.series import gaps, natural
from equipoise_engine.preprocess.centre import find_centre
from equipoise_engine.recipe import AngleRange, Known, Role

VIEWS, ROWS, COLUMNS = 24, 5, 32
ANGLES = np.arange(VIEWS) * 7.5


def _projections() -> np.ndarray:
    """Return counts `(view, row, column)` of two discs; each image is another one."""
    angle = np.deg2rad(ANGLES)[:, None, None]
    row = np.arange(ROWS)[None, :, None]
    across = np.arange(COLUMNS)[None, None, :] - 16.5
    lines = np.sqrt(np.maximum(100.0 - across**2, 0)) * (1 + 0.1 * row)
    lines = lines + 4 * np.sqrt(np.maximum(9.0 - (across - 6 * np.cos(angle) - 2 * np.sin(angle)) ** 2, 0))
    return np.rint(20000 * np.exp(-0.05 * lines)).astype(np.uint16)


def _write(folder: Path, names: str, images: np.ndarray, first: int = 0) -> None:
    """Write images, one file each; `names` holds the place of the number."""
    for index, image in enumerate(images):
        path = folder / names.format(first + index)
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image)


Maker = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Maker:
    """Write a folder of a scan with the names that are given."""

    def make(
        projections: str = "raw_{:04d}.tif", flats: str = "flat_{}.tif", darks: str = "dark_{}.tif", first: int = 0
    ) -> Path:
        path = tmp_path / "scan"
        _write(path, projections, _projections(), first)
        _write(path, flats, np.full((3, ROWS, COLUMNS), 20000, np.uint16))
        _write(path, darks, np.full((2, ROWS, COLUMNS), 90, np.uint16))
        return path

    return make


def _read(path: Path, *roles: tuple[str, str], **known: object) -> CtAcquisition:
    told = tuple(Role(role=role, source=source) for role, source in roles)
    scan = read(path, known=Known(roles=told, **known))
    assert isinstance(scan, CtAcquisition)
    return scan


def _is_whole(scan: CtAcquisition) -> bool:
    assert scan.flats is not None
    assert scan.darks is not None
    return (
        np.array_equal(np.asarray(scan.projections[...]), _projections())
        and scan.state is DataState.COUNTS
        and float(np.mean(scan.flats[...])) == 20000
        and float(np.mean(scan.darks[...])) == 90
    )


@pytest.mark.parametrize(
    ("projections", "flats", "darks"),
    [
        ("raw_{:04d}.tif", "flat_{}.tif", "dark_{}.tif"),
        ("tiffs/a{}.tiff", "ff/a{}.tiff", "df/a{}.tiff"),
        ("proj/img_{}.tif", "white/img_{}.tif", "dark/img_{}.tif"),
        ("Projections/Sample1_{}.TIF", "OpenBeam/Sample1_{}.TIF", "DarkField/Sample1_{}.TIF"),
        ("mouse_{:03d}.tif", "mouse_I0_{:03d}.tif", "mouse_di_{:03d}.tif"),
        ("tomo_{}.tif", "FlatBefore{}.tif", "bias{}.tif"),
        ("dark_wood_{}.tif", "flats/flat_{}.tif", "darks/black_{}.tif"),
    ],
)
def test_names_tell_roles(folder: Maker, projections: str, flats: str, darks: str) -> None:
    path = folder(projections, flats, darks)
    assert is_image_folder(path)
    scan = _read(path)
    assert _is_whole(scan)
    roles = {match.role: match for match in scan.matched}
    assert roles["projections"].shape == (VIEWS, ROWS, COLUMNS)
    assert {"flats", "darks", "angles"} <= set(roles)
    assert scan.guessed == ("angles",)
    # what was matched can be told
    again = _read(path, *((role, roles[role].source) for role in ("projections", "flats", "darks")))
    assert _is_whole(again)


def test_numbers_are_sorted_as_people_do(folder: Maker) -> None:
    assert sorted(["a10", "a2", "B1", "a1b3", "a1b20"], key=natural) == ["a1b3", "a1b20", "a2", "a10", "B1"]
    assert _is_whole(_read(folder("raw_{}.tif", first=95)))


def test_angles_in_a_file_are_taken(folder: Maker) -> None:
    path = folder()
    np.savetxt(path / "README.txt", [1, 2, 3])
    repeats = np.concatenate([np.full(5, ANGLES[0]), ANGLES, np.full(2, ANGLES[-1])])
    np.savetxt(path / "theta.txt", repeats)
    scan = _read(path)
    assert np.allclose(np.rad2deg(scan.geometry.angle_rad), ANGLES)
    assert scan.guessed == ()
    said = next(match for match in scan.matched if match.role == "angles")
    assert said.source == "theta.txt"
    assert "5 repeats of the first and 2 of the last" in said.reason
    np.savetxt(path / "theta.txt", repeats[:-1])
    assert np.allclose(np.rad2deg(_read(path).geometry.angle_rad), ANGLES)
    np.savetxt(path / "theta.txt", ANGLES[:20])
    with pytest.raises(BadInput, match="24 projections but 20 angles; no angle for index 20"):
        _read(path)
    assert _is_whole(_read(path, angles=AngleRange(start_deg=0.0, stop_deg=180.0)))
    assert "angles" in _read(path, ("angles", "")).guessed


def test_gaps_are_named(folder: Maker) -> None:
    path = folder()
    (path / "raw_0007.tif").unlink()
    scan = _read(path)
    assert any("image 7 is missing: raw_0006 is followed by raw_0008" in text for text in scan.warnings)
    # angles of all images are those of the ones that are there
    np.savetxt(path / "angles.txt", ANGLES)
    assert np.allclose(np.rad2deg(_read(path).geometry.angle_rad), np.delete(ANGLES, 7))
    names = [Path(f"a{n}.tif") for n in (0, 5, 10, 15, 30, 35, 50, 55, 60)]
    missing, said = gaps(names)
    assert missing == (4, 5, 8, 9)
    assert "images 4 to 5 are missing: a15 is followed by a30" in said
    assert gaps([Path(f"a{n}.tif") for n in (3, 1, 2)]) == ((), "")
    assert gaps([Path(f"b{n}_{n}.tif") for n in (3, 4, 6)]) == ((), "")


def test_roles_are_told(folder: Maker) -> None:
    path = folder()
    scan = _read(path, ("flats", "flat_*.tif#1:"), ("darks", ""), ("projections", "raw_*.tif#0:12"))
    assert scan.shape == (12, ROWS, COLUMNS)
    assert scan.flats is not None
    assert scan.flats.shape[0] == 2
    assert scan.darks is None
    inside = _read(path, ("flats", "#0:2"))
    assert inside.shape == (VIEWS - 2, ROWS, COLUMNS)
    named = _read(path, ("flats", "raw_*.tif#0:2"))
    assert named.shape == inside.shape
    assert {source.name for source in scan.sources} == {"raw_*.tif", "flat_*.tif", "dark_*.tif"}


@pytest.mark.parametrize(
    ("role", "source", "said"),
    [
        ("flats", "nothing_*.tif", "there is no image file 'nothing"),
        ("flats", "../flat_0.tif", "there is no image file"),
        ("flats", "flat_*.tif#7:9", "there are 3 frames"),
        ("projections", "/etc/*", "is no name of files"),
        ("projections", "raw_*.tif#90:", "there are 24 frames"),
    ],
)
def test_roles_without_files_are_refused(folder: Maker, role: str, source: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        _read(folder(), (role, source))


def test_images_that_differ_are_named(folder: Maker) -> None:
    path = folder()
    tifffile.imwrite(path / "raw_0009.tif", np.zeros((ROWS, COLUMNS + 1), np.uint16))
    with pytest.raises(BadInput, match=r"raw_0009\.tif: an image of 5 x 33 and type uint16"):
        _read(path)
    tifffile.imwrite(path / "raw_0009.tif", np.zeros((ROWS, COLUMNS), np.float32))
    with pytest.raises(BadInput, match=r"raw_0009\.tif: an image of 5 x 32 and type float32"):
        _read(path)
    (path / "raw_0009.tif").write_bytes((path / "raw_0008.tif").read_bytes()[:200])
    with pytest.raises(BadInput, match=r"raw_0009\.tif: the TIFF file is damaged"):
        _read(path)
    (path / "raw_0009.tif").write_bytes(b"")
    with pytest.raises(BadInput, match=r"raw_0009\.tif: the TIFF file is damaged"):
        _read(path)


def test_flats_of_another_size_are_named(folder: Maker) -> None:
    path = folder()
    _write(path, "flat_{}.tif", np.full((3, ROWS, COLUMNS + 2), 20000, np.uint16))
    with pytest.raises(BadInput, match=r"flat_\*\.tif has images of 5 x 34, the projections 5 x 32"):
        _read(path)
    assert _read(path, ("flats", "")).flats is None


def test_a_projection_half_a_turn_later_is_listed(folder: Maker) -> None:
    path = folder()
    tifffile.imwrite(path / "raw_180deg.tif", _projections()[0])
    scan = _read(path)
    assert _is_whole(scan)
    assert ("180 degrees", "raw_180deg.tif") in {(match.role, match.source) for match in scan.matched}


def test_stacks_in_a_folder_have_roles(tmp_path: Path) -> None:
    for name, images in (
        ("proj", _projections()),
        ("flat", np.full((3, ROWS, COLUMNS), 20000, np.uint16)),
        ("dark", np.full((ROWS, COLUMNS), 90, np.uint16)),
    ):
        tifffile.imwrite(tmp_path / f"{name}.tif", images, photometric="minisblack")
    assert _is_whole(_read(tmp_path))


def test_which_images_are_projections_must_be_clear(tmp_path: Path) -> None:
    _write(tmp_path, "left/{}.tif", _projections())
    _write(tmp_path, "right/{}.tif", _projections())
    with pytest.raises(Incomplete, match="several groups of images") as caught:
        read(tmp_path)
    assert caught.value.missing == ("projections",)
    assert [source.name for source in caught.value.sources] == ["left/*.tif", "right/*.tif"]
    assert _read(tmp_path, ("projections", "right/*.tif")).shape == (VIEWS, ROWS, COLUMNS)


def test_folders_of_something_else_are_no_scans(tmp_path: Path, folder: Maker) -> None:
    assert not is_image_folder(tmp_path)
    _write(tmp_path, "slices/slice_{}.tif", _projections())
    _write(tmp_path, "few/{}.tif", _projections()[:4])
    assert not is_image_folder(tmp_path)
    path = folder()
    (path / "scan.h5").write_bytes(b"a scan in itself")
    assert not is_image_folder(path)


def test_one_of_a_series_stands_for_all(folder: Maker) -> None:
    path = folder()
    scan = _read(path / "raw_0011.tif")
    assert _is_whole(scan)
    assert scan.path == path / "raw_0011.tif"
    assert any("raw_0011.tif is one of 24 numbered images" in text for text in scan.warnings)
    with pytest.raises(BadInput, match="5 x 32 is too small"):
        _read(path / "raw_0011.tif", ("projections", "raw_0011.tif"))


def test_the_folder_above_is_named(folder: Maker) -> None:
    path = folder("tiffs/raw_{:04d}.tif")
    scan = _read(path / "tiffs" / "raw_0011.tif")
    assert scan.flats is None
    assert any("open scan to take them" in text for text in scan.warnings)


def test_folders_with_flats_are_named(folder: Maker, tmp_path: Path) -> None:
    above = folder("tiffs/raw_{:04d}.tif") / "tiffs"
    assert any("folder above: open scan" in text for text in _read(above).warnings)
    beside = tmp_path / "other"
    _write(beside, "raw_{:04d}.tif", _projections())
    _write(beside, "flats/{}.tif", np.full((3, ROWS, COLUMNS), 20000, np.uint16))
    assert any("folders beside: open other" in text for text in _read(beside / "raw_0003.tif").warnings)
    assert not any("Flats and darks may lie" in text for text in _read(beside).warnings)


def test_scans_in_numbered_folders_are_kept_apart(tmp_path: Path) -> None:
    for number, value in ((1, 20000), (2, 30000)):
        _write(tmp_path / f"scan{number}", "raw_{:04d}.tif", _projections())
        _write(tmp_path / f"scan{number}", "flat_{}.tif", np.full((2, ROWS, COLUMNS), value, np.uint16))
    with pytest.raises(Incomplete, match=r"scan1/raw_\*.tif \(24\), scan2/raw_\*.tif \(24\)"):
        _read(tmp_path)
    scan = _read(tmp_path, ("projections", "scan2/raw_*.tif"))
    assert scan.shape[0] == VIEWS
    assert scan.flats is not None
    assert np.array_equal(np.unique(np.asarray(scan.flats[:])), [30000])


def test_a_folder_in_itself_is_not_looked_into(folder: Maker) -> None:
    path = folder()
    (path / "again").symlink_to(path, target_is_directory=True)
    assert _is_whole(_read(path))


def test_angles_that_are_found_leave_out_missing_images(folder: Maker) -> None:
    path = folder()
    (path / "raw_0010.tif").unlink()
    scan = _read(path)
    step = np.diff(np.rad2deg(scan.geometry.angle_rad))
    assert step[9] == pytest.approx(2 * step[0])
    assert np.delete(step, 9) == pytest.approx(step[0])
    assert any("with those of the missing images between them" in text for text in scan.warnings)


def test_one_of_a_series_can_be_kept_alone(tmp_path: Path) -> None:
    sinograms = _projections().swapaxes(0, 1)
    _write(tmp_path, "sino_{}.tif", np.concatenate([sinograms, sinograms]))
    together = _read(tmp_path / "sino_3.tif")
    assert together.shape == (VIEWS, 2 * ROWS, COLUMNS)
    alone = _read(tmp_path / "sino_3.tif", ("projections", "sino_3.tif"))
    assert alone.shape == (VIEWS, 1, COLUMNS)
    assert np.array_equal(np.asarray(alone.projections[:, 0]), sinograms[3])


@pytest.mark.parametrize("tell_angles", [True, False])
def test_read_a_measured_folder(shared_data: Path, tell_angles: bool) -> None:
    path = shared_data / "ct-i13-24737"
    scan = _read(path) if tell_angles else _read(path, ("angles", ""))
    assert (scan.shape, scan.state) == ((91, 135, 160), DataState.COUNTS)
    assert scan.flats is not None
    assert scan.darks is not None
    assert find_centre(scan).centre_px == pytest.approx(85.5, abs=0.6)
    if tell_angles:
        assert scan.guessed == ()
        assert np.rad2deg(scan.geometry.angle_rad[[0, -1]]) == pytest.approx([-88.2, 91.8], abs=1e-3)
        said = next(match for match in scan.matched if match.role == "angles")
        assert "10 repeats of the first and 10 of the last" in said.reason
    else:
        assert scan.guessed == ("angles",)
        assert np.ptp(scan.geometry.angle_rad) == pytest.approx(np.pi, abs=0.05)
