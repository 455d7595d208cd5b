"""EDF and FITS images, as FabIO and Astropy write them: single ones, stacks and folders, and damaged ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from fabio.edfimage import EdfImage

from equipoise_engine.acquisition import CtAcquisition, DataState
from equipoise_engine.errors import BadInput, EquipoiseError, Unsupported
from equipoise_engine.formats import read
from equipoise_engine.formats.stacks.edf import angles_of_edf, images_of_edf, is_edf
from equipoise_engine.formats.stacks.fits import images_of_fits
from equipoise_engine.recipe import Known

VIEWS, ROWS, COLUMNS = 12, 10, 30


def images(kind: str = "<u2") -> np.ndarray:
    return np.random.default_rng(3).integers(0, 100, (VIEWS, ROWS, COLUMNS)).astype(kind)


def write_edf(path: Path, frames: np.ndarray, angles: np.ndarray | None = None) -> None:
    def header(index: int) -> dict[str, str]:
        if angles is None:
            return {"comment": "x" * 700}
        return {"motor_mne": "sx srot pmy", "motor_pos": f"1.5 {angles[index]:g} 0"}

    image = EdfImage(data=frames[0], header=header(0))
    for index in range(1, len(frames)):
        image.append_frame(data=frames[index], header=header(index))
    image.write(str(path))


# --- EDF --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"])
def test_every_type_of_an_edf_stack(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.edf"
    write_edf(path, images(kind))
    found = images_of_edf(path)
    assert is_edf(path)
    assert found.dtype.newbyteorder("=") == np.dtype(kind).newbyteorder("=")
    assert np.array_equal(np.asarray(found[...]), images(kind))


def test_an_edf_stack_with_motors_is_a_scan(tmp_path: Path) -> None:
    path = tmp_path / "s.edf"
    write_edf(path, images(), np.arange(VIEWS) * 15.0)
    found = angles_of_edf(path)
    assert found is not None
    assert found == pytest.approx(np.arange(VIEWS) * 15.0)
    scan = read(path, Known(layout="projections"))
    assert isinstance(scan, CtAcquisition)
    assert (scan.format, scan.shape) == ("EDF stack", (VIEWS, ROWS, COLUMNS))


def test_an_edf_of_another_byte_order(tmp_path: Path) -> None:
    # by the words of the format: FabIO writes the order of the machine
    values = images(">u2")[0]
    text = (
        "{\nHeaderID = EH:000001:000000:000000 ;\nByteOrder = HighByteFirst ;\nDataType = UnsignedShort ;\n"
        f"Dim_1 = {COLUMNS} ;\nDim_2 = {ROWS} ;\nSize = {values.nbytes} ;\n"
    )
    (tmp_path / "s.edf").write_bytes(text.ljust(1022).encode() + b"}\n" + values.tobytes())
    assert np.array_equal(np.asarray(images_of_edf(tmp_path / "s.edf")[0]), values)


def test_a_folder_of_edf_images(tmp_path: Path) -> None:
    for index, image in enumerate(images()):
        write_edf(tmp_path / f"tooth{index:04d}.edf", image[None], np.array([index * 15.0]))
    for name, value in (("refHST0000", 200), ("refHST0100", 210), ("darkend0000", 1)):
        write_edf(tmp_path / f"{name}.edf", np.full((1, ROWS, COLUMNS), value, np.uint16))
    scan = read(tmp_path)
    assert isinstance(scan, CtAcquisition)
    assert (scan.shape, scan.state) == ((VIEWS, ROWS, COLUMNS), DataState.COUNTS)
    assert scan.flats is not None
    assert scan.darks is not None
    assert (scan.flats.shape[0], scan.darks.shape[0]) == (2, 1)
    assert np.degrees(scan.geometry.angle_rad) == pytest.approx(np.arange(VIEWS) * 15.0)
    assert "angles" not in scan.guessed
    one = read(tmp_path / "tooth0003.edf")
    assert isinstance(one, CtAcquisition)
    assert one.shape == scan.shape


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        (b"UnsignedShort", b"QuadrupleReal", Unsupported, "QuadrupleReal"),
        (b"Dim_1 = 30", b"Dim_1 = 99", BadInput, "takes 1980 bytes"),
        (b"Dim_1 = 30", b"Dim_1 = xy", BadInput, "'xy'"),
        (b"Dim_1 = 30", b"Dim_1 = 0 ", BadInput, "cannot be"),
    ],
)
def test_an_edf_header_that_cannot_be(
    tmp_path: Path, old: bytes, new: bytes, error: type[EquipoiseError], said: str
) -> None:
    path = tmp_path / "s.edf"
    write_edf(path, images()[:1])
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(error, match=said):
        images_of_edf(path)


# --- FITS -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_type_of_a_fits_stack(tmp_path: Path, kind: str) -> None:
    fits.PrimaryHDU(images(kind)).writeto(tmp_path / "s.fits")
    found = images_of_fits(tmp_path / "s.fits")
    assert found.dtype.newbyteorder("=") == np.dtype(kind)
    assert np.array_equal(np.asarray(found[...]), images(kind))


def test_a_fits_stack_is_a_scan(tmp_path: Path) -> None:
    fits.PrimaryHDU(images()).writeto(tmp_path / "s.fits")
    scan = read(tmp_path / "s.fits", Known(layout="projections"))
    assert isinstance(scan, CtAcquisition)
    assert (scan.format, scan.shape) == ("FITS stack", (VIEWS, ROWS, COLUMNS))


def test_fits_images_with_a_scale_and_in_an_extension(tmp_path: Path) -> None:
    hdu = fits.ImageHDU(images("i2")[0])
    hdu.header["EXTNAME"] = "it's / here"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([]), hdu]).writeto(tmp_path / "e.fits")
    assert np.array_equal(np.asarray(images_of_fits(tmp_path / "e.fits")[0]), images("i2")[0])
    scaled = fits.PrimaryHDU(images("f4")[0])
    scaled.scale("int16", bscale=0.25, bzero=3)
    scaled.writeto(tmp_path / "s.fits")
    assert np.asarray(images_of_fits(tmp_path / "s.fits")[0]) == pytest.approx(images("f4")[0], abs=0.13)


def test_a_folder_of_fits_images(tmp_path: Path) -> None:
    for index, image in enumerate(images()):
        fits.PrimaryHDU(image).writeto(tmp_path / f"IMAT_{index:05d}.fits")
    fits.PrimaryHDU(np.full((ROWS, COLUMNS), 200, np.uint16)).writeto(tmp_path / "flat_1.fits")
    scan = read(tmp_path)
    assert isinstance(scan, CtAcquisition)
    assert scan.shape == (VIEWS, ROWS, COLUMNS)
    assert scan.flats is not None


def test_fits_that_are_no_images(tmp_path: Path) -> None:
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(images()[0])]).writeto(tmp_path / "c.fits")
    with pytest.raises(Unsupported, match="compressed"):
        images_of_fits(tmp_path / "c.fits")
    fits.PrimaryHDU().writeto(tmp_path / "n.fits")
    with pytest.raises(BadInput, match="no image"):
        images_of_fits(tmp_path / "n.fits")
    fits.PrimaryHDU(np.zeros((2, 3, 4, 5), np.float32)).writeto(tmp_path / "4.fits")
    with pytest.raises(Unsupported, match=r"\(2, 3, 4, 5\)"):
        images_of_fits(tmp_path / "4.fits")


# --- both, damaged ----------------------------------------------------------------------------------


def written(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith("edf"):
        write_edf(path, images(), np.arange(VIEWS) * 15.0)
    else:
        fits.PrimaryHDU(images()).writeto(path)
    return path


@pytest.mark.parametrize("share", [0.01, 0.2, 0.6, 0.8])
@pytest.mark.parametrize("name", ["s.edf", "s.fits"])
def test_a_stack_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = written(tmp_path, name)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(EquipoiseError, match=name):
        read(path)


@pytest.mark.parametrize("name", ["s.edf", "s.fits"])
def test_flipped_bits_never_crash(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    raw = path.read_bytes()
    random = np.random.default_rng(4)
    for place in random.integers(0, 900, 150):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            scan = read(path)
            assert isinstance(scan, CtAcquisition)
            np.asarray(scan.projections[0])
        except EquipoiseError:
            pass
