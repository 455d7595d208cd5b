"""Pairs of files of BART: axes, masks, three-dimensional scans, and pairs that do not fit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.mri import centred_ifft
from equipoise_engine.recipe import Known, Role


def _noise(*shape: int) -> np.ndarray:
    random = np.random.default_rng(5)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def _write(folder: Path, values: np.ndarray, name: str = "scan") -> Path:
    """Write values `(readout, first phase, second phase, coil, ...)` and return the file of the values."""
    sizes = " ".join(str(n) for n in values.shape)
    (folder / f"{name}.hdr").write_text(f"# Dimensions\n{sizes} \n# Command\nnoise\n")
    path = folder / f"{name}.cfl"
    path.write_bytes(values.astype("<c8").tobytes(order="F"))
    return path


def _read(path: Path) -> tuple[MriAcquisition, Cartesian]:
    scan = read(path)
    assert isinstance(scan, MriAcquisition)
    assert isinstance(scan.geometry, Cartesian)
    return scan, scan.geometry


def test_two_phase_encodings_are_ky_and_kx(tmp_path: Path) -> None:
    values = _noise(1, 5, 7, 3)
    path = _write(tmp_path, values)
    for named in (path, path.with_suffix(".hdr"), tmp_path):
        scan, geometry = _read(named)
        assert scan.path == path
        assert scan.shape == (1, 3, 5, 7)
        assert np.array_equal(scan.kspace[0], values[0].transpose(2, 0, 1))
        assert geometry.sampled.all()


def test_a_readout_is_kx(tmp_path: Path) -> None:
    values = _noise(7, 5, 1, 3)
    scan, geometry = _read(_write(tmp_path, values))
    assert np.array_equal(scan.kspace[0], values[:, :, 0].transpose(2, 1, 0))
    assert geometry.phase_axis == 0


def test_slices_are_the_fourteenth_dimension(tmp_path: Path) -> None:
    values = _noise(1, 5, 7, 3, *[1] * 9, 4)
    scan, _ = _read(_write(tmp_path, values))
    assert scan.shape == (4, 3, 5, 7)
    assert np.array_equal(scan.kspace[2], values[0, ..., 0, 0, 0, 0, 0, 0, 0, 0, 0, 2].transpose(2, 0, 1))
    assert np.array_equal(scan.kspace[1:3, 0, 4], values[0, 4, :, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1:3].T)


def test_a_position_is_measured_where_any_coil_is_not_zero(tmp_path: Path) -> None:
    values = _noise(1, 6, 8, 2)
    values[:, 1::2] = 0
    values[0, 2, 3, 0] = 0
    _, geometry = _read(_write(tmp_path, values))
    assert np.array_equal(geometry.sampled, np.broadcast_to((np.arange(6) % 2 == 0)[:, None], (6, 8)))
    assert geometry.phase_axis == 0


def test_three_dimensions_become_slices_along_the_readout(tmp_path: Path) -> None:
    image = _noise(6, 5, 7, 2)
    kept = np.random.default_rng(0).random((5, 7)) < 0.6
    axes = (0, 1, 2)
    shifted = np.fft.fftn(np.fft.ifftshift(image, axes=axes), axes=axes, norm="ortho")
    kspace = np.fft.fftshift(shifted, axes=axes) * kept[None, :, :, None]
    scan, geometry = _read(_write(tmp_path, kspace))
    assert scan.shape == (6, 2, 5, 7)
    assert np.array_equal(geometry.sampled, kept)
    for index in (0, 4):
        plane = np.fft.fft2(np.fft.ifftshift(image[index], axes=(0, 1)), axes=(0, 1), norm="ortho")
        expected = np.fft.fftshift(plane, axes=(0, 1)).transpose(2, 0, 1) * kept
        assert np.allclose(scan.kspace[index], expected, atol=1e-5)


def test_a_partly_measured_readout_is_refused(tmp_path: Path) -> None:
    values = _noise(6, 5, 7, 2)
    values[:2] = 0
    with pytest.raises(Unsupported, match=r"66\.7 % of the positions along the readouts"):
        read(_write(tmp_path, values))


def test_other_dimensions_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"dimension 5 \(echo\) has the size 2"):
        read(_write(tmp_path, _noise(1, 5, 7, 3, 1, 2)))


def test_a_trajectory_is_no_kspace(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="are a trajectory, not k-space"):
        read(_write(tmp_path, _noise(3, 16, 9).real + 0j))


def _spokes(readouts: int, samples: int) -> np.ndarray:
    """Return positions `(3, sample, readout)` in cycles per field of view, as bart traj -r makes them."""
    angle = np.arange(readouts) * np.pi / readouts
    radius = np.arange(samples) - samples / 2
    plane = np.stack([np.cos(angle), np.sin(angle), 0 * angle])
    return radius[None, :, None] * plane[:, None]


def test_a_trajectory_beside_it_is_followed(tmp_path: Path) -> None:
    values, positions = _noise(1, 32, 9, 3), _spokes(9, 32)
    path = _write(tmp_path, values, "ksp")
    _write(tmp_path, positions + 0j, "traj")
    for named in (path, tmp_path):  # the folder, too
        scan = read(named)
        assert isinstance(scan, MriAcquisition)
        geometry = scan.geometry
        assert isinstance(geometry, NonCartesian)
        assert (scan.path, scan.shape, geometry.matrix) == (path, (1, 3, 9, 32), (32, 32))
        assert np.array_equal(scan.kspace[0], values[0].transpose(2, 1, 0))
        # (ky, kx): the first coordinate runs along x
        assert np.allclose(geometry.trajectory, positions[1::-1].transpose(2, 1, 0), atol=1e-5)
    assert {source.name for source in scan.sources} == {"ksp.cfl", "traj.cfl"}
    finer = read(path, Known(matrix=(64, 48))).geometry
    assert isinstance(finer, NonCartesian)
    assert finer.matrix == (64, 48)
    assert isinstance(read(path, Known(roles=(Role("trajectory", ""),))).geometry, Cartesian)


def test_trajectory_and_noise_may_be_told(tmp_path: Path) -> None:
    path = _write(tmp_path, _noise(1, 32, 9, 3), "ksp")
    for name in ("one", "two"):
        _write(tmp_path, _spokes(9, 32) + 0j, name)
    noise = _noise(50, 1, 1, 3)
    _write(tmp_path, noise, "quiet")
    assert isinstance(read(path).geometry, Cartesian)  # which of the two is not known
    scan = read(path, Known(roles=(Role("trajectory", "two"), Role("noise", "quiet.cfl"))))
    assert isinstance(scan, MriAcquisition)
    assert isinstance(scan.geometry, NonCartesian)
    assert scan.noise is not None
    assert np.array_equal(scan.noise, noise[:, 0, 0].T)
    with pytest.raises(BadInput, match=r"kept in none\.cfl, which is missing"):
        read(path, Known(roles=(Role("trajectory", "none"),)))
    with pytest.raises(BadInput, match="are no trajectory of"):
        read(path, Known(roles=(Role("trajectory", "quiet"),)))


def test_three_dimensional_trajectories_are_named(tmp_path: Path) -> None:
    path = _write(tmp_path, _noise(1, 32, 9, 3), "ksp")
    _write(tmp_path, _noise(3, 32, 9).real + 0j, "traj")
    with pytest.raises(Unsupported, match="three-dimensional trajectory"):
        read(path)


@pytest.mark.parametrize("lost", [".cfl", ".hdr"])
def test_half_a_pair_names_the_other_half(tmp_path: Path, lost: str) -> None:
    path = _write(tmp_path, _noise(1, 5, 7, 3))
    path.with_suffix(lost).unlink()
    with pytest.raises(BadInput, match=rf"kept in scan\{lost}, which is missing"):
        read(path.with_suffix(".hdr" if lost == ".cfl" else ".cfl"))


def test_values_cut_short_are_counted(tmp_path: Path) -> None:
    path = _write(tmp_path, _noise(1, 5, 7, 3))
    os.truncate(path, 700)
    with pytest.raises(
        BadInput, match=r"700 bytes on disk, but the dimensions \(1, 5, 7, 3\) in scan\.hdr ask for 840"
    ):
        read(path)


@pytest.mark.parametrize("text", ["", "5 x 7", "5 0 7", "5 -1", " ".join("1" * 17), "5 7 99999999999"])
def test_dimensions_that_cannot_be_are_shown(tmp_path: Path, text: str) -> None:
    path = _write(tmp_path, _noise(1, 5, 7))
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{text}\n")
    with pytest.raises(BadInput, match=r"scan\.hdr: the dimensions read"):
        read(path)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    values = _noise(1, 5, 7, 3)
    values[0, 4, 6, 2] = np.inf
    with pytest.raises(BadInput, match=r"1 of 105 .* slice 0 .* \(2, 4, 6\)"):
        read(_write(tmp_path, values))


def test_an_image_is_suspected(tmp_path: Path) -> None:
    values = _noise(1, 32, 32)
    values[0, 2, 3] = 50
    scan, _ = _read(_write(tmp_path, values))
    assert any("(2, 3), far from the centre of k-space (16, 16)" in warning for warning in scan.warnings)


def test_read_brain_of_bart(shared_data: Path) -> None:
    import torch

    full, geometry = _read(shared_data / "mri-bart-cfl" / "full.hdr")
    part, fewer = _read(shared_data / "mri-bart-cfl" / "und2x2.cfl")
    assert full.shape == part.shape == (1, 8, 230, 180)
    assert geometry.sampled.all()
    assert fewer.sampled.mean() == pytest.approx(0.257, abs=0.001)
    assert np.array_equal(part.kspace[0][:, fewer.sampled], full.kspace[0][:, fewer.sampled])
    # the same measurement, put into an HDF5 file by others
    other = read(shared_data / "derived" / "brain8ch_fastmri_like.h5")
    assert isinstance(other, MriAcquisition)
    assert np.array_equal(other.kspace[0], full.kspace[0])
    image = torch.linalg.vector_norm(centred_ifft(torch.from_numpy(full.kspace[:])), dim=1)[0].numpy()
    assert image[60:170, 50:130].mean() > 10 * image[:10, :10].mean()


def test_a_measured_image_is_suspected(shared_data: Path) -> None:
    scan, _ = _read(shared_data / "ref-images" / "knee_l1.cfl")
    assert any("may hold an image" in warning for warning in scan.warnings)
