"""Tilt series in MRC files, as mrcfile writes them: angles in the file and beside it, and files without any."""

from __future__ import annotations

import contextlib
import gzip
import os
import struct
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from mrcfile import dtypes

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, EquipoiseError, Incomplete, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.formats.references.reference import is_reference, read_reference
from equipoise_engine.geometry import ParallelBeam
from equipoise_engine.progress import unwatched
from equipoise_engine.recipe import AngleRange, Known, Role

TILTS = np.arange(-60.0, 61.0, 3.0)
ROWS, COLUMNS = 12, 40


def series(path: Path, kind: str = "<f4", extended: bytes = b"", exttyp: bytes = b"", voxel: float = 2.5) -> np.ndarray:
    """Write counts of a ball at every tilt."""
    across = np.arange(COLUMNS)[None, None, :] - 20 - 8 * np.cos(np.radians(TILTS))[:, None, None]
    left = 36 - across**2 - (np.arange(ROWS)[None, :, None] - 6) ** 2
    images = np.rint(100 * np.exp(-0.1 * np.sqrt(np.maximum(left, 0)))).astype(kind)
    with mrcfile.new(path) as file:
        file.set_data(images)
        file.voxel_size = voxel
        if extended:
            file.set_extended_header(np.frombuffer(extended, dtype="V1"))
            file.header.exttyp = exttyp
    return images


def ct(path: Path, **known: object) -> CtAcquisition:
    scan = read(path, Known(**known))
    assert isinstance(scan, CtAcquisition)
    return scan


@pytest.mark.parametrize("kind", ["i1", "<i2", "<u2", "<f4", "<f2"])
def test_a_series_with_a_file_of_tilts(tmp_path: Path, kind: str) -> None:
    images = series(tmp_path / "s.mrc", kind)
    (tmp_path / "s.rawtlt").write_text("\n".join(f"{tilt:.2f}" for tilt in TILTS))
    scan = ct(tmp_path / "s.mrc")
    assert (scan.format, scan.shape) == ("MRC tilt series", images.shape)
    assert np.degrees(scan.geometry.angle_rad) == pytest.approx(TILTS)
    assert isinstance(scan.geometry, ParallelBeam)
    assert (scan.geometry.pixel_mm, scan.geometry.calibrated) == (pytest.approx(2.5e-7), True)
    assert np.array_equal(np.asarray(scan.projections[7]), images[7])
    assert "angles" not in scan.guessed


def test_tilts_of_a_text_file_of_the_microscope(tmp_path: Path) -> None:
    series(tmp_path / "s.mrc", "<i2")
    text = "PixelSpacing = 2.5\n\n" + "".join(f"[ZValue = {i}]\nTiltAngle = {t:.3f}\n\n" for i, t in enumerate(TILTS))
    (tmp_path / "s.mrc.mdoc").write_text(text)
    assert np.degrees(ct(tmp_path / "s.mrc").geometry.angle_rad) == pytest.approx(TILTS)


@pytest.mark.parametrize("exttyp", [b"FEI1", b"FEI2"])
def test_tilts_of_the_extended_header(tmp_path: Path, exttyp: bytes) -> None:
    kind = dtypes.get_ext_header_dtype(exttyp, "<")
    records = np.zeros(TILTS.size, dtype=kind)
    records["Metadata size"] = kind.itemsize
    records["Alpha tilt"] = TILTS
    series(tmp_path / "s.mrc", extended=records.tobytes(), exttyp=exttyp)
    assert np.degrees(ct(tmp_path / "s.mrc").geometry.angle_rad) == pytest.approx(TILTS)


def test_tilts_of_serialem(tmp_path: Path) -> None:
    # tilt times 100, then magnification / 100: flags 1 and 8, four bytes for each image
    words = np.stack([np.rint(TILTS * 100), np.full(TILTS.size, 250)], axis=1).astype("<i2")
    path = tmp_path / "s.mrc"
    series(path, "<i2", extended=words.tobytes(), exttyp=b"SERI")
    with path.open("r+b") as stream:
        stream.seek(128)
        stream.write(struct.pack("<hh", 4, 9))
    assert np.degrees(ct(path).geometry.angle_rad) == pytest.approx(TILTS)


def test_without_tilts_it_may_be_a_volume(tmp_path: Path) -> None:
    series(tmp_path / "s.mrc")
    (tmp_path / "s.tlt").write_text("1\n2\n3\n")
    with pytest.raises(Incomplete, match=r"without angles \(s\.tlt has 3\).*slices of a volume") as raised:
        ct(tmp_path / "s.mrc")
    assert raised.value.missing == ("angles",)
    told = ct(tmp_path / "s.mrc", angles=AngleRange(start_deg=-60, stop_deg=60, inclusive=True), state="counts")
    assert np.degrees(told.geometry.angle_rad) == pytest.approx(TILTS)
    assert told.state is DataState.COUNTS
    (tmp_path / "others.txt").write_text("\n".join(f"{tilt:.2f}" for tilt in TILTS))
    told = ct(tmp_path / "s.mrc", roles=(Role(role="angles", source="others.txt"),))
    assert np.degrees(told.geometry.angle_rad) == pytest.approx(TILTS)


def test_complex_values_are_refused(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "s.mrc") as file:
        file.set_data(np.zeros((4, 8, 8), np.complex64))
    with pytest.raises(Unsupported, match="complex64"):
        read(tmp_path / "s.mrc")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.99])
def test_a_series_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "s.mrc"
    series(path)
    (tmp_path / "s.tlt").write_text("\n".join(f"{tilt:.2f}" for tilt in TILTS))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadInput, match=r"s\.mrc: .*damaged or cut short"):
        read(path)


def test_flipped_bits_never_crash(tmp_path: Path) -> None:
    path = tmp_path / "s.mrc"
    series(path, "<i2")
    (tmp_path / "s.tlt").write_text("\n".join(f"{tilt:.2f}" for tilt in TILTS))
    raw = path.read_bytes()
    random = np.random.default_rng(4)
    for place in (*range(0, 224, 2), *random.integers(224, 1024, 10)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(EquipoiseError):
            np.asarray(ct(path).projections[0])


def test_a_packed_series_is_named(tmp_path: Path) -> None:
    series(tmp_path / "s.mrc")
    (tmp_path / "s.mrc.gz").write_bytes(gzip.compress((tmp_path / "s.mrc").read_bytes()))
    with pytest.raises(Unsupported, match="gzip archive"):
        read(tmp_path / "s.mrc.gz")


def test_a_volume_is_a_reference_unless_angles_are_told(tmp_path: Path) -> None:
    path = tmp_path / "volume.mrc"
    values = np.random.default_rng(5).normal(size=(6, 20, 24)).astype(np.float32)
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = 2.5
    assert is_reference(path)
    assert not is_reference(path, Known(angles=AngleRange(start_deg=0.0, stop_deg=180.0)))
    volume = read_reference(path, unwatched)
    # the first row of the file is the lowest
    np.testing.assert_array_equal(volume.data, values[:, ::-1])
    assert volume.voxel_mm == pytest.approx((2.5e-7,) * 3)
    (tmp_path / "volume.tlt").write_text("".join(f"{10 * n}\n" for n in range(6)))
    assert not is_reference(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert not is_reference(path)
    with pytest.raises(BadInput, match=r"volume\.mrc"):
        read_reference(path, unwatched)
