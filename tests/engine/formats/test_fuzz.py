"""Damaged files of every kind that is read: cut, with bits turned, with numbers that are too large.

Whatever was done to a file, it is read, or one of our errors says why not; each is read in a process of its own. The
long test takes more of them: `pytest -m long tests/engine/formats/test_fuzz.py`, as many per file as
EQUIPOISE_FUZZ_CASES says, from the seed EQUIPOISE_FUZZ_SEED on.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest
import scipy.io
import tifffile
from astropy.io import fits
from fabio.edfimage import EdfImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from equipoise_engine.formats.results.dicom import write_dicom
from equipoise_engine.formats.results.nexus import write_hdf5
from equipoise_engine.formats.results.tiff import write_tiff
from equipoise_engine.progress import unwatched
from equipoise_engine.volume import Volume

CASES = 16
"""Damaged copies of each file in a plain run."""
HEAD = 4096
"""Bytes at the beginning of a file that are damaged most, as these hold its structure."""
OURS = {"read", "BadInput", "Incomplete", "Unsupported", "OutOfMemory"}
VIEWS, ROWS, COLUMNS = 18, 6, 24


@dataclass(frozen=True)
class Sample:
    """A valid file to be damaged.

    Parameters
    ----------
    damaged
        The file that is damaged.
    opened
        The file or folder that is opened.
    kinds
        What it is opened as.
    """

    damaged: Path
    opened: Path
    kinds: tuple[str, ...] = ("scan",)


def _frames(kind: str = "<u2") -> np.ndarray:
    view, row, column = np.indices((VIEWS, ROWS, COLUMNS))
    return (500 + 100 * np.sin(view) + 20 * row + column**1.5).astype(kind)


def _kspace(*shape: int) -> np.ndarray:
    random = np.random.default_rng(3)
    return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)


def _volume() -> np.ndarray:
    z, y, x = np.indices((4, 9, 13))
    return (100 * z + 10 * y + x).astype(np.float32)


def _result() -> Volume:
    return Volume(_volume(), (2.0, 0.5, 0.25), "ct", True, {"method": "tv", "scan": "a.h5"})


# --- valid files --------------------------------------------------------------------------------------------

MAKERS: dict[str, Callable[[Path, Path], Sample]] = {}
Maker = Callable[[Path, Path], Sample]


def sample(make: Maker) -> Maker:
    """Add what makes a valid file in a folder, given that and the folder of the measured scans."""
    MAKERS[make.__name__.strip("_")] = make
    return make


@sample
def _dataexchange(folder: Path, measured: Path) -> Sample:
    path = folder / "scan.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = _frames()
        file["exchange/data_white"] = _frames()[:2]
        file["exchange/data_dark"] = _frames()[:2] // 100
        file["exchange/theta"] = np.arange(VIEWS) * 15.0
    return Sample(path, path, ("scan", "reference"))


@sample
def _nxtomo(folder: Path, measured: Path) -> Sample:
    path = folder / "scan.nxs"
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        entry["definition"] = "NXtomo"
        entry.create_dataset("instrument/detector/data", data=_frames(), chunks=(1, ROWS, COLUMNS), compression="gzip")
        entry["instrument/detector/image_key"] = np.array([2, 1, *[0] * (VIEWS - 2)])
        entry["sample/rotation_angle"] = np.arange(VIEWS) * 15.0
        entry["sample/rotation_angle"].attrs["units"] = "degree"
    return Sample(path, path)


@sample
def _hdf5_of_no_kind(folder: Path, measured: Path) -> Sample:
    path = folder / "scan.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["images/sample"] = _frames()
        file["images/flat"] = _frames()[:2]
        file["meta/angle"] = np.arange(VIEWS) * 15.0
        file["meta/text"] = "a note"
    return Sample(path, path)


@sample
def _fastmri(folder: Path, measured: Path) -> Sample:
    path = folder / "scan.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = _kspace(2, 3, 16, 20)
        file["reconstruction_rss"] = np.ones((2, 16, 20), np.float32)
    return Sample(path, path, ("scan", "reference"))


@sample
def _ismrmrd(folder: Path, measured: Path) -> Sample:
    path, xsd = folder / "scan.h5", ismrmrd.xsd

    def space(columns: int) -> Any:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=columns, y=16, z=1), fieldOfView_mm=xsd.fieldOfViewMm(x=200, y=200, z=5)
        )

    encoding = xsd.encodingType(
        encodedSpace=space(32),
        reconSpace=space(16),
        encodingLimits=xsd.encodingLimitsType(),
        trajectory=xsd.trajectoryType("cartesian"),
    )
    conditions = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63870000)
    header = xsd.ismrmrdHeader(experimentalConditions=conditions, encoding=[encoding])
    with ismrmrd.Dataset(str(path), "dataset") as dataset:
        dataset.write_xml_header(header.toXML("utf-8"))
        for line in range(16):
            one = ismrmrd.Acquisition.from_array(_kspace(2, 32))
            one.idx.kspace_encode_step_1 = line
            one.center_sample = 16
            dataset.append_acquisition(one)
    return Sample(path, path)


@sample
def _tiff_stack(folder: Path, measured: Path) -> Sample:
    tifffile.imwrite(folder / "s.tif", _frames(), photometric="minisblack")
    return Sample(folder / "s.tif", folder / "s.tif", ("scan", "reference"))


@sample
def _tiff_compressed(folder: Path, measured: Path) -> Sample:
    tifffile.imwrite(folder / "s.tif", _frames(), photometric="minisblack", compression="zlib", predictor=True)
    return Sample(folder / "s.tif", folder / "s.tif", ("scan", "reference"))


@sample
def _tiff_of_imagej(folder: Path, measured: Path) -> Sample:
    tifffile.imwrite(folder / "s.tif", _frames(), imagej=True, metadata={"axes": "ZYX", "spacing": 2.0, "unit": "mm"})
    return Sample(folder / "s.tif", folder / "s.tif", ("scan", "reference"))


@sample
def _tiff_folder(folder: Path, measured: Path) -> Sample:
    for index, image in enumerate(_frames()):
        tifffile.imwrite(folder / f"proj_{index:03d}.tif", image)
    return Sample(folder / "proj_005.tif", folder, ("scan", "reference"))


@sample
def _angles_text(folder: Path, measured: Path) -> Sample:
    tifffile.imwrite(folder / "s.tif", _frames(), photometric="minisblack")
    (folder / "angles.txt").write_text("\n".join(f"{15.0 * view:.3f}" for view in range(VIEWS)))
    return Sample(folder / "angles.txt", folder / "s.tif")


@sample
def _mrc(folder: Path, measured: Path) -> Sample:
    with mrcfile.new(folder / "s.mrc") as file:
        file.set_data(_frames("<f4"))
        file.voxel_size = 2.5
    (folder / "s.tlt").write_text("\n".join(f"{tilt}" for tilt in np.linspace(-55, 55, VIEWS)))
    return Sample(folder / "s.mrc", folder / "s.mrc")


@sample
def _edf(folder: Path, measured: Path) -> Sample:
    image = EdfImage(data=_frames()[0], header={"motor_mne": "sx srot", "motor_pos": "1 0"})
    for view in range(1, VIEWS):
        image.append_frame(data=_frames()[view], header={"motor_mne": "sx srot", "motor_pos": f"1 {15 * view}"})
    image.write(str(folder / "s.edf"))
    return Sample(folder / "s.edf", folder / "s.edf")


@sample
def _fits(folder: Path, measured: Path) -> Sample:
    fits.PrimaryHDU(_frames("<i2")).writeto(folder / "s.fits")
    return Sample(folder / "s.fits", folder / "s.fits")


@sample
def _npy(folder: Path, measured: Path) -> Sample:
    np.save(folder / "projections.npy", _frames())
    return Sample(folder / "projections.npy", folder / "projections.npy", ("scan", "reference"))


@sample
def _npz(folder: Path, measured: Path) -> Sample:
    np.savez_compressed(folder / "s.npz", projections=_frames(), flats=_frames()[:2], angles=np.arange(VIEWS) * 15.0)
    return Sample(folder / "s.npz", folder / "s.npz")


@sample
def _txrm(folder: Path, measured: Path) -> Sample:
    shutil.copyfile(measured / "ct-xradia-txrm" / "txrm_test_chip_tomo.txrm", folder / "s.txrm")
    return Sample(folder / "s.txrm", folder / "s.txrm")


@sample
def _nikon(folder: Path, measured: Path) -> Sample:
    for view in range(VIEWS):
        tifffile.imwrite(folder / f"part_{view + 1:04d}.tif", _frames()[view])
    values = {"Name": "part", "SrcToObject": 60, "SrcToDetector": 180, "DetectorPixelsX": COLUMNS}
    values |= {"DetectorPixelsY": ROWS, "DetectorPixelSizeX": 0.6, "DetectorPixelSizeY": 0.6, "WhiteLevel": 60000}
    values |= {"Projections": VIEWS, "InitialAngle": 0, "AngularStep": 360 / VIEWS}
    text = "[XTekCT]\r\n" + "".join(f"{name}={value}\r\n" for name, value in values.items())
    (folder / "part.xtekct").write_text(text)
    return Sample(folder / "part.xtekct", folder / "part.xtekct")


@sample
def _skyscan(folder: Path, measured: Path) -> Sample:
    for view in range(VIEWS):
        tifffile.imwrite(folder / f"part_{view:04d}.tif", _frames()[view])
    values = {"Scanner": "Skyscan1272", "Number of Files": VIEWS, "Number of Columns": COLUMNS, "Number of Rows": ROWS}
    values |= {"Filename Prefix": "part_", "Object to Source (mm)": 60, "Camera to Source (mm)": 180}
    values |= {"Rotation Step (deg)": 360 / VIEWS, "Camera Pixel Size (um)": 600, "Image Pixel Size (um)": 200}
    text = "[System]\r\n" + "".join(f"{name}={value}\r\n" for name, value in values.items())
    (folder / "part_.log").write_text(text + "[Acquisition]\r\n")
    return Sample(folder / "part_.log", folder / "part_.log")


def _fan() -> dict[str, Any]:
    parameters = {"distanceSourceOrigin": 410.66, "distanceSourceDetector": 553.74, "distanceUnit": "mm"}
    parameters |= {"angles": np.arange(VIEWS)[None] * 30.0, "pixelSizePost": 0.2}
    return {"type": "2D", "sinogram": _frames("<f8")[:, 0], "parameters": parameters}


@sample
def _matlab_5(folder: Path, measured: Path) -> Sample:
    scipy.io.savemat(folder / "s.mat", {"CtDataFull": _fan()}, do_compression=False)
    return Sample(folder / "s.mat", folder / "s.mat", ("scan", "reference"))


@sample
def _matlab_5_compressed(folder: Path, measured: Path) -> Sample:
    scipy.io.savemat(folder / "s.mat", {"DATA": _kspace(16, 20, 2).astype(complex)}, do_compression=True)
    return Sample(folder / "s.mat", folder / "s.mat", ("scan", "reference"))


@sample
def _matlab_7(folder: Path, measured: Path) -> Sample:
    path = folder / "s.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in (("DATA", _kspace(16, 20, 2)), ("img", _volume())):
            pairs = np.empty(value.T.shape, [("real", "<f8"), ("imag", "<f8")])
            pairs["real"], pairs["imag"] = value.T.real, value.T.imag
            file[name] = pairs if np.iscomplexobj(value) else value.T.astype("<f8")
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    text = b"MATLAB 7.3 MAT-file, Platform: test".ljust(124) + b"\0\x02IM"
    path.write_bytes(text + path.read_bytes()[128:])
    return Sample(path, path, ("scan", "reference"))


@sample
def _bart_header(folder: Path, measured: Path) -> Sample:
    (folder / "s.hdr").write_text("# Dimensions\n1 16 20 3 \n# Command\nnoise\n")
    (folder / "s.cfl").write_bytes(_kspace(1, 16, 20, 3).tobytes(order="F"))
    return Sample(folder / "s.hdr", folder / "s.cfl")


@sample
def _bart_values(folder: Path, measured: Path) -> Sample:
    return Sample(folder / "s.cfl", _bart_header(folder, measured).opened)


@sample
def _twix(folder: Path, measured: Path) -> Sample:
    shutil.copyfile(measured / "mri-siemens-twix" / "gre.dat", folder / "s.dat")
    return Sample(folder / "s.dat", folder / "s.dat")


def _bruker(folder: Path, measured: Path, name: str) -> Sample:
    (folder / "7").mkdir()
    for part in ("acqp", "method", "fid"):
        shutil.copyfile(measured / "mri-bruker-flash" / "100" / part, folder / "7" / part)
    return Sample(folder / "7" / name, folder / "7")


@sample
def _bruker_acqp(folder: Path, measured: Path) -> Sample:
    return _bruker(folder, measured, "acqp")


@sample
def _bruker_method(folder: Path, measured: Path) -> Sample:
    return _bruker(folder, measured, "method")


@sample
def _bruker_fid(folder: Path, measured: Path) -> Sample:
    return _bruker(folder, measured, "fid")


def _image(pixels: np.ndarray, **values: Any) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.SeriesInstanceUID, made.InstanceNumber, made.Modality = "1.2.3", 1, "CT"
    made.ImageOrientationPatient, made.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.25]
    made.RescaleSlope, made.RescaleIntercept = 1, -1024
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    made.PixelData = pixels.astype("<u2").tobytes()
    made["PixelData"].VR = "OW"
    for name, value in values.items():
        setattr(made, name, value)
    return made


@sample
def _dicom_series(folder: Path, measured: Path) -> Sample:
    for index, pixels in enumerate(_volume()):
        made = _image(pixels, ImagePositionPatient=[0, 0, 2.0 * index], InstanceNumber=index)
        made.save_as(folder / f"{index}.dcm", enforce_file_format=True)
    return Sample(folder / "2.dcm", folder, ("reference",))


@sample
def _dicom_frames(folder: Path, measured: Path) -> Sample:
    shared, measures, group, position = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, position.ImagePositionPatient = [0.5, 0.25], [0, 0, 1]
    shared.PixelMeasuresSequence, group.PlanePositionSequence = [measures], [position]
    made = _image(_volume(), NumberOfFrames=4)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], [group] * 4
    made.save_as(folder / "a.dcm", enforce_file_format=True)
    return Sample(folder / "a.dcm", folder / "a.dcm", ("reference",))


@sample
def _dicom_rle(folder: Path, measured: Path) -> Sample:
    made = _image(_volume()[0])
    made.compress(RLELossless)
    made.save_as(folder / "a.dcm", enforce_file_format=True)
    return Sample(folder / "a.dcm", folder / "a.dcm", ("reference",))


@sample
def _dicom_jpeg2000(folder: Path, measured: Path) -> Sample:
    shutil.copyfile(measured / "hard-dicom" / "MR_small_jp2klossless.dcm", folder / "a.dcm")
    assert JPEG2000Lossless.encode() in (folder / "a.dcm").read_bytes()
    return Sample(folder / "a.dcm", folder / "a.dcm", ("reference",))


@sample
def _dicom_deflated(folder: Path, measured: Path) -> Sample:
    shutil.copyfile(measured / "hard-dicom" / "image_dfl.dcm", folder / "a.dcm")
    return Sample(folder / "a.dcm", folder / "a.dcm", ("reference",))


@sample
def _dicom_without_preamble(folder: Path, measured: Path) -> Sample:
    shutil.copyfile(measured / "ref-dicom-ct" / "1998052815582995.ct", folder / "a.ct")
    return Sample(folder / "a.ct", folder / "a.ct", ("reference",))


@sample
def _dicom_mosaic(folder: Path, measured: Path) -> Sample:
    shutil.copyfile(next((measured / "ref-dicom-mr").glob("*.IMA")), folder / "a.ima")
    return Sample(folder / "a.ima", folder / "a.ima", ("reference",))


@sample
def _nifti(folder: Path, measured: Path) -> Sample:
    image = nibabel.Nifti1Image(_volume().T, np.diag([0.5, 0.5, 2.0, 1.0]))
    image.header.set_slope_inter(2, 1)
    nibabel.save(image, folder / "a.nii")
    return Sample(folder / "a.nii", folder / "a.nii", ("reference",))


@sample
def _nifti_2_compressed(folder: Path, measured: Path) -> Sample:
    nibabel.save(nibabel.Nifti2Image(_volume().T, np.eye(4)), folder / "a.nii.gz")
    return Sample(folder / "a.nii.gz", folder / "a.nii.gz", ("reference",))


@sample
def _nrrd(folder: Path, measured: Path) -> Sample:
    header = {"space": "left-posterior-superior", "space directions": np.diag([0.5, 0.5, 2.0]), "encoding": "raw"}
    nrrd.write(str(folder / "a.nrrd"), _volume().T, header)
    return Sample(folder / "a.nrrd", folder / "a.nrrd", ("reference",))


@sample
def _nrrd_compressed(folder: Path, measured: Path) -> Sample:
    nrrd.write(str(folder / "a.nrrd"), _volume().T, {"encoding": "gzip"})
    return Sample(folder / "a.nrrd", folder / "a.nrrd", ("reference",))


@sample
def _result_tiff(folder: Path, measured: Path) -> Sample:
    write_tiff(_result(), folder / "a.tif", unwatched)
    return Sample(folder / "a.tif", folder / "a.tif", ("reference", "scan"))


@sample
def _result_hdf5(folder: Path, measured: Path) -> Sample:
    write_hdf5(_result(), folder / "a.h5", unwatched)
    return Sample(folder / "a.h5", folder / "a.h5", ("reference", "scan"))


@sample
def _result_dicom(folder: Path, measured: Path) -> Sample:
    files = write_dicom(_result(), folder / "a", unwatched)
    return Sample(files[1], folder / "a", ("reference",))


# --- damage ---------------------------------------------------------------------------------------------------


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """Return a file with one kind of damage."""
    changed = bytearray(whole)
    # the structure stands at the beginning as a rule, else anywhere
    most = len(whole) if random.random() < 0.3 else min(len(whole), HEAD)
    match int(random.integers(6)):
        case 0:
            return bytes(whole[: int(random.integers(1, most + 1))])
        case 1 | 2:
            for at in random.integers(0, most, int(random.integers(1, 9))):
                changed[at] ^= 1 << int(random.integers(8))
        case 3:
            at = int(random.integers(0, max(most - 8, 1)))
            word = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 1, 0xFFFF)[int(random.integers(6))]
            changed[at : at + 4] = struct.pack("<I" if random.random() < 0.5 else ">I", word)
        case 4:
            at, count = int(random.integers(0, most)), int(random.integers(1, 64))
            del changed[at : at + count]
        case _:
            digits = [at for at in range(most) if 48 <= changed[at] < 58]
            for at in random.choice(digits, 3) if digits else random.integers(0, most, 3):
                changed[at] = int(random.choice(list(b"0123456789-.eE nN{}(")))
    return bytes(changed)


def _wrong_ends(make: Maker, folder: Path, measured: Path, attempts: Any, cases: int, seed: int) -> list[str]:
    """Return what went wrong with damaged copies of a file, with what makes each of them again."""
    made = make(folder, measured)
    whole = made.damaged.read_bytes()
    for kind in made.kinds:
        end = attempts.read(kind, made.opened)
        assert end["kind"] in OURS, end
    # the first kind is what it is
    assert attempts.read(made.kinds[0], made.opened)["kind"] == "read"
    name = zlib.crc32(make.__name__.encode())
    wrong = []
    for case in range(seed, seed + cases):
        # a new file each time: the HDF5 library may not let go of a damaged one, and takes the same one for open
        made.damaged.unlink()
        made.damaged.write_bytes(damaged(whole, np.random.default_rng([name, case])))
        end = attempts.read(made.kinds[case % len(made.kinds)], made.opened)
        if end["kind"] not in OURS or end["seconds"] > 10:
            wrong.append(f"case {case}: {end}")
    return wrong


@pytest.mark.parametrize("name", MAKERS)
def test_damaged_files_have_a_clear_end(name: str, tmp_path: Path, shared_data: Path, attempts: Any) -> None:
    assert _wrong_ends(MAKERS[name], tmp_path, shared_data, attempts, CASES, 0) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MAKERS)
def test_many_damaged_files_have_a_clear_end(name: str, tmp_path: Path, shared_data: Path, attempts: Any) -> None:
    cases, seed = (int(os.environ.get(f"EQUIPOISE_FUZZ_{key}", n)) for key, n in (("CASES", 40), ("SEED", 1000)))
    assert _wrong_ends(MAKERS[name], tmp_path, shared_data, attempts, cases, seed) == []
