"""Arrays of NumPy: projections, k-space, roles by name, mapped and compressed, damaged and hostile ones."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.acquisition import CtAcquisition, DataState, MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Incomplete, OutOfMemory, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.recipe import Known, Role

VIEWS, ROWS, COLUMNS = 30, 5, 40


def attenuation() -> np.ndarray:
    """Return line integrals `(view, row, column)` of two discs, over half a turn, the axis at column 21."""
    angle = np.radians(np.arange(VIEWS) * 180.0 / VIEWS)[:, None, None]
    across = np.arange(COLUMNS)[None, None, :] - 21.0
    height = np.linspace(1.0, 0.4, ROWS)[None, :, None]
    values = np.zeros((VIEWS, ROWS, COLUMNS))
    for x, y, radius, value in ((0, 0, 15, 0.02), (6, 3, 3, 0.1)):
        left = radius**2 - (across - x * np.cos(angle) - y * np.sin(angle)) ** 2
        values += height * value * 2 * np.sqrt(np.maximum(left, 0))
    return values.astype(np.float32)


def ct(path: Path, *roles: tuple[str, str], **known: object) -> CtAcquisition:
    scan = read(path, Known(roles=tuple(Role(role=role, source=source) for role, source in roles), **known))
    assert isinstance(scan, CtAcquisition)
    return scan


def mri(path: Path, **known: object) -> MriAcquisition:
    scan = read(path, Known(**known))
    assert isinstance(scan, MriAcquisition)
    return scan


def complex_values(*shape: int) -> np.ndarray:
    random = np.random.default_rng(2)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


# --- computed tomography ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
def test_an_array_is_a_scan(tmp_path: Path, kind: str, order: str) -> None:
    values = np.asarray(attenuation(), dtype=kind, order=order)
    np.save(tmp_path / "s.npy", values)
    scan = ct(tmp_path / "s.npy")
    assert (scan.format, scan.shape, scan.state) == ("NumPy array", values.shape, DataState.ATTENUATION)
    assert np.array_equal(np.asarray(scan.projections[:, 2]), values[:, 2])
    assert set(scan.guessed) >= {"angles", "state"}


def test_one_sinogram(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", attenuation()[:, 0])
    scan = ct(tmp_path / "s.npy")
    assert scan.shape == (VIEWS, 1, COLUMNS)
    assert np.degrees(scan.geometry.angle_rad[-1]) == pytest.approx(174.0)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_names_tell_the_roles(tmp_path: Path, save: object) -> None:
    counts = np.rint(100 + 9000 * np.exp(-attenuation())).astype(np.uint16)
    parts = {
        "data": counts,
        "flat": np.full((2, ROWS, COLUMNS), 9100, np.uint16),
        "dark": np.full((ROWS, COLUMNS), 100, np.uint16),
        "theta": np.radians(np.arange(VIEWS) * 6.0),
        "center": np.array(21.0),
        "exposure": np.arange(3),
    }
    save(tmp_path / "s.npz", **parts)  # type: ignore[operator]
    scan = ct(tmp_path / "s.npz")
    assert scan.state is DataState.COUNTS
    assert scan.flats is not None
    assert scan.darks is not None
    assert (scan.flats.shape, scan.darks.shape) == ((2, ROWS, COLUMNS), (1, ROWS, COLUMNS))
    assert scan.geometry.centre_px == 21.0
    assert np.degrees(scan.geometry.angle_rad) == pytest.approx(np.arange(VIEWS) * 6.0)
    assert np.array_equal(np.asarray(scan.projections[4:6]), counts[4:6])
    assert {source.name for source in scan.sources} == set(parts)
    assert scan.guessed == ()


def test_roles_are_told(tmp_path: Path) -> None:
    counts = np.rint(9000 * np.exp(-attenuation())).astype(np.uint16)
    np.savez(
        tmp_path / "s.npz", a=counts, b=np.full((4, ROWS, COLUMNS), 9000, np.uint16), degrees=np.arange(VIEWS) * 6.0
    )
    with pytest.raises(Incomplete) as raised:
        ct(tmp_path / "s.npz")
    assert [source.name for source in raised.value.sources] == ["a", "b", "degrees"]
    scan = ct(tmp_path / "s.npz", ("projections", "a"), ("flats", "b#1:3"), ("angles", "degrees"))
    assert scan.flats is not None
    assert (scan.shape, scan.flats.shape) == ((VIEWS, ROWS, COLUMNS), (2, ROWS, COLUMNS))
    assert np.degrees(scan.geometry.angle_rad[1]) == pytest.approx(6.0)
    # arrays beside the file, and frames of the array itself
    np.save(tmp_path / "scan.npy", np.concatenate([counts, counts[:3]]))
    np.save(tmp_path / "white.npy", np.full((ROWS, COLUMNS), 9000, np.uint16))
    np.save(tmp_path / "theta_deg.npy", np.arange(VIEWS) * 6.0)
    roles = (("flats", "white.npy"), ("darks", f"#{VIEWS}:"), ("angles", "theta_deg.npy"))
    scan = ct(tmp_path / "scan.npy", *roles)
    assert scan.flats is not None
    assert scan.darks is not None
    assert (scan.shape[0], scan.flats.shape[0], scan.darks.shape[0]) == (VIEWS, 1, 3)
    assert np.degrees(scan.geometry.angle_rad[1]) == pytest.approx(6.0)
    with pytest.raises(BadInput, match=r"no 'other\.npy'"):
        ct(tmp_path / "scan.npy", ("flats", "other.npy"))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"data": np.zeros((4, 3))}, "too small"),
        ({"data": np.zeros((2, 3, 9, 9))}, "cannot be images"),
        ({"data": np.zeros((30, 5, 40)), "theta": np.zeros((30, 2))}, "cannot be angles"),
        ({"data": np.zeros((30, 5, 40)), "theta": np.arange(29.0)}, "30 projections but 29 angles"),
        ({"data": np.zeros((30, 5, 40)), "center": np.zeros(3)}, "cannot be the rotation centre"),
        ({"data": np.zeros((30, 5, 40)), "flats": np.ones((2, 6, 40))}, "flats have 6 rows"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, parts: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "s.npz", **parts)
    with pytest.raises(BadInput, match=said):
        read(tmp_path / "s.npz")


# --- magnetic resonance imaging ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((20, 16), (1, 1, 20, 16)),
        ((3, 20, 16), (1, 3, 20, 16)),
        ((20, 16, 3), (1, 3, 20, 16)),
        ((2, 3, 20, 16), (2, 3, 20, 16)),
    ],
)
def test_complex_arrays_are_kspace(tmp_path: Path, shape: tuple[int, ...], taken: tuple[int, ...]) -> None:
    values = complex_values(*shape)
    np.save(tmp_path / "k.npy", values)
    scan = mri(tmp_path / "k.npy")
    assert (scan.format, scan.shape) == ("NumPy k-space", taken)
    expected = np.moveaxis(values, -1, 0) if shape == (20, 16, 3) else values
    assert np.array_equal(np.asarray(scan.kspace[...]), expected.reshape(taken))
    assert isinstance(scan.geometry, Cartesian)


def test_kspace_of_the_scanner(shared_data: Path, tmp_path: Path) -> None:
    of_bart = mri(shared_data / "mri-bart-cfl" / "full.hdr")
    np.savez_compressed(tmp_path / "full.npz", kspace=np.asarray(of_bart.kspace[...]), order=np.arange(3))
    scan = mri(tmp_path / "full.npz")
    assert np.array_equal(scan.kspace[0], of_bart.kspace[0])
    assert scan.warnings == of_bart.warnings


@pytest.mark.parametrize(("unit", "size"), [(1.0, 0), (2 * np.pi, 0), (64.0, 64)])
def test_kspace_along_a_trajectory(tmp_path: Path, unit: float, size: int) -> None:
    angles = np.arange(100) * np.pi / 100
    radius = (np.arange(128) - 64) / 128
    points = np.stack([np.sin(angles)[:, None] * radius, np.cos(angles)[:, None] * radius], axis=-1)
    parts = {"kspace": complex_values(2, 100, 128), "trajectory": points * unit, "density": np.ones((100, 128))}
    np.savez(tmp_path / "k.npz", **parts)
    scan = mri(tmp_path / "k.npz")
    assert isinstance(scan.geometry, NonCartesian)
    assert scan.geometry.matrix == (size or 128, size or 128)
    assert scan.geometry.trajectory == pytest.approx(points * (size or 128))
    assert scan.shape == (1, 2, 100, 128)
    assert scan.geometry.density is not None
    assert ("matrix" in scan.guessed) == (not size)
    told = mri(tmp_path / "k.npz", matrix=(96, 96))
    assert isinstance(told.geometry, NonCartesian)
    assert told.geometry.matrix == (96, 96)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"kspace": complex_values(2, 9, 8), "trajectory": np.full((9, 7, 2), 0.3)}, "does not fit the trajectory"),
        ({"kspace": complex_values(9, 8), "trajectory": np.full((9, 8, 3), 0.3)}, "cannot be a trajectory"),
        ({"kspace": complex_values(9, 8), "trajectory": np.full((9, 8, 2), np.nan)}, "not finite"),
        ({"kspace": complex_values(9, 8), "trajectory": np.full((9, 8, 2), 1e6)}, "at most 16384"),
        ({"kspace": complex_values(9, 8), "trajectory": np.zeros((9, 8, 2))}, "reaches 0"),
        ({"kspace": complex_values(9, 8), "trajectory": np.full((9, 8, 2), 0.3), "dcf": -np.ones((9, 8))}, "weights"),
        ({"kspace": np.zeros((9, 8), np.complex64)}, "all values are zero"),
        ({"kspace": np.full((9, 8), np.nan, np.complex64)}, "not finite"),
        ({"kspace": complex_values(200, 2, 300, 2)[..., :1, :]}, "no"),
    ],
)
def test_kspace_that_does_not_fit_is_named(tmp_path: Path, parts: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "k.npz", **parts)
    if said == "no":
        assert mri(tmp_path / "k.npz").shape == (200, 2, 1, 2)
        return
    with pytest.raises(BadInput, match=said):
        read(tmp_path / "k.npz")


# --- damaged and hostile ----------------------------------------------------------------------------


def test_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Unsupported, match="never loaded"):
        read(tmp_path / "o.npy")
    np.savez(tmp_path / "o.npz", data=np.array([{"a": 1}], dtype=object))
    with pytest.raises(Unsupported, match="never loaded"):
        read(tmp_path / "o.npz")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["s.npy", "s.npz", "c.npz"])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    values = np.random.default_rng(1).normal(size=(VIEWS, ROWS, COLUMNS))
    {"s.npy": np.save, "s.npz": np.savez, "c.npz": np.savez_compressed}[name](path, values)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadInput, match=name):
        read(path)


def test_a_size_that_is_only_declared_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (9000, 9000, 9000)})
    (tmp_path / "s.npy").write_bytes(header.getvalue() + b"\0" * 64)
    with pytest.raises(BadInput, match=r"takes 58320000\d+ bytes, but"):
        read(tmp_path / "s.npy")


def test_an_archive_that_unpacks_to_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    shape = (1 << 14, 1 << 14, 1 << 14)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", header.getvalue() + b"\0" * (1 << 20))
    raw = path.read_bytes()
    # the directory at the end of the file declares what is not there
    at = raw.rindex(b"PK\x01\x02")
    declared = struct.pack("<I", 0xFFFFFFFE)
    path.write_bytes(raw[: at + 24] + declared + raw[at + 28 :])
    with pytest.raises((BadInput, OutOfMemory)):
        np.asarray(ct(path).projections[0])


@pytest.mark.filterwarnings("ignore:invalid value")  # random bits make numbers that signal
@pytest.mark.parametrize("name", ["s.npy", "s.npz", "c.npz"])
def test_flipped_bits_never_crash(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    values = np.random.default_rng(1).normal(size=(VIEWS, ROWS, COLUMNS)).astype(np.float32)
    save = {"s.npy": np.save, "s.npz": np.savez, "c.npz": np.savez_compressed}[name]
    save(path, values)
    raw = path.read_bytes()
    random = np.random.default_rng(4)
    places = [*range(0, 140, 3), *range(len(raw) - 120, len(raw), 3), *random.integers(0, len(raw), 40)]
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            scan = read(path)
            np.asarray(scan.projections[0] if isinstance(scan, CtAcquisition) else scan.kspace[0])
        except EquipoiseError:
            pass


def test_another_archive_is_no_scan(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(Unsupported, match="ZIP archive"):
        read(tmp_path / "s.zip")
