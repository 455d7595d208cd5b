"""MATLAB files: fan-beam structures, k-space by name, both kinds of file, and variables that do not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from equipoise_engine.acquisition import CtAcquisition, DataState, MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Incomplete, Unsupported
from equipoise_engine.formats import Known, read
from equipoise_engine.geometry import Cartesian, FanBeam, NonCartesian
from equipoise_engine.recipe import Role

VIEWS, COLUMNS = 12, 20


def _fan(**changes: Any) -> dict[str, Any]:
    """Return a structure as the Helsinki laboratory writes it; a keyword replaces a parameter, None leaves it out."""
    parameters = {
        "geometryType": "Cone",
        "distanceSourceOrigin": 410.66,
        "distanceSourceDetector": 553.74,
        "distanceUnit": "mm",
        "angles": np.arange(VIEWS)[None] * 30.0,
        "pixelSize": 0.05,
        "detectorCols": 4 * COLUMNS,
        "pixelSizePost": 0.2,
    } | changes
    sinogram = np.arange(VIEWS * COLUMNS, dtype=np.float64).reshape(VIEWS, COLUMNS)
    kept = {name: value for name, value in parameters.items() if value is not None}
    return {"type": "2D", "sinogram": sinogram, "parameters": kept}


def _save_7(path: Path, variables: dict[str, Any]) -> None:
    """Write variables as MATLAB 7.3 does: axes reversed, texts as numbers, complex as pairs, a block in front."""

    def put(group: h5py.Group, name: str, value: Any) -> None:
        if isinstance(value, dict):
            group.create_group(name).attrs["MATLAB_class"] = np.bytes_("struct")
            for part, inner in value.items():
                put(group[name], part, inner)
            return
        kind = "char" if isinstance(value, str) else "double"
        array = np.array([[ord(c)] for c in value], np.uint16) if kind == "char" else np.atleast_2d(value).T
        if np.iscomplexobj(array):
            pairs = np.empty(array.shape, [("real", "<f8"), ("imag", "<f8")])
            pairs["real"], pairs["imag"] = array.real, array.imag
            array = pairs
        group.create_dataset(name, data=array).attrs["MATLAB_class"] = np.bytes_(kind)

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            put(file, name, value)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: none".ljust(124) + b"\x00\x02IM")


def _save(path: Path, variables: dict[str, Any], version: str = "5") -> Path:
    if version == "5":
        scipy.io.savemat(path, variables, do_compression=True)
    else:
        _save_7(path, variables)
    return path


def _noise(*shape: int) -> np.ndarray:
    random = np.random.default_rng(4)
    return random.normal(size=shape) + 1j * random.normal(size=shape)


def _read_fan(path: Path, known: Known | None = None) -> tuple[CtAcquisition, FanBeam]:
    scan = read(path, known=known)
    assert isinstance(scan, CtAcquisition)
    assert isinstance(scan.geometry, FanBeam)
    return scan, scan.geometry


def _read_mri(path: Path, known: Known | None = None) -> MriAcquisition:
    scan = read(path, known=known)
    assert isinstance(scan, MriAcquisition)
    return scan


# --- fan beams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("name", ["CtDataLimited", "CtDataFull", "CtData", "myScan"])
def test_a_structure_is_a_fan_beam(tmp_path: Path, name: str, version: str) -> None:
    scan, geometry = _read_fan(_save(tmp_path / "scan", {name: _fan()}, version))
    assert (scan.state, scan.shape) == (DataState.ATTENUATION, (VIEWS, 1, COLUMNS))
    assert np.array_equal(scan.projections[:, 0], _fan()["sinogram"])
    assert np.allclose(np.rad2deg(geometry.angle_rad), np.arange(VIEWS) * 30)
    assert (geometry.source_axis_mm, geometry.source_detector_mm) == (410.66, 553.74)
    assert (geometry.pixel_mm, geometry.centre_px, geometry.detector) == (0.2, 9.5, "flat")
    assert geometry.calibrated


def test_views_may_be_columns(tmp_path: Path) -> None:
    fan = _fan()
    fan["sinogram"] = fan["sinogram"].T
    scan, _ = _read_fan(_save(tmp_path / "s.mat", {"CtData": fan}))
    assert np.array_equal(scan.projections[:, 0], _fan()["sinogram"])


def test_lengths_are_converted_and_binning_is_counted(tmp_path: Path) -> None:
    fan = _fan(distanceUnit="cm", distanceSourceOrigin=41.0, distanceSourceDetector=55.0, pixelSizePost=None)
    _, geometry = _read_fan(_save(tmp_path / "s.mat", {"CtData": fan}), Known(centre_px=8.25))
    assert (geometry.source_axis_mm, geometry.source_detector_mm) == pytest.approx((410.0, 550.0))
    assert geometry.pixel_mm == pytest.approx(2.0)
    assert geometry.centre_px == 8.25


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"angles": np.arange(11.0)}, "12 projections but 11 angles"),
        ({"angles": np.r_[0.0, np.nan, np.arange(10.0)]}, r"1 of 12 angles are not finite; the first is index 1"),
        ({"angles": None}, r"CtData\.parameters\.angles is missing"),
        ({"distanceSourceOrigin": None}, r"parameters\.distanceSourceOrigin is missing"),
        ({"distanceSourceOrigin": -1.0}, "one number above zero is needed"),
        ({"distanceSourceOrigin": 600.0}, "does not lie between the source and the detector"),
        ({"pixelSizePost": [1.0, 2.0]}, "pixelSizePost is"),
        ({"distanceUnit": "furlong"}, "distances in 'furlong'"),
        ({"angles": "none"}, "real numbers are needed"),
    ],
)
def test_parameters_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read(_save(tmp_path / "s.mat", {"CtData": _fan(**changes)}))


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 20)])
def test_a_sinogram_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"CtData\.sinogram has shape"):
        read(_save(tmp_path / "s.mat", {"CtData": _fan() | {"sinogram": np.ones(shape)}}))


def test_other_beams_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="geometry 'Parallel'"):
        read(_save(tmp_path / "s.mat", {"CtData": _fan(geometryType="Parallel")}))


# --- k-space ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_kspace_is_ky_kx_coil(tmp_path: Path, version: str) -> None:
    kspace = _noise(10, 8, 3)
    kspace[:, [0, 5]] = 0
    scan = _read_mri(_save(tmp_path / "s.mat", {"DATA": kspace}, version))
    assert scan.shape == (1, 3, 10, 8)
    assert np.array_equal(scan.kspace[0], kspace.transpose(2, 0, 1).astype(np.complex64))
    assert isinstance(scan.geometry, Cartesian)
    assert np.array_equal(scan.geometry.sampled, np.broadcast_to(~np.isin(np.arange(8), [0, 5]), (10, 8)))
    assert scan.geometry.phase_axis == 1


def test_one_coil_needs_no_axis(tmp_path: Path) -> None:
    scan = _read_mri(_save(tmp_path / "s.mat", {"kspace": _noise(10, 8)}))
    assert scan.shape == (1, 1, 10, 8)


def _spokes(readouts: int, samples: int) -> np.ndarray:
    """Return positions `(sample, readout)` on straight lines through the centre, in cycles per pixel."""
    angle = np.arange(readouts) * np.pi / readouts
    return ((np.arange(samples) - samples // 2) / samples)[:, None] * np.exp(1j * angle)[None]


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_variables_may_be_told(tmp_path: Path, version: str) -> None:
    positions, kspace = _spokes(6, 64), _noise(64, 6, 3)
    path = _save(tmp_path / "s.mat", {"where": positions, "what": kspace, "weighs": np.ones((64, 6))}, version)
    roles = (Role("kspace", "what"), Role("trajectory", "where"), Role("density", "weighs"))
    scan = _read_mri(path, Known(roles=roles))
    assert isinstance(scan.geometry, NonCartesian)
    assert scan.geometry.density is not None
    assert {source.name for source in scan.sources} == {"where", "what", "weighs"}
    with pytest.raises(BadInput, match="there is no variable 'whatever' for the kspace"):
        read(path, Known(roles=(Role("kspace", "whatever"),)))


def test_parts_of_a_structure(tmp_path: Path) -> None:
    kspace = _noise(10, 8, 3)
    scan = _read_mri(_save(tmp_path / "s.mat", {"scan": {"kspace": kspace, "name": "phantom", "noise": _noise(3, 50)}}))
    assert np.array_equal(scan.kspace[0], kspace.transpose(2, 0, 1).astype(np.complex64))
    assert scan.noise is not None
    assert scan.noise.shape == (3, 50)


def test_coils_may_come_first(tmp_path: Path) -> None:
    kspace = _noise(3, 10, 8)
    scan = _read_mri(_save(tmp_path / "s.mat", {"kspace_full": kspace}))
    assert np.array_equal(scan.kspace[0], kspace.astype(np.complex64))


def test_a_third_axis_of_slices_or_of_phase_encoding(tmp_path: Path) -> None:
    kspace = _noise(10, 8, 5, 3)
    slices = _read_mri(_save(tmp_path / "s.mat", {"kspace": kspace}))
    assert np.allclose(slices.kspace[:], kspace.transpose(2, 3, 0, 1), atol=1e-6)
    peaked = kspace * np.array([0.1, 0.2, 5.0, 0.2, 0.1])[:, None]
    volume = _read_mri(_save(tmp_path / "v.mat", {"kspace": peaked}))
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(peaked, axes=2), axis=2, norm="ortho"), axes=2)
    assert np.allclose(volume.kspace[:], image.transpose(2, 3, 0, 1), atol=1e-5)
    assert any("second phase encoding" in warning for warning in volume.warnings)


@pytest.mark.parametrize(
    ("factor", "axes", "unit"),
    [
        (1.0, (1, 2, 0), "cycles per pixel"),
        (64.0, (0, 1, 2), "cycles per field of view"),
        (2 * np.pi, (1, 2, 0), "radi"),
    ],
)
def test_positions_as_pairs_and_in_other_units(tmp_path: Path, factor: float, axes: tuple[int, ...], unit: str) -> None:
    positions = _spokes(6, 64)
    pairs = np.stack([positions.real, positions.imag])
    path = _save(tmp_path / "s.mat", {"traj": factor * pairs.transpose(axes), "ksp": _noise(64, 6, 3)})
    scan = _read_mri(path)
    assert isinstance(scan.geometry, NonCartesian)
    assert scan.geometry.matrix == (64, 64)
    assert np.allclose(
        scan.geometry.trajectory[2], 64 * np.stack([positions[:, 2].real, positions[:, 2].imag], axis=-1)
    )
    assert any(unit in match.reason for match in scan.matched)


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_kspace_along_a_trajectory(tmp_path: Path, version: str) -> None:
    positions, kspace, weights = _spokes(6, 64), _noise(64, 6, 3), np.random.default_rng(0).random((64, 6))
    scan = _read_mri(_save(tmp_path / "s.mat", {"k": positions, "w": weights, "data": kspace}, version))
    geometry = scan.geometry
    assert isinstance(geometry, NonCartesian)
    assert scan.shape == (1, 3, 6, 64)
    assert np.array_equal(scan.kspace[0, 2, 4], kspace[:, 4, 2].astype(np.complex64))
    assert geometry.matrix == (64, 64)
    # (ky, kx) in cycles per field of view
    assert np.allclose(geometry.trajectory[4], 64 * np.stack([positions[:, 4].real, positions[:, 4].imag], axis=-1))
    assert geometry.density is not None
    assert np.array_equal(geometry.density, weights.T)
    assert any("64 x 64 was taken" in warning for warning in scan.warnings)


def test_a_given_matrix_is_taken(tmp_path: Path) -> None:
    path = _save(tmp_path / "s.mat", {"k": _spokes(6, 64), "data": _noise(64, 6, 3)})
    geometry = _read_mri(path, Known(matrix=(48, 40))).geometry
    assert isinstance(geometry, NonCartesian)
    assert geometry.matrix == (48, 40)
    assert np.abs(geometry.trajectory).max(axis=(0, 1)) == pytest.approx([24, 20])


def test_a_spiral_is_given_the_matrix_that_it_fills(tmp_path: Path) -> None:
    turn = np.linspace(0, 1, 4000)[:, None]
    positions = 0.5 * turn * np.exp(2j * np.pi * (8 * turn + np.arange(8) / 8)[:, :])  # turns 1/128 apart
    geometry = _read_mri(_save(tmp_path / "s.mat", {"k": positions, "data": _noise(4000, 8, 2)})).geometry
    assert isinstance(geometry, NonCartesian)
    assert geometry.matrix == (128, 128)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"noise": np.ones((2, 3)), "picture": _noise(5, 6)},
            r"it holds noise \(2, 3\) double, picture \(5, 6\) double",
        ),
        ({"DATA": np.ones((10, 8, 3))}, r"DATA \(10, 8, 3\) double is not complex"),
        ({"DATA": _noise(8, 3, 10)}, r"DATA has shape \(8, 3, 10\); the last axis, the coils"),
        ({"DATA": np.zeros((10, 8, 3), complex) + 0j}, "all values are zero|not complex"),
        ({"DATA": np.where(np.arange(8) == 3, np.nan, _noise(10, 8))}, r"10 of 80 .* not finite; .* \(0, 0, 0, 3\)"),
        ({"k": _spokes(6, 64).T, "data": _noise(64, 6, 3)}, r"trajectory k \(6, 64\) double does not fit data"),
        ({"k": 2 * _spokes(6, 64), "data": _noise(64, 6, 3)}, r"reaches 1; positions in cycles per pixel"),
        ({"k": np.nan * _spokes(6, 64), "data": _noise(64, 6, 3)}, "finite positions"),
        ({"k": _spokes(6, 64), "w": -np.ones((64, 6)), "data": _noise(64, 6, 3)}, "none below zero"),
        ({"ksp": _noise(10, 8), "kspace": _noise(10, 8)}, "variables of this MATLAB file are not known"),
        ({"DATA": "text"}, "not complex|not known"),
        ({"empty": np.zeros((0, 0))}, "not known"),
    ],
)
@pytest.mark.parametrize("version", ["5", "7.3"])
def test_variables_that_do_not_fit_are_named(
    tmp_path: Path, variables: dict[str, Any], said: str, version: str
) -> None:
    with pytest.raises(BadInput, match=said):
        read(_save(tmp_path / "s.mat", variables, version))


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7, 0.97])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float, version: str) -> None:
    path = _save(tmp_path / "s.mat", {"CtData": _fan(), "more": np.random.default_rng(0).random((60, 60))}, version)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadInput, match=r"s\.mat"):
        read(path)


def test_flipped_bytes_never_escape(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    path = _save(tmp_path / "s.mat", {"CtData": _fan()})
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for position in random.integers(128, len(whole), 3):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except (BadInput, Unsupported) as error:
            assert "s.mat" in error.message  # noqa: PT017 - most damage is refused, not all


def test_flipped_bits_of_uncompressed_kspace_never_escape(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    path = tmp_path / "s.mat"
    scipy.io.savemat(path, {"k": _spokes(6, 32), "w": random.random((32, 6)), "data": _noise(32, 6, 2)})
    whole = path.read_bytes()
    for _ in range(120):
        damaged = bytearray(whole)
        for position in (*random.integers(128, len(whole), 3), *random.integers(128, 220, 1)):
            damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            read(path)
        except EquipoiseError:
            continue


# --- measured ---------------------------------------------------------------------------------------


def test_read_fan_beam_of_helsinki(shared_data: Path) -> None:
    scan, geometry = _read_fan(shared_data / "ct-htc2022-fan" / "tb_subsample_90.mat")
    assert scan.shape == (181, 1, 560)
    assert np.rad2deg(geometry.angle_rad[[0, -1]]) == pytest.approx([75.0, 165.0])
    assert geometry.magnification == pytest.approx(1.34841475)
    merged, whole = _read_fan(shared_data / "derived" / "htc2022_tb_merged.mat")
    assert merged.shape == (549, 1, 560)
    # A ray is seen twice, from both ends: at column c of view a, and at the mirrored column of the view a half turn
    # and twice its angle in the fan further on. With angles or columns the wrong way round, these would differ.
    assert whole.centre_px is not None
    sinogram = merged.projections[:, 0]
    differences = {}
    for sign in (1, -1):
        fan = sign * np.arctan((np.arange(560) - whole.centre_px) * whole.pixel_mm / whole.source_detector_mm)
        other = np.rad2deg(whole.angle_rad)[:, None] + 180.0 + 2.0 * np.rad2deg(fan)[None, :]
        view = np.rint((other - 27.0) % 360.0 * 2.0).astype(int)
        place = np.full(721, -1)
        place[np.rint((np.rad2deg(whole.angle_rad) - 27.0) * 2.0).astype(int)] = np.arange(549)
        seen = place[np.minimum(view, 720)]
        again = sinogram[seen, np.arange(559, -1, -1)[None, :]]
        differences[sign] = float(np.sqrt(np.mean((again - sinogram)[seen >= 0] ** 2)))
    right, wrong = differences[-1], differences[1]
    assert right < 0.05 * sinogram.max()
    assert wrong > 4 * right


def test_read_kspace_of_spirit(shared_data: Path) -> None:
    scan = _read_mri(shared_data / "mri-spirit-mat" / "brain_alias_8ch.mat")
    assert scan.shape == (1, 8, 320, 256)
    assert isinstance(scan.geometry, Cartesian)
    assert scan.geometry.sampled.mean() == pytest.approx(0.65625)
    assert scan.geometry.phase_axis == 1
    spiral = _read_mri(shared_data / "mri-spirit-mat" / "spiral.mat")
    geometry = spiral.geometry
    assert isinstance(geometry, NonCartesian)
    assert spiral.shape == (1, 8, 60, 1182)
    assert geometry.matrix == (256, 256)
    assert geometry.density is not None
    assert np.linalg.norm(geometry.trajectory, axis=-1).max() == pytest.approx(128.0, abs=1e-3)


def test_a_measured_image_is_no_kspace(shared_data: Path) -> None:
    path = shared_data / "ref-images" / "img_brain_4ch.mat"
    with pytest.raises(Incomplete, match="variables of this MATLAB file are not known") as caught:
        read(path)
    assert caught.value.missing == ("kspace",)
    assert [source.name for source in caught.value.sources] == ["img"]
    scan = _read_mri(path, Known(roles=(Role("kspace", "img"),)))
    assert any("may hold an image" in warning for warning in scan.warnings)


def test_read_low_field_with_reference_coils(shared_data: Path) -> None:
    path = shared_data / "mri-lowfield-editer" / "data_BBEMI_2D_brainslice.mat"
    scan = _read_mri(path)
    assert scan.shape == (1, 1, 512, 101)
    assert scan.interference is not None
    assert scan.interference.shape == (1, 5, 512, 101)
    assert isinstance(scan.geometry, Cartesian)
    assert scan.geometry.phase_axis == 1
    stored = scipy.io.loadmat(path)
    assert np.array_equal(scan.kspace[0, 0], stored["datafft"].astype(np.complex64))
    assert np.array_equal(scan.interference[0, 3], stored["datanoise_fft_4"].astype(np.complex64))
    two = _read_mri(path, Known(roles=(Role("interference", "datanoise_fft_[12]"),)))
    assert two.interference is not None
    assert two.interference.shape == (1, 2, 512, 101)
    assert _read_mri(path, Known(roles=(Role("interference", ""),))).interference is None


# --- which axis is which ----------------------------------------------------------------------------


def _kspace_of(path: Path, source: str = "") -> MriAcquisition:
    scan = read(path, Known(roles=(Role("kspace", source),)) if source else None)
    assert isinstance(scan, MriAcquisition)
    return scan


@pytest.mark.parametrize(
    ("others", "turned"),
    [
        ({}, False),
        ({"noise": _noise(3, 50)}, True),
        ({"noise": _noise(50, 5)}, False),
        ({"sens": _noise(12, 10, 3)}, True),
        ({"coil_maps": _noise(12, 10, 5)}, False),
    ],
)
def test_slices_and_coils_are_told_apart_by_other_variables(
    tmp_path: Path, others: dict[str, Any], turned: bool
) -> None:
    data = _noise(12, 10, 3, 5)
    scan = _kspace_of(_save(tmp_path / "s.mat", {"kspace": data, **others}))
    expected = data.transpose(3, 2, 0, 1) if turned else data.transpose(2, 3, 0, 1)
    assert np.array_equal(scan.kspace[...], expected.astype(np.complex64))
    assert any("kspace@ky,kx,coil,slice" in warning for warning in scan.warnings) is not bool(others)


def test_more_slices_than_coils_can_be_may_stand_last(tmp_path: Path) -> None:
    data = _noise(6, 5, 2, 130)
    assert _kspace_of(_save(tmp_path / "s.mat", {"kspace": data})).shape == (130, 2, 6, 5)


@pytest.mark.parametrize("axes", ["ky,kx,coil,slice", "slice, coil, ky, kx", "kx,slice,ky,coil", "coil,kz,kx,ky"])
@pytest.mark.parametrize("version", ["5", "7.3"])
def test_axes_may_be_told(tmp_path: Path, axes: str, version: str) -> None:
    data = _noise(4, 5, 6, 7)
    names = [name.strip() for name in axes.split(",")]
    scan = _kspace_of(_save(tmp_path / "s.mat", {"mine": data}, version), f"mine@{axes}")
    across = "kz" if "kz" in names else "slice"
    expected = data.transpose([names.index(name) for name in (across, "coil", "ky", "kx")])
    if across == "kz":
        expected = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(expected, axes=0), axis=0, norm="ortho"), axes=0)
    assert np.allclose(scan.kspace[...], expected, atol=1e-5)
    assert not any("third axis" in warning for warning in scan.warnings)


def test_axes_of_three_may_be_slices_of_one_coil(tmp_path: Path) -> None:
    data = _noise(8, 9, 10)
    scan = _kspace_of(_save(tmp_path / "s.mat", {"kspace": data}), "kspace@slice,ky,kx")
    assert np.array_equal(scan.kspace[:, 0], data.astype(np.complex64))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("kspace@ky,kx,coil", r"has the shape \(12, 10, 3, 5\); told are \(ky, kx, coil\)"),
        ("kspace@ky,ky,coil,slice", "tells no axes of k-space"),
        ("kspace@ky,kx,kz,slice", "tells no axes of k-space"),
        ("kspace@", "nothing tells no axes"),
        ("other@ky,kx,coil,slice", "there is no variable 'other'"),
    ],
)
def test_axes_that_cannot_be_are_refused(tmp_path: Path, source: str, said: str) -> None:
    path = _save(tmp_path / "s.mat", {"kspace": _noise(12, 10, 3, 5)})
    with pytest.raises(BadInput, match=said):
        _kspace_of(path, source)


def test_what_the_angles_tell_of_a_sinogram_is_not_told_otherwise(tmp_path: Path) -> None:
    path = _save(tmp_path / "s.mat", {"CtData": _fan()})
    with pytest.raises(BadInput, match="the angles tell which axis of its sinogram holds the views"):
        read(path, Known(transposed=True))
