"""DICOM images of every layout: series, frames, mosaics, codings; and what holds no image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid

from equipoise_engine.errors import BadInput, OutOfMemory, Unsupported
from equipoise_engine.formats import hdf5
from equipoise_engine.formats.references.reference import is_reference, read_reference
from equipoise_engine.progress import unwatched
from equipoise_engine.volume import Volume

CT, MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
SERIES = "1.2.3.4"


def _volume(slices: int = 5) -> np.ndarray:
    z, y, x = np.indices((slices, 9, 13))
    return (100 * z + 10 * y + x + (x > 2) * (y > 5) * 50).astype(np.uint16)


def _image(pixels: np.ndarray, kind: str = CT, **values: object) -> Dataset:
    """Return a DICOM image; keywords add and replace elements, None leaves one out."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = UID(kind)
    made.SOPClassUID = kind
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.PatientName, made.PatientID = "Secret^Person", "SECRET"
    made.SeriesInstanceUID, made.SeriesNumber, made.InstanceNumber = SERIES, 7, 1
    made.Modality = "CT" if kind == CT else "MR"
    made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = [0.5, 0.25], 3
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit, made.PixelRepresentation = 8 * pixels.itemsize - 1, int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    made["PixelData"].VR = "OW"
    for name, value in values.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def _save(made: Dataset, path: Path) -> Path:
    made.save_as(path, enforce_file_format=True)
    return path


def _series(folder: Path, places: list[float], **values: object) -> list[Path]:
    """Write a series, whose file names and numbers say nothing about its order."""
    volume = _volume(len(places))
    files = []
    for index in np.random.default_rng(2).permutation(len(places)):
        made = _image(volume[index], ImagePositionPatient=[-3, -4, places[index]], **values)
        made.InstanceNumber = len(files) + 1
        files.append(_save(made, folder / f"im{len(files)}"))
    return files


def _read(path: Path) -> Volume:
    volume = read_reference(path, unwatched)
    assert "secret" not in json.dumps(volume.provenance).lower()
    return volume


def test_series_by_position_with_steps_of_its_own(tmp_path: Path) -> None:
    files = _series(tmp_path, [-2.0, -0.5, 1.0, 2.5, 4.0], RescaleSlope=2, RescaleIntercept=-1024)
    (tmp_path / "notes.txt").write_text("hello")
    for path in (tmp_path, files[3]):
        assert is_reference(path)
        read = _read(path)
        np.testing.assert_array_equal(read.data, 2.0 * _volume() - 1024)
        assert read.voxel_mm == (1.5, 0.5, 0.25)
        assert (read.modality, read.calibrated, read.provenance["unit"]) == ("ct", True, "HU")
        assert "notes" not in read.provenance


def test_missing_slices_are_told(tmp_path: Path) -> None:
    _series(tmp_path, [0.0, 1.0, 2.0, 4.0, 5.0])
    read = _read(tmp_path)
    assert read.voxel_mm[0] == 1.0
    assert "1 mm as a rule, 2 mm between slices 2 and 3; some may be missing" in read.provenance["notes"][0]


def test_several_images_at_each_place(tmp_path: Path) -> None:
    for echo, factor in ((1, 1), (2, 3)):
        for index, pixels in enumerate(_volume(4)):
            made = _image(
                factor * pixels, MR, ImagePositionPatient=[0, 0, 2.0 * index], InstanceNumber=10 * echo + index
            )
            _save(made, tmp_path / f"e{echo}_{index}.dcm")
    assert np.array_equal(_read(tmp_path).data, _volume(4))
    read = _read(tmp_path / "e2_1.dcm")
    np.testing.assert_array_equal(read.data, 3 * _volume(4))
    assert read.provenance["notes"] == ["up to 2 images at each of 4 places: number 2 of each was taken"]


def test_several_series_are_named_and_a_file_chooses(tmp_path: Path) -> None:
    _series(tmp_path, [0.0, 1.0])
    other = _save(_image(_volume(1)[0, :5], SeriesInstanceUID="1.2.9", SeriesNumber=9), tmp_path / "other.dcm")
    with pytest.raises(BadInput, match=r"2 series .* number 7 \(2 files, 9 x 13, as im0\).*number 9 \(1 file, 5 x 13"):
        read_reference(tmp_path, unwatched)
    assert _read(other).data.shape == (1, 5, 13)
    assert _read(tmp_path / "im1").data.shape == (2, 9, 13)


def test_localisers_are_left_out(tmp_path: Path) -> None:
    _series(tmp_path, [0.0, 1.0, 2.0])
    scout = _image(
        _volume(1)[0], ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[0, 0, 0], InstanceNumber=99
    )
    _save(scout, tmp_path / "a_scout")
    read = _read(tmp_path)
    assert read.data.shape == (3, 9, 13)
    assert "1 images of the series have another size or orientation" in read.provenance["notes"][0]
    assert _read(tmp_path / "a_scout").data.shape == (1, 9, 13)


def test_frames_of_one_file_with_groups_of_their_own(tmp_path: Path) -> None:
    volume = _volume(4)
    order = [2, 0, 3, 1]
    made = _image(volume[order], ENHANCED_MR, NumberOfFrames=4, PixelSpacing=None, ImageOrientationPatient=None)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 1
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    made.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in order:
        group, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 2.0 * index]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = index + 1, 5, "US"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    read = _read(_save(made, tmp_path / "enhanced.dcm"))
    np.testing.assert_array_equal(read.data, volume * np.arange(1.0, 5.0)[:, None, None] + 5)
    assert read.voxel_mm == (2.0, 0.5, 0.25)
    assert read.modality == "mri"


@pytest.mark.parametrize("number_in", ["element", "header"])
def test_mosaics(tmp_path: Path, number_in: str) -> None:
    volume = _volume(7)
    tiles = np.zeros((3, 3, 9, 13), np.uint16)
    tiles.reshape(9, 9, 13)[:7] = volume
    mosaic = tiles.transpose(0, 2, 1, 3).reshape(27, 39)
    made = _image(mosaic, MR, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"], SpacingBetweenSlices=3.5)
    if number_in == "element":
        made.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 7)
    else:
        text = b"NumberOfImagesInMosaic".ljust(64, b"\0") + bytes(20) + bytes(16) + b"7".ljust(12, b"\0")
        made.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", b"SV10" + text)
    read = _read(_save(made, tmp_path / "mosaic.ima"))
    np.testing.assert_array_equal(read.data, volume)
    assert read.voxel_mm == (3.5, 0.5, 0.25)


def test_codings_and_polarity(tmp_path: Path) -> None:
    pixels = _volume(1)[0]
    packed = _image(pixels)
    packed.compress(RLELossless)
    np.testing.assert_array_equal(_read(_save(packed, tmp_path / "rle.dcm")).data[0], pixels)
    white = _image(pixels, PhotometricInterpretation="MONOCHROME1", SeriesInstanceUID="1.2.5")
    np.testing.assert_array_equal(_read(_save(white, tmp_path / "white.dcm")).data[0], 65535.0 - pixels)
    other = _image(pixels, SeriesInstanceUID="1.2.6")
    other.file_meta.TransferSyntaxUID = JPEGLSLossless
    other.PixelData = pydicom.encaps.encapsulate([pixels.tobytes()])
    other["PixelData"].VR = "OB"
    other["PixelData"].is_undefined_length = True
    with pytest.raises(Unsupported, match=r"ls\.dcm: the image is compressed with JPEG-LS Lossless .*1\.2\.840"):
        read_reference(_save(other, tmp_path / "ls.dcm"), unwatched)


def test_damage_says_nothing_of_the_patient(tmp_path: Path) -> None:
    path = _save(_image(_volume(1)[0]), tmp_path / "whole.dcm")
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(BadInput, match=r"takes 234 bytes, but 184 are stored|cut short") as caught:
        read_reference(path, unwatched)
    assert "secret" not in (caught.value.message + caught.value.hint).lower()
    path.write_bytes(whole[:1200].replace(b"PatientID", b"") + b"\xff" * 40)
    with pytest.raises((BadInput, Unsupported)):
        read_reference(path, unwatched)


def test_more_frames_than_the_file_or_the_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(_image(_volume(1)[0], NumberOfFrames=2_000_000_000), tmp_path / "many.dcm")
    with pytest.raises(BadInput, match="2000000000 frames of 9 x 13 do not fit"):
        read_reference(path, unwatched)
    path = _save(_image(_volume(1)[0], SeriesInstanceUID="1.2.9"), tmp_path / "one.dcm")
    monkeypatch.setattr(hdf5.psutil, "virtual_memory", lambda: type("Free", (), {"available": 100})())
    with pytest.raises(OutOfMemory):
        read_reference(path, unwatched)


# --- real ones --------------------------------------------------------------------------------------------


def test_real_series_without_preamble(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "ref-dicom-ct"
    read = _read(folder / "1998052815591152.ct")
    assert read.data.shape == (10, 512, 512)
    assert read.voxel_mm == pytest.approx((5.0, 0.69, 0.69))
    assert read.data.min() == -1500
    # the highest position comes last, and is what the file of it holds
    last = pydicom.dcmread(folder / "1998052815582995.ct", force=True)
    assert float(last.ImagePositionPatient[2]) == 40.5
    stored = np.frombuffer(last.PixelData, "<i2").reshape(512, 512)
    np.testing.assert_array_equal(read.data[-1], stored)
    with pytest.raises(BadInput, match="2 series of images"):
        read_reference(folder, unwatched)
    for file in folder.glob("*.ct"):
        shutil.copy(file, tmp_path)
    assert is_reference(tmp_path)
    assert _read(tmp_path).data.shape == (10, 512, 512)


def test_real_mosaic(shared_data: Path) -> None:
    path = next((shared_data / "ref-dicom-mr").glob("*.IMA"))
    read = _read(path)
    assert read.data.shape == (60, 90, 90)
    assert read.voxel_mm == pytest.approx((2.4, 2.4, 2.4))
    # the phantom is in the middle of every slice, and neighbours are alike
    middle = read.data[15:45]
    assert (middle[:, 30:60, 30:60].mean(axis=(1, 2)) > 3 * middle[:, :8, :8].mean(axis=(1, 2))).all()
    assert np.corrcoef(middle[10].ravel(), middle[11].ravel())[0, 1] > 0.9


CODINGS = ["RLE", "bigendian", "expb", "jp2klossless", "padded"]


@pytest.mark.parametrize("coding", CODINGS)
def test_real_codings_hold_the_same_image(shared_data: Path, coding: str) -> None:
    plain = _read(shared_data / "ref-dicom-mr" / "MR_small.dcm")
    other = _read(shared_data / "hard-dicom" / f"MR_small_{coding}.dcm")
    np.testing.assert_array_equal(other.data, plain.data)
    assert other.voxel_mm == plain.voxel_mm
