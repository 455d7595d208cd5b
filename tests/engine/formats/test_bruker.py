"""Folders of ParaVision: a measured one against the vendor's own images, and it with parameters and values changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from equipoise_engine.acquisition import MriAcquisition
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.geometry import Cartesian
from equipoise_engine.recipe import Known, Role

SIZE, SLICES = 128, 3


class _Copy:
    """A copy of the measured folder whose parameters and values can be changed."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.path = folder / "7"
        self.path.mkdir()
        for name in ("acqp", "method", "fid"):
            shutil.copyfile(source / name, self.path / name)
        self.values = np.fromfile(self.path / "fid", "<i4")

    def change(self, name: str, value: str) -> None:
        for file in ("acqp", "method"):
            text = (self.path / file).read_text(encoding="latin-1")
            start = text.find(f"##${name}=")
            if start < 0:
                continue
            end = min(at for at in (text.find("\n##", start), text.find("\n$$", start)) if at > 0)
            changed = f"{text[:start]}##${name}={value}{text[end:]}" if value else text[:start] + text[end + 1 :]
            (self.path / file).write_text(changed, encoding="latin-1")
            return
        with (self.path / "acqp").open("a", encoding="latin-1") as stream:
            stream.write(f"\n##${name}={value}\n")

    def write(self, values: np.ndarray) -> None:
        values.tofile(self.path / "fid")

    def original(self) -> np.ndarray:
        """Return the k-space before anything is changed."""
        return np.asarray(self.read()[0].kspace[:])

    def read(self, known: Known | None = None) -> tuple[MriAcquisition, Cartesian]:
        return _read(self.path, known)


def _read(path: Path, known: Known | None = None) -> tuple[MriAcquisition, Cartesian]:
    scan = read(path, known)
    assert isinstance(scan, MriAcquisition)
    assert isinstance(scan.geometry, Cartesian)
    return scan, scan.geometry


def _image(plane: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(plane, axes=(-2, -1))), axes=(-2, -1))


@pytest.fixture
def source(shared_data: Path) -> Path:
    return shared_data / "mri-bruker-flash" / "100"


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> _Copy:
    return _Copy(source, tmp_path)


def test_images_are_those_of_the_vendor(source: Path) -> None:
    stored = np.fromfile(source / "pdata" / "1" / "2dseq", "<i2").reshape(SLICES, SIZE, SIZE)
    transposed = (False, True, True)  # RECO_transposition: ParaVision turns these slices
    scan, geometry = _read(source)
    assert (scan.format, scan.shape, scan.path) == ("Bruker ParaVision", (SLICES, 1, SIZE, SIZE), source)
    assert (geometry.field_of_view_mm, geometry.slice_mm, geometry.calibrated) == ((25.0, 25.0), 1.0, True)
    assert geometry.sampled.all()
    for index in range(SLICES):
        found = np.abs(_image(np.asarray(scan.kspace[index, 0])))
        found = found.T if transposed[index] else found
        assert np.corrcoef(found.ravel(), stored[index].ravel())[0, 1] > 0.9999999
    said = " ".join(f"{m.role} {m.source} {m.reason}" for m in scan.matched) + " ".join(scan.warnings)
    assert "imaging" not in said  # the name of the account that measured it


def test_the_folder_around_it_or_a_file_in_it_name_it(source: Path) -> None:
    for path in (source.parent, source / "fid", source / "acqp"):
        assert read(path).path == source


def test_several_scans_are_listed(copy: _Copy) -> None:
    shutil.copytree(copy.path, copy.path.parent / "8")
    with pytest.raises(BadInput, match=r"2 scans of ParaVision \(7, 8\)"):
        read(copy.path.parent)


def test_blocks_of_coils_are_padded(copy: _Copy) -> None:
    # three coils of 128 samples take 3072 bytes: three blocks; of 100 samples, 2400 bytes in three blocks as well
    original = copy.original()
    lines = copy.values.reshape(-1, 2 * SIZE)
    padded = np.zeros((lines.shape[0], 1024), "<i4")
    for coil in range(3):
        padded[:, coil * 2 * SIZE : (coil + 1) * 2 * SIZE] = (coil + 1) * lines
    copy.write(padded[:, :768])
    copy.change("PVM_EncNReceivers", "3")
    scan, _ = copy.read()
    for coil in range(3):
        assert np.allclose(scan.kspace[:, coil], (coil + 1) * original[:, 0])


def test_blocks_have_1024_bytes(copy: _Copy) -> None:
    original = copy.original()
    lines = copy.values.reshape(-1, 2 * SIZE)
    copy.write(np.pad(lines[:, 28:228], ((0, 0), (0, 56))))  # 100 samples
    copy.change("ACQ_size", "( 2 )\n200 128")
    copy.change("PVM_Matrix", "( 2 )\n100 128")
    copy.change("PVM_Fov", "( 2 )\n25 25")
    scan, _ = copy.read()
    assert np.array_equal(scan.kspace[1], original[1][..., 14:114])


def test_big_endian_values_and_repetitions(copy: _Copy) -> None:
    original = copy.original()
    copy.write(np.concatenate([copy.values, 2 * copy.values]).astype(">i4"))
    copy.change("BYTORDA", "big")
    copy.change("NR", "2")
    first, _ = copy.read()
    second, _ = copy.read(Known(roles=(Role("kspace", "repetition 2"),)))
    assert np.array_equal(first.kspace[0], original[0])
    assert np.array_equal(second.kspace[0], 2 * original[0])
    assert any("2 repetitions; the first is read" in warning for warning in first.warnings)


def test_trains_of_echoes(copy: _Copy) -> None:
    original = copy.original()
    # as RARE with four echoes measures: lines of a train lie together, objects between trains
    lines = copy.values.reshape(SIZE, SLICES, 2 * SIZE)
    steps = np.arange(SIZE).reshape(4, SIZE // 4).T.reshape(-1)  # every 32nd line in a train
    trains = lines[steps].reshape(SIZE // 4, 4, SLICES, 2 * SIZE).transpose(0, 2, 1, 3)
    copy.write(np.ascontiguousarray(trains))
    copy.change("ACQ_rare_factor", "4")
    copy.change("ACQ_phase_factor", "4")
    copy.change("PVM_EncSteps1", "( 128 )\n" + " ".join(str(n - 64) for n in steps))
    scan, _ = copy.read()
    for index in range(SLICES):
        assert np.array_equal(scan.kspace[index], original[index])


def test_an_offset_along_the_phase_moves_the_image(copy: _Copy) -> None:
    original = copy.original()
    copy.change("ACQ_phase1_offset", f"( 3 )\n0 {25 / SIZE * 10} 0")
    scan, _ = copy.read()
    before, after = (np.abs(_image(planes[1, 0])) for planes in (original, np.asarray(scan.kspace[:])))
    assert np.allclose(after, np.roll(before, 10, axis=0), atol=1e-4 * before.max())
    assert np.array_equal(scan.kspace[0], original[0])


def test_three_dimensions_become_slices(copy: _Copy) -> None:
    planes = np.random.default_rng(0).integers(-1000, 1000, (4, SIZE, 2 * SIZE)).astype("<i4")
    copy.write(planes)
    for name, value in (
        ("ACQ_size", "( 3 )\n256 128 4"),
        ("NI", "1"),
        ("ACQ_obj_order", "( 1 )\n0"),
        ("PVM_Matrix", "( 3 )\n128 128 4"),
        ("PVM_Fov", "( 3 )\n25 25 8"),
        ("PVM_EncSteps2", "( 4 )\n-2 -1 0 1"),
    ):
        copy.change(name, value)
    scan, geometry = copy.read()
    expected = planes.astype(np.float32).view(np.complex64)
    expected = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(expected, axes=0), axis=0, norm="ortho"), axes=0)
    assert np.allclose(scan.kspace[:, 0], expected, rtol=1e-4, atol=0.01)
    assert geometry.slice_mm == 2.0


def test_the_vendors_short_form_of_repeated_values(copy: _Copy) -> None:
    copy.change("ACQ_phase1_offset", "( 3 )\n@3*(0)")
    copy.read()
    copy.change("ACQ_phase1_offset", "( 3 )\n@999999999*(0.12345678)")
    with pytest.raises(BadInput, match="repeats a value 999999999 times"):
        copy.read()


@pytest.mark.parametrize("method", ["<Bruker:EPI>", "DtiEpi", "<User:UTE3D>", "SPIRAL"])
def test_other_methods_are_named(copy: _Copy, method: str) -> None:
    copy.change("Method", method)
    with pytest.raises(Unsupported, match="does not measure lines of Cartesian k-space"):
        copy.read()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NI", "5", "is no order of 5 objects|take"),
        ("NI", "2000000000", "NI is 2000000000; at most 65536"),
        ("ACQ_size", "( 2 )\n256 0", "ACQ_size is"),
        ("ACQ_size", "( 2 )\n512 128", "393216 bytes on disk, but .* take 786432"),
        ("PVM_EncSteps1", "( 3 )\n1 2 3", "PVM_EncSteps1 has 3 whole steps, 128 were measured"),
        ("PVM_Matrix", "( 2 )\n0 128", "a matrix of"),
        ("PVM_Fov", "( 2 )\n-1 25", "a matrix of"),
        ("NR", "1.5", "a whole number from 1 is needed"),
        ("PVM_Fov", "( 2 )\nnan 25", "not finite"),
        ("PVM_Fov", "( 2 )\nwide 25", "parameters of ParaVision are damaged"),
    ],
)
def test_parameters_that_do_not_fit_are_named(copy: _Copy, name: str, value: str, said: str) -> None:
    copy.change(name, value)
    with pytest.raises(BadInput, match=said):
        copy.read()


def test_newer_software_is_named(copy: _Copy) -> None:
    (copy.path / "fid").rename(copy.path / "rawdata.job0")
    with pytest.raises(Unsupported, match="ParaVision 360"):
        copy.read()


def test_missing_parameters_and_unknown_types_are_named(copy: _Copy) -> None:
    copy.change("GO_raw_data_format", "GO_64BIT_FLOAT")
    with pytest.raises(Unsupported, match="GO_64BIT_FLOAT"):
        copy.read()
    (copy.path / "method").unlink()
    with pytest.raises(BadInput, match="7/method is missing"):
        copy.read()


def test_damage_never_escapes(copy: _Copy) -> None:
    random = np.random.default_rng(1)
    whole = {name: (copy.path / name).read_bytes() for name in ("acqp", "method", "fid")}
    for number in range(60):
        name = ("acqp", "method", "fid")[number % 3]
        changed = bytearray(whole[name])
        for place in random.integers(0, len(changed), 20):
            changed[place] = int(random.integers(256))
        (copy.path / name).write_bytes(changed[: len(changed) if number % 4 else int(random.integers(len(changed)))])
        try:
            scan, _ = copy.read()
            assert scan.kspace[0].size
        except EquipoiseError:
            continue
        finally:
            (copy.path / name).write_bytes(whole[name])
