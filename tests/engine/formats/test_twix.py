"""Siemens raw data: a measured scan, and the same scan with lines changed one by one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian

CHANNELS, SAMPLES, LINES = 2, 320, 160
HEADER, CHANNEL_HEADER = 192, 32
LINE_BYTES = HEADER + CHANNELS * (CHANNEL_HEADER + 8 * SAMPLES)
# Places in the header of a line, in bytes.
FLAGS, COUNTERS = 40, 52
LINE_NUMBER, AVERAGE, PARTITION, REPETITION = 0, 2, 6, 12


class _Copy:
    """A copy of the measured scan whose lines can be changed."""

    def __init__(self, shared_data: Path, folder: Path) -> None:
        self.path = folder / "scan.dat"
        self.data = bytearray((shared_data / "mri-siemens-twix" / "gre.dat").read_bytes())
        (offset,) = struct.unpack_from("<Q", self.data, 16)
        (length,) = struct.unpack_from("<I", self.data, offset)
        self.start = offset + length

    def flag(self, line: int, bit: int) -> None:
        at = self.start + line * LINE_BYTES + FLAGS
        struct.pack_into("<Q", self.data, at, struct.unpack_from("<Q", self.data, at)[0] | 1 << bit)

    def count(self, line: int, which: int, value: int) -> None:
        struct.pack_into("<H", self.data, self.start + line * LINE_BYTES + COUNTERS + which, value)

    def samples(self, line: int) -> np.ndarray:
        """Return the samples of a line `(coil, sample)`, to be written into."""
        first = self.start + line * LINE_BYTES + HEADER
        block = np.frombuffer(self.data, np.uint8, CHANNELS * (CHANNEL_HEADER + 8 * SAMPLES), first)
        return block.reshape(CHANNELS, -1)[:, CHANNEL_HEADER:].view("<c8")

    def read(self) -> tuple[MriAcquisition, Cartesian]:
        self.path.write_bytes(bytes(self.data))
        return _read(self.path)


def _read(path: Path) -> tuple[MriAcquisition, Cartesian]:
    scan = read(path)
    assert isinstance(scan, MriAcquisition)
    assert isinstance(scan.geometry, Cartesian)
    return scan, scan.geometry


@pytest.fixture
def copy(shared_data: Path, tmp_path: Path) -> _Copy:
    return _Copy(shared_data, tmp_path)


@pytest.fixture
def original(shared_data: Path) -> np.ndarray:
    return np.asarray(read(shared_data / "mri-siemens-twix" / "gre.dat").kspace[0])


def test_read_gradient_echo(shared_data: Path) -> None:
    scan, geometry = _read(shared_data / "mri-siemens-twix" / "gre.dat")
    assert (scan.format, scan.shape) == ("Siemens raw data", (1, 2, 160, 160))
    assert geometry.sampled.all()
    assert geometry.calibrated
    assert (geometry.field_of_view_mm, geometry.slice_mm, geometry.phase_axis) == ((200.0, 200.0), 4.0, 0)
    said = " ".join(f"{m.role} {m.source} {m.reason}" for m in scan.matched) + " ".join(scan.warnings)
    assert "xxx" not in said  # the name of the person, made unreadable


def test_oversampling_leaves_the_middle_of_the_image(copy: _Copy, original: np.ndarray) -> None:
    lines = np.stack([copy.samples(line) for line in range(LINES)], axis=1)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(lines, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    kept = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(original, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    assert np.allclose(kept, image[..., 80:240], atol=1e-5 * np.abs(image).max())


def test_reflected_lines_are_turned(copy: _Copy, original: np.ndarray) -> None:
    for line in range(0, LINES, 2):
        copy.flag(line, 24)
        samples = copy.samples(line)
        samples[:] = samples[:, ::-1].copy()
    scan, _ = copy.read()
    assert np.array_equal(scan.kspace[0], original)
    assert any("both directions" in warning for warning in scan.warnings)


def test_averages_are_averaged(copy: _Copy, original: np.ndarray) -> None:
    copy.count(100, LINE_NUMBER, 99)
    copy.count(100, AVERAGE, 1)
    scan, geometry = copy.read()
    assert not geometry.sampled[100].any()
    assert geometry.sampled.sum() == 159 * 160
    assert np.allclose(scan.kspace[0][:, 99], (original[:, 99] + original[:, 100]) / 2, atol=1e-9)
    assert not scan.kspace[0][:, 100].any()


@pytest.mark.parametrize(
    ("bit", "kind"), [(25, "noise adjustment"), (21, "phase correction navigator"), (22, "calibration")]
)
def test_lines_of_no_image_are_listed(copy: _Copy, original: np.ndarray, bit: int, kind: str) -> None:
    copy.flag(3, bit)
    scan, geometry = copy.read()
    assert not geometry.sampled[3].any()
    assert np.array_equal(scan.kspace[0][:, 4:], original[:, 4:])
    assert [m.shape for m in scan.matched if m.source == kind] == [(1,)]


def test_lines_left_out_keep_the_centre(copy: _Copy, original: np.ndarray) -> None:
    # The scan ends after line 119: as with a partial Fourier scan, the rest is zero.
    for line in range(120, LINES):
        copy.flag(line, 25)
    scan, geometry = copy.read()
    assert np.array_equal(np.flatnonzero(geometry.sampled.any(axis=1)), np.arange(120))
    assert np.array_equal(scan.kspace[0][:, :120], original[:, :120])


def test_of_repetitions_the_first_is_read(copy: _Copy) -> None:
    for line in range(80, LINES):
        copy.count(line, REPETITION, 1)
        copy.count(line, LINE_NUMBER, line - 80)
    scan, geometry = copy.read()
    assert geometry.sampled.sum() == 80 * 160
    assert any("2 repetitions; the first is read" in warning for warning in scan.warnings)


def test_three_dimensions_are_refused(copy: _Copy) -> None:
    copy.count(5, PARTITION, 1)
    with pytest.raises(Unsupported, match="three-dimensional scan of 2 partitions"):
        copy.read()


def test_values_that_are_not_finite_are_named(copy: _Copy) -> None:
    copy.samples(7)[1, 4] = np.nan
    with pytest.raises(BadInput, match=r"1 of 102400 .* slice 0"):
        copy.read()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6, 0.99])
def test_a_file_cut_short_is_refused(copy: _Copy, share: float) -> None:
    copy.path.write_bytes(bytes(copy.data))
    os.truncate(copy.path, int(len(copy.data) * share))
    with pytest.raises(BadInput, match=r"scan\.dat: measurement 1 of 1 ends at byte \d+, the file of \d+ bytes"):
        read(copy.path)


def test_a_scan_without_its_end_is_refused(copy: _Copy) -> None:
    copy.data[copy.start + 80 * LINE_BYTES :] = bytes(len(copy.data) - copy.start - 80 * LINE_BYTES)
    with pytest.raises(BadInput, match=r"scan\.dat"):
        copy.read()


def test_a_scan_without_lines_is_refused(copy: _Copy) -> None:
    for line in range(LINES):
        copy.flag(line, 25)
    with pytest.raises(BadInput, match=r"holds no imaging lines \(160 of noise adjustment\)"):
        copy.read()


def test_other_files_with_small_numbers_in_front_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(struct.pack("<IIIIQ", 0, 1, 2, 3, 100) + bytes(4000))
    with pytest.raises(Unsupported, match="unknown kind"):
        read(tmp_path / "a.dat")
