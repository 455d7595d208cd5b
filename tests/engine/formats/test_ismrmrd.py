"""ISMRMRD files as the format's own library writes them, damaged ones, and ours as it reads them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.formats.mri.ismrmrd_writer import write_ismrmrd
from equipoise_engine.geometry import Cartesian, NonCartesian
from equipoise_engine.progress import unwatched
from equipoise_engine.recipe import Known, Role

COILS, ROWS, COLUMNS = 3, 12, 16  # with twofold oversampling: 8 pixels along the readout


def _noise(*shape: int, seed: int = 5) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def _image(kspace: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    values = np.fft.ifftn(np.fft.ifftshift(kspace, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(values, axes=axes)


def _kspace(image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    values = np.fft.fftn(np.fft.ifftshift(image, axes=axes), axes=axes, norm="ortho")
    return np.fft.fftshift(values, axes=axes).astype(np.complex64)


class _Writer:
    """A file of the format's own library, written readout by readout."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[ismrmrd.Acquisition] = []

    def add(
        self,
        samples: np.ndarray,
        *flags: int,
        traj: np.ndarray | None = None,
        head: dict[str, Any] | None = None,
        **counters: int,
    ) -> None:
        names = {"line": "kspace_encode_step_1", "partition": "kspace_encode_step_2"}
        line = ismrmrd.Acquisition.from_array(samples.astype(np.complex64), traj)
        line.center_sample = samples.shape[1] // 2
        for name, value in (head or {}).items():
            setattr(line, name, value)
        for name, value in counters.items():
            setattr(line.idx, names.get(name, name), value)
        for flag in flags:
            line.set_flag(flag)
        self.lines.append(line)

    def write(
        self,
        encoded: tuple[int, int, int] = (COLUMNS, ROWS, 1),
        encoded_mm: tuple[float, float, float] = (400.0, 300.0, 5.0),
        shown: tuple[int, int, int] = (COLUMNS // 2, ROWS, 1),
        shown_mm: tuple[float, float, float] = (200.0, 300.0, 5.0),
        trajectory: str = "cartesian",
        centre: tuple[int, int] | None = None,
    ) -> Path:
        xsd = ismrmrd.xsd
        space = [
            xsd.encodingSpaceType(
                matrixSize=xsd.matrixSizeType(**dict(zip("xyz", matrix, strict=True))),
                fieldOfView_mm=xsd.fieldOfViewMm(**dict(zip("xyz", extent, strict=True))),
            )
            for matrix, extent in ((encoded, encoded_mm), (shown, shown_mm))
        ]
        limits = xsd.encodingLimitsType()
        if centre is not None:
            limits.kspace_encoding_step_1 = xsd.limitType(minimum=0, maximum=encoded[1] - 1, center=centre[0])
            limits.kspace_encoding_step_2 = xsd.limitType(minimum=0, maximum=encoded[2] - 1, center=centre[1])
        encoding = xsd.encodingType(
            encodedSpace=space[0],
            reconSpace=space[1],
            encodingLimits=limits,
            trajectory=xsd.trajectoryType(trajectory),
        )
        header = xsd.ismrmrdHeader(
            experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63870000),
            encoding=[encoding],
        )
        self.path.unlink(missing_ok=True)
        with ismrmrd.Dataset(str(self.path), "dataset") as dataset:
            dataset.write_xml_header(header.toXML("utf-8"))
            for line in self.lines:
                dataset.append_acquisition(line)
        return self.path


@pytest.fixture
def writer(tmp_path: Path) -> _Writer:
    return _Writer(tmp_path / "scan.h5")


@pytest.fixture
def whole() -> np.ndarray:
    """Return k-space `(coil, ky, kx)` with twofold oversampling of the readout."""
    return _noise(COILS, ROWS, COLUMNS)


def _cropped(kspace: np.ndarray) -> np.ndarray:
    """Return k-space without twofold oversampling."""
    columns = kspace.shape[-1]
    image = _image(kspace, (-1,))[..., columns // 4 : 3 * columns // 4]
    return _kspace(image, (-1,))


def _read(path: Path, known: Known | None = None) -> tuple[MriAcquisition, Cartesian]:
    scan = read(path, known)
    assert isinstance(scan, MriAcquisition)
    assert isinstance(scan.geometry, Cartesian)
    return scan, scan.geometry


def test_lines_in_any_order(writer: _Writer, whole: np.ndarray) -> None:
    for line in np.random.default_rng(0).permutation(ROWS):
        writer.add(whole[:, line], line=line)
    scan, geometry = _read(writer.write())
    assert (scan.format, scan.shape) == ("ISMRMRD", (1, COILS, ROWS, COLUMNS // 2))
    assert np.allclose(scan.kspace[0], _cropped(whole), atol=1e-5)
    assert geometry.sampled.all()
    assert geometry.calibrated
    assert (geometry.field_of_view_mm, geometry.slice_mm, geometry.phase_axis) == ((300.0, 200.0), 5.0, 0)


def test_oversampling_may_be_kept(writer: _Writer, whole: np.ndarray) -> None:
    for line in range(ROWS):
        writer.add(whole[:, line], line=line)
    scan, geometry = _read(writer.write(), Known(keep_oversampling=True))
    assert np.array_equal(scan.kspace[0], whole)
    assert geometry.field_of_view_mm == (300.0, 400.0)


def test_slices_are_put_in_order_by_their_places(writer: _Writer) -> None:
    data = _noise(4, COILS, ROWS, COLUMNS)
    heights = [0.0, 14.0, 7.0, 21.0]  # counted as they were excited
    for number in range(4):
        for line in range(ROWS):
            writer.add(data[number, :, line], line=line, slice=number, head={"position": (1.0, 2.0, heights[number])})
    scan, geometry = _read(writer.write())
    for place, number in enumerate((0, 2, 1, 3)):
        assert np.allclose(scan.kspace[place], _cropped(data[number]), atol=1e-5)
    assert geometry.slice_mm == pytest.approx(7.0)


def test_averages_are_averaged_and_dummies_left_out(writer: _Writer, whole: np.ndarray) -> None:
    more = _noise(COILS, ROWS, COLUMNS, seed=8)
    writer.add(whole[:, 0], ismrmrd.ACQ_IS_DUMMYSCAN_DATA)
    writer.add(whole[:, 0], ismrmrd.ACQ_IS_NAVIGATION_DATA)
    for average, data in enumerate((whole, more)):
        for line in range(ROWS):
            writer.add(data[:, line], line=line, average=average)
    scan, _ = _read(writer.write())
    assert np.allclose(scan.kspace[0], _cropped((whole + more) / 2), atol=1e-5)
    assert {m.source: m.shape for m in scan.matched if m.role == "not used"} == {"dummy": (1,), "navigator": (1,)}


def test_noise_of_another_length(writer: _Writer, whole: np.ndarray) -> None:
    noise = _noise(COILS, 50)
    for half in (noise[:, :30], noise[:, 30:]):
        writer.add(half, ismrmrd.ACQ_IS_NOISE_MEASUREMENT, head={"sample_time_us": 20.0})
    for line in range(ROWS):
        writer.add(whole[:, line], line=line, head={"sample_time_us": 5.0})
    scan, _ = _read(writer.write())
    assert scan.noise is not None
    assert np.allclose(scan.noise, 2 * noise)  # four times the bandwidth
    without, _ = _read(writer.path, Known(roles=(Role("noise", ""),)))
    assert without.noise is None


def test_calibration_lines_fill_in(writer: _Writer, whole: np.ndarray) -> None:
    other = _noise(COILS, ROWS, COLUMNS, seed=9)
    for line in range(ROWS):
        if line % 3 == 0:
            writer.add(whole[:, line], line=line)
        if 4 <= line < 8:
            writer.add(other[:, line], ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, line=line)
        if line == 9:
            writer.lines[-1].set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    scan, geometry = _read(writer.write())
    expected = np.where(np.arange(ROWS)[None, :, None] % 3 == 0, whole, 0)
    expected[:, [4, 5, 7]] = other[:, [4, 5, 7]]  # line 6 is one of the image
    assert np.allclose(scan.kspace[0], _cropped(expected), atol=1e-5)
    assert np.flatnonzero(geometry.sampled.all(axis=1)).tolist() == [0, 3, 4, 5, 6, 7, 9]


def test_of_repetitions_the_first_or_the_told_one_is_read(writer: _Writer) -> None:
    data = _noise(3, COILS, ROWS, COLUMNS)
    for repetition in range(3):
        for line in range(ROWS):
            writer.add(data[repetition, :, line], line=line, repetition=repetition)
    scan, _ = _read(writer.write())
    assert np.allclose(scan.kspace[0], _cropped(data[0]), atol=1e-5)
    assert "The scan has 3 repetitions; the first is read." in scan.warnings
    assert [source.name for source in scan.sources] == ["repetition 1", "repetition 2", "repetition 3"]
    third, _ = _read(writer.path, Known(roles=(Role("kspace", "repetition 3"),)))
    assert np.allclose(third.kspace[0], _cropped(data[2]), atol=1e-5)
    with pytest.raises(BadInput, match="no part 'repetition 4'"):
        read(writer.path, Known(roles=(Role("kspace", "repetition 4"),)))


def test_partial_fourier_and_an_asymmetric_echo_keep_the_centre(writer: _Writer, whole: np.ndarray) -> None:
    # the last three lines and the first four samples were not measured; lines are counted from 0 all the same
    for line in range(ROWS - 3):
        writer.add(whole[:, line, 4:], line=line, head={"center_sample": COLUMNS // 2 - 4})
    scan, geometry = _read(writer.write(centre=(ROWS // 2, 0)), Known(keep_oversampling=True))
    assert np.array_equal(np.flatnonzero(geometry.sampled.any(axis=1)), np.arange(ROWS - 3))
    assert np.array_equal(np.flatnonzero(geometry.sampled.any(axis=0)), np.arange(4, COLUMNS))
    assert np.array_equal(scan.kspace[0][:, : ROWS - 3, 4:], whole[:, : ROWS - 3, 4:])


def test_lines_before_the_centre_may_be_left_out(writer: _Writer, whole: np.ndarray) -> None:
    for line in range(3, ROWS):  # counted from the first that was measured
        writer.add(whole[:, line], line=line - 3)
    scan, geometry = _read(writer.write(centre=(ROWS // 2 - 3, 0)))
    assert np.flatnonzero(geometry.sampled.any(axis=1)).tolist() == list(range(3, ROWS))
    assert np.allclose(scan.kspace[0][:, 3:], _cropped(whole)[:, 3:], atol=1e-5)


def test_samples_to_discard_are_not_measured(writer: _Writer, whole: np.ndarray) -> None:
    for line in range(ROWS):
        writer.add(whole[:, line], line=line, head={"discard_pre": 2, "discard_post": 1})
    scan, geometry = _read(writer.write(), Known(keep_oversampling=True))
    assert np.flatnonzero(geometry.sampled[0]).tolist() == list(range(2, COLUMNS - 1))
    assert not scan.kspace[0][..., :2].any()


def test_three_dimensions_become_slices(writer: _Writer) -> None:
    image = _noise(COILS, 6, ROWS, COLUMNS)
    data = _kspace(image, (1, 2, 3))
    for partition in range(6):
        for line in range(ROWS):
            writer.add(data[:, partition, line], line=line, partition=partition)
    path = writer.write(
        encoded=(COLUMNS, ROWS, 6), encoded_mm=(400.0, 300.0, 12.0), shown=(8, ROWS, 4), shown_mm=(200.0, 300.0, 8.0)
    )
    scan, geometry = _read(path)
    assert scan.shape == (4, COILS, ROWS, COLUMNS // 2)  # slice oversampling is removed, too
    assert geometry.slice_mm == pytest.approx(2.0)
    for index in range(4):
        expected = _cropped(_kspace(image[:, 1 + index], (1, 2)))
        assert np.allclose(scan.kspace[index], expected, atol=1e-5)


def test_partitions_that_differ_give_slices_along_the_readout(writer: _Writer) -> None:
    image = _noise(COILS, 6, ROWS, COLUMNS)
    data = _kspace(image, (1, 2, 3))
    kept = np.random.default_rng(1).random((6, ROWS)) < 0.6
    for partition, line in np.argwhere(kept):
        writer.add(data[:, partition, line], line=line, partition=partition)
    path = writer.write(encoded=(COLUMNS, ROWS, 6), shown=(8, ROWS, 6))
    scan, geometry = _read(path)
    assert scan.shape == (COLUMNS // 2, COILS, ROWS, 6)
    assert np.array_equal(geometry.sampled, kept.T)
    expected = _kspace(image[..., COLUMNS // 4 + 3], (1, 2)) * kept
    assert np.allclose(scan.kspace[3], expected.transpose(0, 2, 1), atol=1e-5)


def test_echo_planar_lines_and_navigators_lie_forward(writer: _Writer, whole: np.ndarray) -> None:
    middle = _noise(3, COILS, COLUMNS)
    for at, line in enumerate(middle):
        flags = (ismrmrd.ACQ_IS_PHASECORR_DATA, *((ismrmrd.ACQ_IS_REVERSE,) if at % 2 else ()))
        writer.add(line[:, ::-1] if at % 2 else line, *flags)
    for line in range(ROWS):
        turned = line % 2 == 1
        flags = (ismrmrd.ACQ_IS_REVERSE,) if turned else ()
        writer.add(whole[:, line, ::-1] if turned else whole[:, line], *flags, line=line)
    scan, _ = _read(writer.write(trajectory="epi"))
    assert np.allclose(scan.kspace[0], _cropped(whole), atol=1e-5)
    assert scan.reversed_lines is not None
    assert np.array_equal(scan.reversed_lines, np.arange(ROWS) % 2 == 1)
    assert scan.navigators is not None
    assert np.allclose(scan.navigators[0], _cropped(middle), atol=1e-5)
    assert not any("both directions" in warning for warning in scan.warnings)


def test_navigators_that_start_backwards_are_averaged(writer: _Writer, whole: np.ndarray) -> None:
    middle = _noise(3, COILS, COLUMNS)
    for at, line in enumerate(middle):
        flags = (ismrmrd.ACQ_IS_PHASECORR_DATA, *((ismrmrd.ACQ_IS_REVERSE,) if at % 2 == 0 else ()))
        writer.add(line, *flags)
    for line in range(ROWS):
        writer.add(whole[:, line], *((ismrmrd.ACQ_IS_REVERSE,) if line % 2 else ()), line=line)
    scan, _ = _read(writer.write(trajectory="epi"))
    assert scan.navigators is not None
    backwards = (middle[0] + middle[2])[:, ::-1] / 2
    assert np.allclose(scan.navigators[0], _cropped(np.stack([middle[1], backwards])), atol=1e-5)


# --- trajectories -----------------------------------------------------------------------------------


def test_navigators_of_calibration_lines_are_not_those_of_the_image(writer: _Writer, whole: np.ndarray) -> None:
    middle = _noise(6, COILS, COLUMNS, seed=8)
    for at in range(6):
        backwards = (ismrmrd.ACQ_IS_REVERSE,) if at % 2 else ()
        reference = (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION,) if at < 3 else ()
        line = middle[at, :, ::-1] if backwards else middle[at]
        writer.add(line, ismrmrd.ACQ_IS_PHASECORR_DATA, *backwards, *reference, line=ROWS // 2)
    for line in range(ROWS):
        backwards = (ismrmrd.ACQ_IS_REVERSE,) if line % 2 else ()
        writer.add(whole[:, line, :: -1 if backwards else 1], *backwards, line=line)
    scan, _ = _read(writer.write(trajectory="epi"))
    assert scan.navigators is not None
    expected = np.stack([middle[4], (middle[3] + middle[5]) / 2])
    assert np.allclose(scan.navigators[0], _cropped(expected), atol=1e-5)
    assert [m.shape for m in scan.matched if m.source == "calibration"] == [(3,)]


@pytest.mark.parametrize("off_centre", [0.0, 15.0])
def test_samples_on_ramps_are_put_on_a_grid(writer: _Writer, off_centre: float) -> None:
    columns = 4 * COLUMNS
    # A gradient that rises, stays and falls for 60 us each; what it adds up to from 10 to 170 us, finely.
    time = np.linspace(0, 180, 180001)
    gradient = np.clip(np.minimum(time, 180 - time) / 60, 0, 1)
    area = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2)])
    at = 10 + 160 / columns * (np.arange(columns) + 0.5)
    position = np.interp(at, time, area)
    whole = np.interp(at, time, gradient).sum() * 160 / columns * 1e3
    # Cycles per pixel of the oversampled image, from -0.5 to 0.5.
    position = (position - (position[0] + position[-1]) / 2) / whole
    pixels, index = np.arange(columns) - columns // 2, np.arange(columns) - (columns - 1) / 2
    image = np.zeros((COILS, ROWS, columns), np.complex64)
    image[..., columns // 4 : 3 * columns // 4] = _noise(COILS, ROWS, columns // 2)
    turn = np.diff(position).max() * index - position
    for line in range(ROWS):
        sign = -1 if line % 2 else 1  # of the gradient
        samples = image[:, line] @ np.exp(-2j * np.pi * pixels[:, None] * sign * position[None])
        # The receiver turns as if the gradient were constant; a pixel has 6.25 mm.
        samples = samples * np.exp(-2j * np.pi * sign * off_centre / 6.25 * turn)
        head = {"position": (off_centre, 0, 0), "read_dir": (1, 0, 0)}
        writer.add(samples, *([ismrmrd.ACQ_IS_REVERSE] if line % 2 else []), line=line, head=head)
    path = writer.write(encoded=(columns, ROWS, 1), shown=(columns // 2, ROWS, 1), trajectory="epi")
    told = {"rampUpTime": 60, "flatTopTime": 60, "rampDownTime": 60, "acqDelayTime": 10, "numSamples": columns}
    longs = "".join(
        f"<userParameterLong><name>{n}</name><value>{v}</value></userParameterLong>" for n, v in told.items()
    )
    dwell = "<userParameterDouble><name>dwellTime</name><value>2.5</value></userParameterDouble>"
    text = f"<trajectoryDescription><identifier>ConventionalEPI</identifier>{longs}{dwell}</trajectoryDescription>"
    with h5py.File(path, "r+") as file:
        file["dataset/xml"][0] = file["dataset/xml"][0].replace(b"</encoding>", text.encode() + b"</encoding>")
    scan, _ = _read(path, Known(keep_oversampling=True))
    even = image @ np.exp(-2j * np.pi * pixels[:, None] * (index / columns)[None])
    found = np.abs(_image(np.asarray(scan.kspace[0]), (-1,)))
    assert np.allclose(found, np.abs(_image(even, (-1,))), atol=0.02 * np.abs(even).max())
    assert any(match.role == "ramp sampling" for match in scan.matched)


def test_lines_that_lack_and_lines_of_both_directions_are_told(writer: _Writer, whole: np.ndarray) -> None:
    for number in range(2):
        for line in range(ROWS - number):
            writer.add(whole[:, line], line=line, slice=number)
    writer.add(whole[:, 3, ::-1], ismrmrd.ACQ_IS_REVERSE, line=3)
    scan, _ = _read(writer.write())
    assert "1 of 2 slices lack lines that others have; there they are zero." in scan.warnings
    assert any("1 lines were measured in both directions" in warning for warning in scan.warnings)


# --- headers, and several scans in a file -----------------------------------------------------------


def test_a_centre_that_was_not_set_is_the_middle(writer: _Writer, whole: np.ndarray) -> None:
    for line in range(ROWS):
        writer.add(whole[:, line], line=line)
    scan, _ = _read(writer.write(centre=(0, 0)))
    assert np.allclose(scan.kspace[0], _cropped(whole), atol=1e-5)


def test_headers_that_are_missing_or_begin_with_an_empty_line(writer: _Writer, whole: np.ndarray) -> None:
    writer.add(whole[:, 0], line=0)
    path = writer.write()
    with h5py.File(path, "r+") as file:
        file["dataset/xml"][0] = b"\n  " + file["dataset/xml"][0]
    assert read(path).shape == (1, COILS, ROWS, COLUMNS // 2)
    with h5py.File(path, "r+") as file:
        del file["dataset/xml"]
    with pytest.raises(BadInput, match=r"scan\.h5: the header /dataset/xml is missing"):
        read(path)


def test_of_several_scans_the_first_of_an_image_or_the_told_one_is_read(writer: _Writer, whole: np.ndarray) -> None:
    for line in range(ROWS):
        writer.add(whole[:, line], line=line)
    path = writer.write()
    noise, other = _noise(COILS, 40, seed=6), _noise(COILS, ROWS, COLUMNS, seed=7)
    adjustment, later = _Writer(path.parent / "noise.h5"), _Writer(path.parent / "later.h5")
    adjustment.add(noise, ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    for line in range(ROWS):
        later.add(other[:, line], line=line)
        later.add(whole[:, line], line=line, repetition=1)
    several = path.parent / "several.h5"
    with h5py.File(several, "w") as file:
        for number, part in enumerate((adjustment.write(), path, later.write()), start=1):
            with h5py.File(part) as one:
                file.copy(one["dataset"], f"dataset_{number}")
    scan, _ = _read(several)
    assert np.allclose(scan.kspace[0], _cropped(whole), atol=1e-5)
    assert scan.noise is not None
    assert np.array_equal(scan.noise, noise)
    assert "The file has 3 scans; dataset_2 is read." in scan.warnings
    assert {source.name for source in scan.sources} == {"dataset_1", "dataset_2", "dataset_3"}
    for told, expected in (("dataset_3", other), ("dataset_3, repetition 2", whole)):
        scan, _ = _read(several, Known(roles=(Role("kspace", told),)))
        assert np.allclose(scan.kspace[0], _cropped(expected), atol=1e-5)
    with pytest.raises(BadInput, match=r"none of which is of an image"):
        read(several, Known(roles=(Role("kspace", "dataset_1"),)))
    with pytest.raises(BadInput, match="no part 'dataset_9'") as error:
        read(several, Known(roles=(Role("kspace", "dataset_9"),)))
    assert error.value.hint.endswith("The scans of the file are: dataset_1, dataset_2, dataset_3.")


def _spokes(count: int, samples: int) -> np.ndarray:
    """Return positions `(readout, sample, 2)` along (kx, ky) in cycles per pixel."""
    angle = np.arange(count) * np.pi / count
    radius = (np.arange(samples) - samples // 2) / samples
    return radius[None, :, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)[:, None]


@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1.0, "cycles per pixel"), (32.0, "cycles per field of view"), (32 / 0.24, "cycles per metre")],
)
def test_spokes(writer: _Writer, factor: float, unit: str) -> None:
    positions, data = _spokes(9, 32), _noise(COILS, 9, 32)
    for at in range(9):
        writer.add(data[:, at], traj=(factor * positions[at]).astype(np.float32), line=at)
    path = writer.write((32, 32, 1), (240.0, 240.0, 5.0), (32, 32, 1), (240.0, 240.0, 5.0), trajectory="radial")
    scan = read(path)
    assert isinstance(scan, MriAcquisition)
    geometry = scan.geometry
    assert isinstance(geometry, NonCartesian)
    assert (scan.shape, geometry.matrix, geometry.field_of_view_mm) == ((1, COILS, 9, 32), (32, 32), (240.0, 240.0))
    assert np.array_equal(scan.kspace[0], data)
    assert np.allclose(geometry.trajectory, 32 * positions[..., ::-1], atol=1e-4)
    assert any(unit in match.reason for match in scan.matched)
    chosen = read(path, Known(matrix=(48, 40))).geometry
    assert isinstance(chosen, NonCartesian)
    assert chosen.matrix == (48, 40)


def test_oversampled_spokes_have_the_pixels_of_the_image(writer: _Writer) -> None:
    positions = _spokes(9, 64)
    for at in range(9):
        writer.add(_noise(COILS, 64), traj=positions[at].astype(np.float32), line=at)
    path = writer.write((64, 9, 1), (480.0, 240.0, 5.0), (32, 32, 1), (240.0, 240.0, 5.0), trajectory="radial")
    geometry = read(path).geometry
    assert isinstance(geometry, NonCartesian)
    assert geometry.matrix == (32, 32)
    assert np.abs(geometry.trajectory).max() == pytest.approx(16.0)


def test_a_stack_of_spokes_becomes_slices(writer: _Writer) -> None:
    positions, image = _spokes(7, 32), _noise(4, COILS, 7, 32)
    data = _kspace(image, (0,))
    for partition in range(4):
        for at in range(7):
            point = np.concatenate([positions[at], np.full((32, 1), (partition - 2) / 4)], axis=-1)
            writer.add(data[partition, :, at], traj=point.astype(np.float32), line=at, partition=partition)
    scan = read(writer.write((32, 32, 4), shown=(32, 32, 4), shown_mm=(400.0, 300.0, 8.0), trajectory="radial"))
    assert isinstance(scan, MriAcquisition)
    assert np.allclose(scan.kspace[:], image, atol=1e-5)
    assert scan.geometry.slice_mm == pytest.approx(2.0)


def test_weights_in_place_of_a_third_coordinate(writer: _Writer) -> None:
    positions = _spokes(7, 32)
    for at in range(7):
        point = np.concatenate([positions[at], np.linalg.norm(positions[at], axis=-1, keepdims=True)], axis=-1)
        writer.add(_noise(COILS, 32), traj=point.astype(np.float32), line=at)
    geometry = read(writer.write((32, 32, 1), shown=(32, 32, 1), trajectory="radial")).geometry
    assert isinstance(geometry, NonCartesian)
    assert geometry.density is not None
    assert np.allclose(geometry.density, np.linalg.norm(positions, axis=-1), atol=1e-6)


def test_trajectories_that_are_not_read_are_named(writer: _Writer) -> None:
    for at in range(7):
        point = np.random.default_rng(at).uniform(-0.5, 0.5, (32, 3))
        writer.add(_noise(COILS, 32), traj=point.astype(np.float32), line=at)
    with pytest.raises(Unsupported, match="three-dimensional trajectory"):
        read(writer.write((32, 32, 32), trajectory="other"))
    writer.lines.clear()
    writer.add(_noise(COILS, 32), line=0)
    with pytest.raises(Unsupported, match="a spiral scan whose readouts do not tell"):
        read(writer.write((32, 32, 1), trajectory="spiral"))


# --- what is no scan, and damage --------------------------------------------------------------------


def test_images_are_no_raw_data(writer: _Writer) -> None:
    writer.write()
    with ismrmrd.Dataset(str(writer.path), "dataset") as dataset:
        dataset.append_image("image_0", ismrmrd.Image.from_array(np.ones((8, 8), np.float32)))
    with h5py.File(writer.path, "a") as file:
        file["dataset"].pop("data", None)
    with pytest.raises(Unsupported, match=r"images \(image_0\), without raw data"):
        read(writer.path)


def test_compressed_rows_are_named(writer: _Writer, whole: np.ndarray, tmp_path: Path) -> None:
    writer.add(whole[:, 0], line=0)
    with h5py.File(writer.write()) as source, h5py.File(tmp_path / "small.h5", "w") as file:
        group = file.create_group("dataset")
        source.copy("dataset/xml", group)
        rows = source["dataset/data"]
        group.create_dataset("data", data=rows[...], dtype=rows.dtype, chunks=(1,), compression="gzip")
    with pytest.raises(Unsupported, match="data is compressed"):
        read(tmp_path / "small.h5")


def test_lengths_that_differ_are_refused(writer: _Writer, whole: np.ndarray) -> None:
    writer.add(whole[:, 0], line=0)
    writer.add(whole[:, 1, :10], line=1)
    with pytest.raises(Unsupported, match="of different lengths"):
        read(writer.write())


def test_noise_only_is_no_scan(writer: _Writer) -> None:
    writer.add(_noise(COILS, 9), ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    with pytest.raises(BadInput, match="none of which is of an image"):
        read(writer.write())


def test_values_that_are_not_finite_are_named(writer: _Writer, whole: np.ndarray) -> None:
    whole[1, 5, 3] = np.nan
    for line in range(ROWS):
        writer.add(whole[:, line], line=line)
    with pytest.raises(BadInput, match=r"1 of 576 .* slice 0 .* \(1, 5, 3\)"):
        read(writer.write())


def _every(scan: object) -> None:
    assert isinstance(scan, MriAcquisition)
    np.asarray(scan.kspace[:])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.9, 0.99])
def test_a_file_cut_short_is_refused(writer: _Writer, whole: np.ndarray, share: float) -> None:
    for line in range(ROWS):
        writer.add(whole[:, line], line=line)
    path = writer.write()
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(EquipoiseError):
        _every(read(path))


def test_flipped_bits_never_escape(writer: _Writer, whole: np.ndarray, tmp_path: Path) -> None:
    for line in range(ROWS):
        writer.add(whole[:, line], line=line)
    data = bytearray(writer.write().read_bytes())
    random = np.random.default_rng(3)
    for number in range(120):
        changed = bytearray(data)
        for place in random.integers(0, len(changed), 3):
            changed[place] ^= 1 << int(random.integers(8))
        path = tmp_path / f"{number}.h5"
        path.write_bytes(changed)
        try:
            _every(read(path))
        except EquipoiseError:
            continue
        finally:
            path.unlink()


# --- writing ----------------------------------------------------------------------------------------


def _scan(**changes: Any) -> MriAcquisition:
    kspace = _noise(2, COILS, 9, 8)
    sampled = np.ones((9, 8), dtype=bool)
    sampled[[1, 4]] = False
    geometry = Cartesian(sampled=sampled, field_of_view_mm=(180.0, 160.0), slice_mm=4.0, phase_axis=0, calibrated=True)
    parts: dict[str, Any] = {"kspace": kspace * sampled, "geometry": geometry} | changes
    return MriAcquisition(path=Path("scan"), format="test", **parts)


def _written(scan: MriAcquisition, folder: Path) -> tuple[MriAcquisition, list[ismrmrd.Acquisition], Any]:
    path = write_ismrmrd(scan, folder / "written.h5", unwatched)
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
        lines = [dataset.read_acquisition(at) for at in range(dataset.number_of_acquisitions())]
    again = read(path)
    assert isinstance(again, MriAcquisition)
    return again, lines, header


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    scan = _scan(noise=_noise(COILS, 5000))
    again, lines, header = _written(scan, tmp_path)
    noise = [line for line in lines if line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    imaging = [line for line in lines if not line.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    assert np.array_equal(np.concatenate([line.data for line in noise], axis=1), scan.noise)
    assert len(imaging) == 14
    for line in imaging:
        values = scan.kspace[line.idx.slice][:, line.idx.kspace_encode_step_1]
        assert np.array_equal(line.data, values)
        assert (line.center_sample, line.active_channels) == (4, COILS)
    assert imaging[-1].is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    for flag, at in (
        (ismrmrd.ACQ_FIRST_IN_SLICE, [0, 7]),
        (ismrmrd.ACQ_LAST_IN_SLICE, [6, 13]),
        (ismrmrd.ACQ_FIRST_IN_ENCODE_STEP1, [0, 7]),
        (ismrmrd.ACQ_LAST_IN_ENCODE_STEP1, [6, 13]),
        (ismrmrd.ACQ_FIRST_IN_REPETITION, [0]),
        (ismrmrd.ACQ_LAST_IN_REPETITION, [13]),
    ):
        assert [number for number, line in enumerate(imaging) if line.is_flag_set(flag)] == at
        assert not any(line.is_flag_set(flag) for line in noise)
    encoding = header.encoding[0]
    assert (encoding.encodedSpace.matrixSize.x, encoding.encodedSpace.matrixSize.y) == (8, 9)
    assert (encoding.reconSpace.fieldOfView_mm.y, encoding.trajectory.value) == (180.0, "cartesian")
    assert encoding.encodingLimits.kspace_encoding_step_1.center == 4
    assert np.array_equal(again.kspace[:], scan.kspace)
    assert np.array_equal(again.noise, scan.noise)
    assert replace(again.geometry, sampled=0) == replace(scan.geometry, sampled=0)  # type: ignore[arg-type]
    assert np.array_equal(again.geometry.sampled, scan.geometry.sampled)  # type: ignore[union-attr]


@pytest.mark.parametrize("phase_axis", [0, 1])
def test_any_mask_survives(tmp_path: Path, phase_axis: int) -> None:
    sampled = np.random.default_rng(0).random((9, 8)) < 0.4
    geometry = Cartesian(sampled=sampled, field_of_view_mm=(9.0, 8.0), phase_axis=phase_axis)
    scan = _scan(kspace=_noise(2, COILS, 9, 8) * sampled, geometry=geometry)
    again, _, _ = _written(scan, tmp_path)
    assert isinstance(again.geometry, Cartesian)
    assert np.array_equal(again.kspace[:], scan.kspace)
    assert np.array_equal(again.geometry.sampled, sampled)
    assert (again.geometry.field_of_view_mm, again.geometry.calibrated) == ((9.0, 8.0), False)


def test_echo_planar_parts_survive(tmp_path: Path) -> None:
    backwards = np.arange(9) % 2 == 1
    scan = _scan(
        reversed_lines=backwards & _scan().geometry.sampled.any(axis=1),  # type: ignore[union-attr]
        navigators=_noise(2, 3, COILS, 8),
        interference=_noise(2, 2, 9, 8) * _scan().geometry.sampled,  # type: ignore[union-attr]
    )
    again, lines, header = _written(scan, tmp_path)
    assert header.encoding[0].trajectory.value == "epi"
    assert np.array_equal(again.kspace[:], scan.kspace)
    assert np.array_equal(again.reversed_lines, scan.reversed_lines)
    assert np.array_equal(again.navigators, scan.navigators)
    assert np.array_equal(again.interference, scan.interference)
    assert sum(line.is_flag_set(ismrmrd.ACQ_IS_PHASECORR_DATA) for line in lines) == 6
    turned = next(line for line in lines if line.is_flag_set(ismrmrd.ACQ_IS_REVERSE) and line.active_channels == COILS)
    assert turned.data.shape == (COILS, 8)


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_trajectory_survives(tmp_path: Path, calibrated: bool) -> None:
    positions = 32 * _spokes(9, 32)[..., ::-1]
    geometry = NonCartesian(positions, (32, 32), (240.0, 240.0), slice_mm=3.0, calibrated=calibrated)
    scan = _scan(kspace=_noise(2, COILS, 9, 32), geometry=geometry)
    again, lines, _ = _written(scan, tmp_path)
    assert np.array_equal(again.kspace[:], scan.kspace)
    assert isinstance(again.geometry, NonCartesian)
    assert np.allclose(again.geometry.trajectory, positions, atol=1e-5)
    assert (again.geometry.matrix, again.geometry.slice_mm) == ((32, 32), 3.0)
    assert again.geometry.calibrated is calibrated
    assert lines[3].traj.shape == (32, 2)
    assert np.allclose(lines[3].traj, positions[3, :, ::-1] / 32, atol=1e-6)


@pytest.mark.parametrize("even", [False, True])
def test_the_weights_of_a_trajectory_survive(tmp_path: Path, even: bool) -> None:
    positions = 32 * _spokes(9, 32)[..., ::-1]
    density = np.linalg.norm(positions, axis=-1) + np.arange(9)[:, None]
    if even:  # along each readout, as the levels of a stack are
        density = np.broadcast_to(density[:, :1], density.shape)
    geometry = NonCartesian(positions, (32, 32), (240.0, 240.0), density=density)
    again, lines, _ = _written(_scan(kspace=_noise(2, COILS, 9, 32), geometry=geometry), tmp_path)
    assert lines[3].traj.shape == (32, 3)
    assert np.allclose(lines[3].traj[:, 2], density[3])
    assert isinstance(again.geometry, NonCartesian)
    assert again.geometry.density is not None
    assert np.allclose(again.geometry.density, density)
    assert np.allclose(again.geometry.trajectory, positions, atol=1e-5)


@pytest.mark.parametrize("name", ["mri-siemens-twix/gre.dat", "mri-bart-cfl/und2x2.cfl", "mri-spirit-mat/spiral.mat"])
def test_measured_scans_survive(shared_data: Path, tmp_path: Path, name: str) -> None:
    scan = read(shared_data / name)
    assert isinstance(scan, MriAcquisition)
    again, _, _ = _written(scan, tmp_path)
    assert np.array_equal(again.kspace[:], scan.kspace[:])
    if isinstance(scan.geometry, Cartesian) and isinstance(again.geometry, Cartesian):
        assert np.array_equal(again.geometry.sampled, scan.geometry.sampled)
        assert again.geometry.phase_axis == scan.geometry.phase_axis


def test_an_older_file_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "written.h5"
    path.write_bytes(b"old")

    def stop(_progress: object) -> None:
        raise BadInput("stopped")

    with pytest.raises(BadInput, match="stopped"):
        write_ismrmrd(_scan(), path, stop)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["written.h5"]
