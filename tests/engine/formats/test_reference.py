"""Image volumes to compare with: what other programs write, what this one writes, and real ones."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import scipy.io
import tifffile

from equipoise_engine.errors import BadInput, Unsupported
from equipoise_engine.formats.references.reference import is_reference, read_reference
from equipoise_engine.formats.results.dicom import write_dicom
from equipoise_engine.formats.results.nexus import write_hdf5
from equipoise_engine.formats.results.tiff import write_tiff
from equipoise_engine.progress import Watch, unwatched
from equipoise_engine.volume import Volume

Writer = Callable[[Volume, Path, Watch], list[Path]]


def _asymmetric(shape: tuple[int, int, int] = (4, 9, 13)) -> np.ndarray:
    """Return a volume that no flip or exchange of axes leaves the same."""
    z, y, x = np.indices(shape)
    return (100 * z + 10 * y + x + (x > 2) * (y > 5) * 50).astype(np.float32)


def _result(modality: str, calibrated: bool) -> Volume:
    return Volume(
        data=_asymmetric() / 1000,
        voxel_mm=(2.0, 0.5, 0.25) if calibrated else (1.0, 1.0, 1.0),
        modality=modality,
        calibrated=calibrated,
        provenance={"method": "tv", "scan": "tooth.h5", "settings": {"iterations": 40}},
        first_slice=3,
    )


# --- what this program wrote ---------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["ct", "mri"])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(("write", "name"), [(write_tiff, "r.tif"), (write_hdf5, "r.h5"), (write_dicom, "r")])
def test_a_result_comes_back(tmp_path: Path, write: Writer, name: str, modality: str, calibrated: bool) -> None:
    made = _result(modality, calibrated)
    files = write(made, tmp_path / name, unwatched)
    for path in (tmp_path / name, files[-1]):
        assert is_reference(path)
        read = read_reference(path, unwatched)
        tolerance = 1e-5 if write is write_dicom else 0
        np.testing.assert_allclose(read.data, made.data, atol=tolerance)
        assert read.voxel_mm == pytest.approx(made.voxel_mm)
        assert (read.modality, read.calibrated, read.first_slice) == (modality, calibrated, 3)
        unit = {"mri": ("arbitrary", "a.u."), "ct": ("1/mm",) if calibrated else ("1/pixel",)}[modality]
        assert read.provenance["unit"] in unit
        assert read.provenance["reference"] == path.name
        json.dumps(read.provenance)


# --- NIfTI ------------------------------------------------------------------------------------------------


def _lps_grid() -> np.ndarray:
    """Return `(slice, y, x)` towards the head, the back and the left."""
    return _asymmetric()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SAL", "ASR"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_is_turned_upright(tmp_path: Path, axes: str, ending: str, kind: type) -> None:
    grid = _lps_grid()
    # along right, anterior and head, as nibabel counts; then in the order that the file is to have
    ras = nibabel.Nifti1Image(grid.transpose(2, 1, 0)[::-1, ::-1], np.diag([0.5, 0.75, 2.0, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(axes)
    turned = ras.as_reoriented(wanted)
    nibabel.save(kind(np.asarray(turned.dataobj), turned.affine), tmp_path / f"volume{ending}")
    assert is_reference(tmp_path / f"volume{ending}")
    read = read_reference(tmp_path / f"volume{ending}", unwatched)
    np.testing.assert_array_equal(read.data, grid)
    assert read.voxel_mm == pytest.approx((2.0, 0.75, 0.5))
    assert read.calibrated


def test_nifti_by_quaternion_with_slope_in_two_files(tmp_path: Path) -> None:
    stored = _asymmetric().astype(np.int16).transpose(2, 1, 0)
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.5, 3.0])
    image = nibabel.Nifti1Pair(stored, None)
    image.header.set_qform(affine, code=1)
    image.header.set_slope_inter(0.5, -3)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "pair.img")
    read = read_reference(tmp_path / "pair.hdr", unwatched)
    expected = nibabel.load(tmp_path / "pair.img").get_fdata()
    np.testing.assert_allclose(read.data, expected.transpose(2, 1, 0))
    assert read.voxel_mm == pytest.approx((3.0, 1.5, 1.0), rel=1e-5)
    (tmp_path / "pair.img").unlink()
    with pytest.raises(BadInput, match=r"pair\.img, which is missing"):
        read_reference(tmp_path / "pair.hdr", unwatched)


def test_nifti_without_directions_several_volumes_and_complex(tmp_path: Path) -> None:
    stored = np.stack([_asymmetric().T * (1 + 1j), np.zeros((13, 9, 4))], axis=-1).astype(np.complex64)
    image = nibabel.Nifti1Image(stored, None)
    image.header.set_zooms((1.0, 2.0, 3.0, 1.0))
    nibabel.save(image, tmp_path / "many.nii")
    read = read_reference(tmp_path / "many.nii", unwatched)
    np.testing.assert_allclose(read.data, np.sqrt(2) * _asymmetric()[:, ::-1], rtol=1e-6)
    assert read.voxel_mm == (3.0, 2.0, 1.0)
    assert read.provenance["notes"] == ["the first of 2 volumes was taken", "the file does not say how its axes lie"]


def test_nifti_that_promises_too_much(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(_asymmetric().T, np.eye(4)), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(_asymmetric().T, np.eye(4)), tmp_path / "a.nii")
    whole = bytearray((tmp_path / "a.nii").read_bytes())
    (tmp_path / "cut.nii").write_bytes(whole[:-10])
    with pytest.raises(BadInput, match=r"cut\.nii: the volume .* takes 1872 bytes from 352 on, but the file has 2214"):
        read_reference(tmp_path / "cut.nii", unwatched)
    whole[42:48] = np.array([30000, 30000, 30000], np.int16).tobytes()
    (tmp_path / "huge.nii").write_bytes(whole)
    with pytest.raises(BadInput, match="takes 108000000000000 bytes"):
        read_reference(tmp_path / "huge.nii", unwatched)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(packed[:-30])
    with pytest.raises(BadInput, match=r"cut\.nii\.gz: the compressed NIfTI file is damaged"):
        read_reference(tmp_path / "cut.nii.gz", unwatched)
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(Unsupported, match="NIfTI type 128"):
        read_reference(tmp_path / "rgb.nii", unwatched)


def _nifti_1(order: str, volume: np.ndarray, **changed: tuple[int, str, object]) -> bytes:
    """Return a file of one volume `(slice, y, x)` as nifti1.h lays it out: where each field stands, and its kind."""
    whole = bytearray(352)
    fields: dict[str, tuple[int, str, object]] = {
        "sizeof_hdr": (0, "i", 348),
        "db_name": (14, "18s", b"Jane Doe"),
        "dim": (40, "8h", (3, *volume.shape[::-1], 1, 1, 1, 1)),
        "datatype": (70, "h", 4),
        "bitpix": (72, "h", 16),
        "pixdim": (76, "8f", (1, 0.5, 0.75, 2, 0, 0, 0, 0)),
        "vox_offset": (108, "f", 352),
        "scl": (112, "2f", (0.25, -3)),
        "xyzt_units": (123, "B", 2),
        "descrip": (148, "80s", b"Jane Doe, born 1 January"),
        "magic": (344, "4s", b"n+1\0"),
    }
    for at, kind, values in (fields | changed).values():
        struct.pack_into(order + kind, whole, at, *(values if isinstance(values, tuple) else (values,)))
    return bytes(whole) + volume.astype(f"{order}i2").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_by_the_bytes_of_its_definition(tmp_path: Path, order: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.nii"
    rows = (-0.5, 0, 0, 9, 0, -0.75, 0, 9, 0, 0, 2, 9)  # to the left, to the back, to the head
    path.write_bytes(_nifti_1(order, _asymmetric(), codes=(252, "2h", (0, 1)), srow=(280, "12f", rows)))
    read = read_reference(path, unwatched)
    np.testing.assert_array_equal(read.data, _asymmetric() * 0.25 - 3)
    assert read.voxel_mm == (2.0, 0.75, 0.5)
    assert "Jane" not in repr(read.provenance)
    # half a turn about the third axis, rounded beyond 1; qfac 0 stands for 1, and offset 0 for the end of the header
    turned = {
        "codes": (252, "2h", (1, 0)),
        "quatern": (256, "3f", (0, 0, 1.000001)),
        "pixdim": (76, "8f", (0, 0.5, 0.75, 2, 0, 0, 0, 0)),
        "vox_offset": (108, "f", 0),
    }
    path.write_bytes(_nifti_1(order, _asymmetric(), **turned))
    read = read_reference(path, unwatched)
    np.testing.assert_array_equal(read.data, _asymmetric() * 0.25 - 3)
    assert read.voxel_mm == pytest.approx((2.0, 0.75, 0.5))
    assert "notes" not in read.provenance
    # no directions at all, in micrometres, and a step that is not said
    path.write_bytes(_nifti_1(order, _asymmetric(), xyzt_units=(123, "B", 3)))
    read = read_reference(path, unwatched)
    np.testing.assert_array_equal(read.data, _asymmetric()[:, ::-1] * 0.25 - 3)
    assert read.voxel_mm == pytest.approx((2e-3, 0.75e-3, 0.5e-3))
    path.write_bytes(_nifti_1(order, _asymmetric(), pixdim=(76, "8f", (1, 0, 0.75, 2, 0, 0, 0, 0))))
    assert not read_reference(path, unwatched).calibrated
    # nibabel tells stderr what it mends
    assert capfd.readouterr() == ("", "")


# --- NRRD -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("detached", [False, True])
def test_nrrd_in_the_space_of_a_patient(tmp_path: Path, encoding: str, detached: bool) -> None:
    grid = _lps_grid()
    # first axis to the head, second to the front, third to the left
    stored = grid.transpose(0, 1, 2)[:, ::-1]
    header = {
        "space": "left-posterior-superior",
        "space directions": [[0, 0, 2.0], [0, -0.75, 0], [0.5, 0, 0]],
        "space origin": [1, 2, 3],
        "encoding": encoding,
    }
    path = tmp_path / ("volume.nhdr" if detached else "volume.nrrd")
    nrrd.write(str(path), stored.astype(">f4"), header)
    assert is_reference(path)
    read = read_reference(path, unwatched)
    np.testing.assert_array_equal(read.data, grid)
    assert read.voxel_mm == pytest.approx((2.0, 0.75, 0.5))
    # the same in the other space that is common
    header |= {"space": "right-anterior-superior", "space directions": [[0, 0, 2.0], [0, 0.75, 0], [-0.5, 0, 0]]}
    nrrd.write(str(path), stored, header)
    np.testing.assert_array_equal(read_reference(path, unwatched).data, grid)


def test_nrrd_without_a_space_stays_as_it_lies(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), _asymmetric().T, {"spacings": [0.1, 0.2, 0.3], "units": ["cm", "cm", "cm"]})
    read = read_reference(tmp_path / "a.nrrd", unwatched)
    np.testing.assert_array_equal(read.data, _asymmetric())
    assert read.voxel_mm == pytest.approx((3.0, 2.0, 1.0))
    nrrd.write(str(tmp_path / "b.nrrd"), np.arange(80, dtype=np.uint16).reshape(8, 10))
    read = read_reference(tmp_path / "b.nrrd", unwatched)
    assert read.data.shape == (1, 10, 8)
    assert not read.calibrated
    several = np.stack([_asymmetric().T, np.zeros((13, 9, 4), np.float32)])
    nrrd.write(str(tmp_path / "c.nrrd"), several, {"kinds": ["vector", "domain", "domain", "domain"]})
    read = read_reference(tmp_path / "c.nrrd", unwatched)
    np.testing.assert_array_equal(read.data, _asymmetric())
    assert read.provenance["notes"] == ["the first of 2 values along axis 0 was taken"]


def test_nrrd_by_the_bytes_of_its_definition(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    fields = (
        "NRRD0005\n# Jane Doe\nType: unsigned short\ndimension: 3\nsizes: 13 9 4\nencoding: raw\nendian: big\n"
        "content: Jane Doe\nspace: left-posterior-superior\nspace directions: (0.5, 0, 0) (0, -0.75, 0) (0, 0, 2)\n"
        "space origin: (damaged\ntype:=Jane Doe\nname:=Jane Doe\n"
    )
    stored = _asymmetric()[:, ::-1].astype(">u2").tobytes()
    # with something behind the values; with as much before them; in a file beside, behind lines and bytes
    (tmp_path / "b.bin").write_bytes(b"one\ntwo\n...." + stored)
    for text, values in (
        (fields, stored + b"end"),
        (fields + "byte skip: -1\n", b"before" + stored),
        (fields + "lineskip: 2\nbyteskip: 4\ndatafile: b.bin\n", b""),
    ):
        path.write_bytes(text.encode() + b"\n" + values)
        read = read_reference(path, unwatched)
        np.testing.assert_array_equal(read.data, _asymmetric())
        assert read.voxel_mm == (2.0, 0.75, 0.5)
        assert "Jane" not in repr(read.provenance)
    for damage, told in (
        (("sizes: 13 9 4", "sizes: 13 9 4.5"), "sizes of the NRRD file read '13 9 4.5'"),
        (("dimension: 3", "dimension: three"), "header of the NRRD file is damaged"),
        (("encoding: raw", "encoding: raw\nbyte skip: -2"), "skips 0 lines and -2 bytes"),
        (("encoding: raw", f"encoding: raw\nbyte skip: {10**30}"), "at most"),
        (("NRRD0005", "NRRD0009"), "version after 5"),
        (("big", "middle"), "order of bytes"),
    ):
        path.write_bytes(fields.replace(*damage).encode() + b"\n" + stored)
        with pytest.raises(BadInput, match=told):
            read_reference(path, unwatched)
    for damage in (("unsigned short", "block"), ("unsigned short", "word")):
        path.write_bytes(fields.replace(*damage).encode() + b"\n" + stored)
        with pytest.raises(Unsupported, match="not read"):
            read_reference(path, unwatched)


@pytest.mark.parametrize("kind", ["nrrd", "nii"])
def test_no_more_is_inflated_than_the_volume_takes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    many, packing = bytes(1 << 26), zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    if kind == "nrrd":
        text = b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 8 8\nencoding: gzip\n\n"
        path.write_bytes(text + packing.compress(many) + packing.flush())
    else:
        path.write_bytes(packing.compress(_nifti_1("<", np.zeros((1, 8, 8))) + many) + packing.flush())
    tracemalloc.start()
    try:
        assert read_reference(path, unwatched).data.shape == (1, 8, 8)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_nrrd_that_leads_elsewhere_or_promises_too_much(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.raw").write_bytes(bytes(64))
    text = "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 8 8\nencoding: raw\n"
    path = tmp_path / "in" / "a.nhdr"
    path.write_text(text + "data file: ../secret.raw\n")
    with pytest.raises(BadInput, match="outside its folder"):
        read_reference(path, unwatched)
    path.write_text(text + "data file: none.raw\n")
    with pytest.raises(BadInput, match="which is missing"):
        read_reference(path, unwatched)
    path.write_text(text + "data file: LIST\na.raw\n\n")
    with pytest.raises(Unsupported, match="several files"):
        read_reference(path, unwatched)
    path.write_bytes(text.replace("8 8", "80000 80000").encode() + b"\n" + bytes(64))
    with pytest.raises(BadInput, match="takes 6400000000 bytes, but at most 64 are stored"):
        read_reference(path, unwatched)
    path.write_bytes(text.replace("raw", "bzip2").encode() + b"\n" + bytes(64))
    with pytest.raises(Unsupported, match="'bzip2'"):
        read_reference(path, unwatched)


# --- arrays -----------------------------------------------------------------------------------------------


def test_tiff_of_imagej_with_size_and_scale(tmp_path: Path) -> None:
    stored = _asymmetric().astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "ij.tif",
        stored,
        imagej=True,
        resolution=(4.0, 2.0),
        metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um", "cf": 0, "c0": -5.0, "c1": 0.5},
    )
    assert not is_reference(tmp_path / "ij.tif")
    read = read_reference(tmp_path / "ij.tif", unwatched)
    np.testing.assert_array_equal(read.data, stored * 0.5 - 5)
    assert read.voxel_mm == pytest.approx((0.003, 0.0005, 0.00025))
    assert read.calibrated


def test_tiff_files_of_a_folder_in_their_order(tmp_path: Path) -> None:
    for index, image in enumerate(_asymmetric((12, 9, 13))):
        tifffile.imwrite(tmp_path / f"slice_{index}.tif", image, resolution=(20.0, 20.0), resolutionunit="CENTIMETER")
    read = read_reference(tmp_path, unwatched)
    np.testing.assert_array_equal(read.data, _asymmetric((12, 9, 13)))
    assert read.voxel_mm == pytest.approx((0.5, 0.5, 0.5))


def test_arrays_of_other_programs(tmp_path: Path) -> None:
    volume = _asymmetric((4, 9, 13))
    np.save(tmp_path / "a.npy", volume)
    np.save(tmp_path / "c.npy", volume[0] * 1j)
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    scipy.io.savemat(tmp_path / "a.mat", {"img": np.moveaxis(volume, 0, 2), "n": 3, "text": "x"})
    scipy.io.savemat(tmp_path / "two.mat", {"a": volume, "b": volume[:, :9, :9]})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["some/volume"] = volume
        file["some/list"] = np.arange(5)
    for name, expected in (("a.npy", volume), ("c.npy", volume[:1]), ("a.mat", volume), ("a.h5", volume)):
        assert not is_reference(tmp_path / name)
        read = read_reference(tmp_path / name, unwatched)
        np.testing.assert_array_equal(read.data, expected)
        assert not read.calibrated
        assert read.modality == ""
    with pytest.raises(BadInput, match="damaged"):
        read_reference(tmp_path / "p.npy", unwatched)
    with pytest.raises(BadInput, match="arrays that may be images"):
        read_reference(tmp_path / "two.mat", unwatched)


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear reader")
    (tmp_path / "empty.dcm").write_bytes(b"")
    for name in ("letter.txt", "empty.dcm", "missing.dcm"):
        assert not is_reference(tmp_path / name)
    with pytest.raises(Unsupported, match=r"letter\.txt: holds no image"):
        read_reference(tmp_path / "letter.txt", unwatched)
    with pytest.raises(BadInput, match=r"empty\.dcm: the file is empty"):
        read_reference(tmp_path / "empty.dcm", unwatched)
    with pytest.raises(BadInput, match="no such file"):
        read_reference(tmp_path / "missing.dcm", unwatched)
    with pytest.raises(BadInput, match="no DICOM image in this folder"):
        read_reference(tmp_path, unwatched)


# --- real ones --------------------------------------------------------------------------------------------


def test_real_images_of_matlab_and_hdf5(shared_data: Path) -> None:
    disc = read_reference(shared_data / "ref-images" / "htc2022_solid_disc_full_recon_fbp.mat", unwatched)
    assert disc.data.shape == (1, 512, 512)
    assert float(disc.data[0, 200:300, 200:300].mean()) > 3 * abs(float(disc.data[0, :40, :40].mean()))
    coils = read_reference(shared_data / "ref-images" / "img_brain_4ch.mat", unwatched)
    assert coils.data.shape == (4, 256, 256)
    assert coils.data.min() >= 0
    rss = read_reference(shared_data / "derived" / "brain8ch_fastmri_like.h5", unwatched)
    assert rss.data.shape == (1, 230, 180)
