"""Siemens raw data: a measured scan, and the same scan with lines changed one by one."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from twixtools import mdh_def

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known, Role

CHANNELS, SAMPLES, LINES = 2, 320, 160
HEADER, CHANNEL_HEADER = 192, 32
LINE_BYTES = HEADER + CHANNELS * (CHANNEL_HEADER + 8 * SAMPLES)
# Places in the header of a line, in bytes.
FLAGS, COUNTERS = 40, 52
LINE_NUMBER, AVERAGE, REPETITION = 0, 2, 12


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


def _read(path: Path, known: Known | None = None) -> tuple[MriAcquisition, Cartesian]:
    scan = read(path, known)
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
    ("bit", "kind"), [(21, "phase correction navigator"), (14, "phase stabilisation"), (51, "dummy")]
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


def test_noise_adjustment_lines_are_noise(copy: _Copy, original: np.ndarray) -> None:
    noise = copy.samples(3).copy()
    copy.flag(3, 25)
    scan, geometry = copy.read()
    assert not geometry.sampled[3].any()
    assert scan.noise is not None
    assert np.array_equal(scan.noise, noise)
    assert np.array_equal(scan.kspace[0][:, 4:], original[:, 4:])
    assert read(copy.path, Known(roles=(Role("noise", ""),))).noise is None  # type: ignore[union-attr]
    with pytest.raises(BadInput, match="'other' cannot be told as the noise"):
        read(copy.path, Known(roles=(Role("noise", "other"),)))


def test_reference_lines_fill_in_where_none_was_measured(copy: _Copy, original: np.ndarray) -> None:
    copy.flag(3, 22)
    copy.flag(80, 22)
    copy.count(80, LINE_NUMBER, 81)  # which is an imaging line as well
    scan, geometry = copy.read()
    assert np.array_equal(np.flatnonzero(~geometry.sampled.any(axis=1)), [80])
    kept = np.arange(LINES) != 80
    assert np.array_equal(scan.kspace[0][:, kept], original[:, kept])
    assert {m.role: m.shape for m in scan.matched}["calibration"] == (1,)
    assert any("1 reference lines fill in" in warning for warning in scan.warnings)


def test_another_repetition_may_be_told(copy: _Copy, original: np.ndarray) -> None:
    for line in range(80, LINES):
        copy.count(line, REPETITION, 1)
        copy.count(line, LINE_NUMBER, line)
    copy.read()
    scan, geometry = _read(copy.path, Known(roles=(Role("kspace", "repetition 2"),)))
    assert np.array_equal(np.flatnonzero(geometry.sampled.any(axis=1)), np.arange(80, LINES))
    assert np.array_equal(scan.kspace[0][:, 80:], original[:, 80:])
    assert [source.name for source in scan.sources] == ["repetition 1", "repetition 2"]


def test_oversampling_may_be_kept(copy: _Copy) -> None:
    copy.read()
    scan, geometry = _read(copy.path, Known(keep_oversampling=True))
    assert scan.shape == (1, 2, 160, 320)
    assert geometry.field_of_view_mm == (200.0, 400.0)
    assert np.array_equal(scan.kspace[0][:, 7], copy.samples(7))


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


def test_flipped_bits_never_escape(copy: _Copy) -> None:
    random = np.random.default_rng(2)
    whole = bytes(copy.data)
    for _ in range(12):
        copy.data = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            copy.data[place] ^= 1 << int(random.integers(8))
        for place in random.integers(0, HEADER, 2):  # in the headers of lines, too
            copy.data[copy.start + int(random.integers(LINES)) * LINE_BYTES + place] ^= 1 << int(random.integers(8))
        try:
            copy.read()
        except EquipoiseError:
            continue


# --- made scans -------------------------------------------------------------------------------------

BASE, EPI_LINES, COILS = 16, 12, 2
ALL = 2 * BASE


class _Made:
    """Raw data of the software VD, written line by line after the layout that twixtools declares."""

    def __init__(self, path: Path, later: bool = True) -> None:
        self.path = path
        self.later = later
        self.body = bytearray()
        self.protocol: dict[str, object] = {
            "sKSpace.lBaseResolution": BASE,
            "sKSpace.lPhaseEncodingLines": EPI_LINES,
            "sKSpace.ucTrajectory": 1,
            "sSliceArray.asSlice[0].dThickness": 3.0,
            "sSliceArray.asSlice[0].dPhaseFOV": 180.0,
            "sSliceArray.asSlice[0].dReadoutFOV": 240.0,
        }
        self.lists: dict[str, list[float]] = {}

    def line(
        self,
        samples: np.ndarray,
        *flags: str,
        centre: tuple[int, int] = (EPI_LINES // 2, 0),
        place: float = 0.0,
        off_centre: float = 0.0,
        **counters: int,
    ) -> None:
        channels, count = samples.shape
        head = mdh_def.Scan_header() if self.later else mdh_def.VB17_header()
        for flag in flags:
            mdh_def.add_flag(head, flag)
        head.SamplesInScan, head.UsedChannels, head.CenterCol = count, channels, count // 2
        head.CenterLin, head.CenterPar = centre
        head.ReadOutOffcentre = off_centre
        head.SliceData.SlicePos.Tra = place
        for name, value in counters.items():
            setattr(head.Counter, name, value)
        if self.later:
            self.body += bytes(head)
        for channel in samples:
            self.body += bytes(mdh_def.Channel_header()) if self.later else bytes(head)
            self.body += channel.astype("<c8").tobytes()

    def write(self) -> Path:
        text = "".join(f"{name} = {value}\n" for name, value in self.protocol.items())
        lists = "".join(
            f'<ParamLong."{name}"> {{ {" ".join(str(v) for v in values)} }}\n'
            if name.startswith("al")
            else f'<ParamDouble."{name}"> {{ {" ".join(str(v) for v in values)} }}\n'
            for name, values in self.lists.items()
        )
        parts = {
            "Meas": lists,
            "MeasYaps": f"### ASCCONV BEGIN ###\n{text}\n### ASCCONV END ###\n",
        }
        header = b"".join(
            name.encode() + b"\0" + struct.pack("<I", len(part)) + part.encode() for name, part in parts.items()
        )
        length = 8 + len(header)
        end = mdh_def.Scan_header() if self.later else mdh_def.VB17_header()
        mdh_def.add_flag(end, "ACQEND")
        body = bytes(self.body) + bytes(end)
        if self.later:
            scan = struct.pack("<II", length, len(parts)) + header + body
            raid = struct.pack("<IIIIQQ", 0, 1, 1, 1, 10240, len(scan)).ljust(10240, b"\0")
            self.path.write_bytes(raid + scan)
        else:
            padding = 10240 - length
            self.path.write_bytes(struct.pack("<II", 10240, len(parts)) + header + bytes(padding) + body)
        return self.path


def _noise(*shape: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def _to_image(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    image = np.fft.ifftn(np.fft.ifftshift(values, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(image, axes=axes)


def _to_kspace(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    kspace = np.fft.fftn(np.fft.ifftshift(values, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(kspace, axes=axes).astype(np.complex64)


def _cropped(kspace: np.ndarray) -> np.ndarray:
    return _to_kspace(_to_image(kspace, (-1,))[..., BASE // 2 : 3 * BASE // 2], (-1,))


@pytest.mark.parametrize("later", [True, False])
def test_echo_planar_slices(tmp_path: Path, later: bool) -> None:
    made = _Made(tmp_path / "epi.dat", later)
    data, middle = _noise(3, COILS, EPI_LINES, ALL), _noise(3, 3, COILS, ALL, seed=2)
    made.line(_noise(COILS, 64), "NOISEADJSCAN")
    for number in range(3):
        place = float((0, 8, 4)[number])  # excited in another order
        for at in range(3):  # backwards, forward, backwards, as the vendor measures them
            line = middle[number, at]
            flags = ("PHASCOR", "REFLECT") if at % 2 == 0 else ("PHASCOR",)
            made.line(line[:, ::-1] if at % 2 == 0 else line, *flags, place=place, Sli=number, Lin=EPI_LINES // 2)
        for line_number in range(EPI_LINES):
            line, backwards = data[number, :, line_number], line_number % 2 == 1
            flags = ("REFLECT",) if backwards else ()
            made.line(line[:, ::-1] if backwards else line, *flags, place=place, Sli=number, Lin=line_number)
    scan, geometry = _read(made.write())
    assert scan.shape == (3, COILS, EPI_LINES, BASE)
    for place, number in enumerate((0, 2, 1)):
        assert np.allclose(scan.kspace[place], _cropped(data[number]), atol=1e-5)
    assert geometry.slice_mm == pytest.approx(4.0)
    assert scan.reversed_lines is not None
    assert np.array_equal(scan.reversed_lines, np.arange(EPI_LINES) % 2 == 1)
    assert scan.navigators is not None
    assert scan.navigators.shape == (3, 2, COILS, BASE)
    expected = np.stack([middle[2, 1], (middle[2, 0] + middle[2, 2]) / 2])
    assert np.allclose(scan.navigators[1], _cropped(expected), atol=1e-5)
    assert scan.noise is not None
    assert scan.noise.shape == (COILS, 64)
    assert not any("both directions" in warning for warning in scan.warnings)


@pytest.mark.parametrize(("mode", "off_centre"), [(2, 0.0), (4, 0.0), (2, 15.0)])
def test_samples_on_ramps_are_put_on_a_grid(tmp_path: Path, mode: int, off_centre: float) -> None:
    made = _Made(tmp_path / "epi.dat")
    up = flat = 60.0
    made.lists = {
        "alRegridMode": [mode, 1],
        "alRegridRampupTime": [60, 0],
        "alRegridRampdownTime": [60, 0],
        "alRegridFlattopTime": [60, 0],
        "alRegridDelaySamplesTime": [10, 0],
        "aflRegridADCDuration": [160.0, 0.0],
    }
    # The gradient, and what it adds up to, finely.
    time = np.linspace(0, 180, 180001)
    rise = np.clip(np.minimum(time / up, (180 - time) / up), 0, 1)
    gradient = np.sin(np.pi / 2 * rise) if mode == 4 else rise
    area = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2)]) * (time[1] - time[0])
    at = 10 + 160 / ALL * (np.arange(ALL) + 0.5)
    position = np.interp(at, time, area)
    position -= (position[0] + position[-1]) / 2
    steps = np.interp(at, time, gradient) * 160 / ALL
    position /= steps.sum()  # cycles per pixel of the oversampled image, from -0.5 to 0.5
    assert flat == up
    pixels = np.arange(ALL) - ALL // 2
    image = np.zeros((COILS, EPI_LINES, ALL), np.complex128)
    image[..., BASE // 2 : 3 * BASE // 2] = _noise(COILS, EPI_LINES, BASE)
    uneven = image @ np.exp(-2j * np.pi * pixels[:, None] * position[None])
    even = image @ np.exp(-2j * np.pi * pixels[:, None] * ((np.arange(ALL) - (ALL - 1) / 2) / ALL)[None])
    # Off the centre, the receiver turns as if the gradient were constant.
    index = np.arange(ALL) - (ALL - 1) / 2
    turn = np.diff(position).max() * index - position
    uneven = uneven * np.exp(-2j * np.pi * off_centre * turn * BASE / 240.0)
    for number in range(EPI_LINES):
        backwards = number % 2 == 1
        # a line that is read backwards has its samples at the same times, from the other end
        samples = uneven[:, number, ::-1] if backwards else uneven[:, number]
        flags = ("REFLECT",) if backwards else ()
        made.line(samples, *flags, Lin=number, off_centre=off_centre)
    scan, _ = _read(made.write(), Known(keep_oversampling=True))
    found = np.abs(_to_image(np.asarray(scan.kspace[0]), (-1,)))
    assert np.allclose(found, np.abs(_to_image(even, (-1,))), atol=0.02 * np.abs(even).max())
    assert any(match.role == "ramp sampling" for match in scan.matched)


def test_three_dimensions_become_slices(tmp_path: Path) -> None:
    made = _Made(tmp_path / "scan.dat")
    made.protocol |= {"sKSpace.lPartitions": 6, "sKSpace.lImagesPerSlab": 4}
    image = _noise(COILS, 6, EPI_LINES, ALL)
    data = _to_kspace(image, (1, 2, 3))
    for partition in range(6):
        for number in range(EPI_LINES):
            made.line(data[:, partition, number], centre=(EPI_LINES // 2, 3), Lin=number, Par=partition)
    scan, _ = _read(made.write())
    assert scan.shape == (4, COILS, EPI_LINES, BASE)
    for index in range(4):
        assert np.allclose(scan.kspace[index], _cropped(_to_kspace(image[:, 1 + index], (1, 2))), atol=1e-5)


@pytest.mark.parametrize("same", [True, False])
def test_noise_of_the_measurement_before(tmp_path: Path, same: bool) -> None:
    before, scan = _Made(tmp_path / "noise.dat"), _Made(tmp_path / "scan.dat")
    noise, data = _noise(COILS, 64), _noise(COILS, EPI_LINES, ALL, seed=3)
    before.line(noise, "NOISEADJSCAN")
    for number in range(EPI_LINES):
        scan.line(data[:, number], Lin=number)
    if not same:  # another coil
        before.body[192 + 24] = 7
    parts = [made.write().read_bytes()[10240:] for made in (before, scan)]
    entries = struct.pack("<IIQQ", 1, 1, 10240, len(parts[0])).ljust(152, b"\0")
    entries += struct.pack("<IIQQ", 2, 2, 10240 + len(parts[0]), len(parts[1]))
    path = tmp_path / "both.dat"
    path.write_bytes((struct.pack("<II", 0, 2) + entries).ljust(10240, b"\0") + b"".join(parts))
    found, _ = _read(path)
    assert np.allclose(found.kspace[0], _cropped(data), atol=1e-5)
    if same:
        assert found.noise is not None
        assert np.array_equal(found.noise, noise)
    else:
        assert found.noise is None
